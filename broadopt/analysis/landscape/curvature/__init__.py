"""The loss close to a network's weights: its gradient, its Hessian, and how far it rises in a ball."""
