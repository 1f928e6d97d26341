"""How one batch changes the weights (steps), and what is evaluated besides the last weights (collectors)."""
