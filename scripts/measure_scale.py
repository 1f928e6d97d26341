"""What looking at a folder of many runs costs, piece by piece: the figures of docs/scale.md.

    python scripts/simulate_results.py FOLDER && python scripts/measure_scale.py FOLDER [--latency 0.001]

`--latency` adds that many seconds to each listing and each reading, as a file server far away would.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from broadopt import files
from broadopt.analysis.status import state as standing
from broadopt.config.identity import identity_of
from broadopt.runs import folders, heartbeat, results
from broadopt.runs.schema import check_result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--latency", type=float, default=0.0)
    given = parser.parse_args()
    paths, _ = folders.scan(given.folder, "result.json")
    if not paths:
        parser.error(f"{given.folder} holds no result")
    contents = [path.read_bytes() for path in paths]
    found = [json.loads(content) for content in contents]
    pieces: dict[str, Callable[[Any], Any]] = {
        "list a run folder": lambda number: list(os.scandir(paths[number].parent)),
        "stat a file": lambda number: paths[number].stat(),
        "read a result.json": lambda number: paths[number].read_bytes(),
        "parse it": lambda number: json.loads(contents[number]),
        "check its checksum": lambda number: results.checksum(found[number]),
        "check its identity": lambda number: identity_of(found[number]["config"]),
        "check its fields": lambda number: check_result(found[number]),
        "look at a lock": lambda number: heartbeat.is_held(paths[number].parent),
    }
    for name, piece in pieces.items():
        print(f"{name:28} {seconds(lambda piece=piece: [*map(piece, range(len(paths)))]) / len(paths) * 1e6:8.0f} µs")
    lock, beat = (
        FileLock(paths[0].parent / ".lock"),
        heartbeat.Heartbeat(paths[0].parent, found[0]["config"], device=""),
    )
    taken = seconds(lambda: [lock.acquire().lock.release() for _ in range(1000)])
    print(f"{'take and release a lock':28} {taken * 1e3:8.0f} µs")
    print(f"{'write a heartbeat':28} {seconds(lambda: [beat._write({}) for _ in range(1000)]) * 1e3:8.0f} µs")
    (paths[0].parent / heartbeat.NAME).unlink()
    if given.latency:
        slow_down(given.latency)
    for readers in (1, folders.READERS):
        folders.READERS = readers
        print(f"all {len(paths)} results, {readers:2} readers {seconds(lambda: results.read_all(given.folder)):6.2f} s")
    print(f"all, with heartbeats         {seconds(lambda: standing.look(given.folder)):6.2f} s")


def seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def slow_down(latency: float) -> None:
    """Let every listing and every reading wait."""
    list_folder, open_regular = os.scandir, files.open_regular

    def listing(path: Any) -> Any:
        time.sleep(latency)
        return list_folder(path)

    def opening(path: Path) -> Any:
        time.sleep(latency)
        return open_regular(path)

    os.scandir, files.open_regular = listing, opening  # type: ignore[assignment]


if __name__ == "__main__":
    main()
