"""Finished runs beside the published tables, made from result files alone."""
