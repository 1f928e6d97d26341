"""Where a run computes: the device and its precision, and the processes that share a run."""
