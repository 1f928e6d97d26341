"""Measurements on trained networks: geometry of weights, evaluation at many of them, curvature. No drawing."""
