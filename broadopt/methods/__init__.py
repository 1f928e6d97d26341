"""How one batch changes the weights (steps), how the learning rate moves (schedules), and what is evaluated besides the
last weights (collectors)."""
