"""Experiment trackers behind one function: a run's history into TensorBoard, W&B, MLflow or trackio, live or later."""
