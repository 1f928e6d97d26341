"""Data sets in memory and the stream of augmented batches that a training iterates over."""
