"""broadopt-table: results beside the published tables, made from result files alone."""

from broadopt.tables.command import main

__all__ = ["main"]
