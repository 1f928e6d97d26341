"""Figures of test error and train loss at weights of a plane, a line or rays: one network, evaluated at many points."""
