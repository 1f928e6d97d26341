"""Steps beyond the two papers, when a step is a sharp one, and the optimizers below all steps."""
