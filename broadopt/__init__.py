"""broadopt: SGD, SWA, FGE, SAM and ASAM on CIFAR, compared with the published tables."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from broadopt.analysis.comparing.frame import load_history, load_results

__version__ = "0.1.0"
__all__ = ["__version__", "load_history", "load_results"]


def __getattr__(name: str) -> Any:
    # Only who reads results pays for pandas: every command imports this module.
    if name in ("load_history", "load_results"):
        from broadopt.analysis.comparing import frame

        return getattr(frame, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
