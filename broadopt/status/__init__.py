"""Where the runs of a table or of a folder stand: finished, running, interrupted, failed or missing, and their cost."""
