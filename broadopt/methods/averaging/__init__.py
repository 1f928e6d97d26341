"""Collectors besides those of the tables: other averages of the weights, and a distribution around one."""
