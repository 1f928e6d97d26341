"""broadopt: SGD, SWA, FGE, SAM and ASAM on CIFAR, compared with the published tables."""

__version__ = "0.1.0"
