"""How the threads of a CPU wait; without torch, which reads it when it is imported."""

import os


def let_waiting_threads_sleep() -> None:
    """Set, unless the user has, that threads which wait spin for some microseconds and then sleep."""
    if "OMP_WAIT_POLICY" not in os.environ:
        # Without the first a free machine is half as fast, without the second a shared one up to ten times slower.
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
