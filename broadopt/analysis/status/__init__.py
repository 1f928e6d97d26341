"""The status of a table's or a folder's runs: finished, running, interrupted, failed or missing, and their cost."""
