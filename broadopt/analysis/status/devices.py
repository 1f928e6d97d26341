"""What device hours are of: those of a CPU's thread and of a GPU are no quantities to be added."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from broadopt.analysis.tables.summary import has_moved
from broadopt.devices.rates import kind_of, on_threads

MOST_THREADS = 100_000
"""Of a CPU; whoever made a result may have written anything."""


@dataclass(frozen=True)
class Device:
    """The device of a run, as its result or heartbeat has recorded it."""

    name: str | None
    threads: int | None
    """Of a CPU, where they are known."""

    @classmethod
    def of(cls, recorded: Mapping[str, Any]) -> "Device":
        """That of a result's environment, or of a heartbeat; an environment has the threads of the CPU beside a GPU."""
        if has_moved(recorded):
            return SEVERAL
        name, threads = recorded.get("device"), recorded.get("threads")
        is_known = name is not None and name.startswith("CPU") and type(threads) is int and 0 < threads < MOST_THREADS
        return cls(name, threads if is_known else None)

    @property
    def kind(self) -> str:
        """`an H100`, `1 thread of a CPU (AMD EPYC)`."""
        return kind_of(self.name, self.threads) if self.name else "devices that are not recorded"

    def __str__(self) -> str:
        return on_threads(self.name, self.threads) if self.name and self.threads else str(self.name)


UNKNOWN = Device(None, None)
SEVERAL = Device("machines of several kinds", None)
"""Of a run that went on on another machine: how many of its seconds are whose is not recorded."""
