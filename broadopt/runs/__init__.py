"""What lies in a run's folder: result, history, checkpoint, heartbeat and lock; written here and read back here."""
