"""Trunks: the first epochs that runs have in common, which one of them trains for all (trunk=share)."""
