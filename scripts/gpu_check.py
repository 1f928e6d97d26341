"""What only a GPU can show, in one command: `python scripts/gpu_check.py --json FILE`.

In this order, what tells most per second first; each part ends at its time limit, and rows are written as they come. A
SIGTERM, as timeout sends it, ends the part that is on and leaves out the others; what there is by then is shown.

training      a few steps of every method beside the CPU's, network and loss in float64: what differs is not rounding
gradients     logits and gradient of every network beside those of the CPU, fp32, with smooth activations
graphs        every method with steps recorded as a CUDA graph beside plain steps, deterministic=true, bit for bit
waiting       the step loop of every method with each wait for the device made an error
resume        every method, interrupted and resumed with deterministic=true, bit for bit
rates         images/s of every network in training as auto chooses, its share of the device's
              matrix-multiplication rate, memory; then with plain steps
ascent        SAM's and ASAM's cost over SGD's
together      images/s of 1 to 4 runs on one card, in all
convolutions  bf16 beside fp32 on the shapes of every network: largest difference

It exits with 1 where a check fails, with 75 where SIGTERM came before the end. `--device cpu` runs it without a GPU, to
see that the command itself works: what needs CUDA is left out there, and said.
"""

import argparse
import logging
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_exact
import gpu_speed
import measure
import torch

from broadopt.config.shipped import options
from broadopt.devices.device import choose_device, device_name
from broadopt.errors import InputError

FIRST = ("vgg16", "resnet20", "preresnet164", "wrn28_10", "vgg19_bn")
LAST = ("pyramidnet272", "pyramidnet272_shakedrop")
NETWORKS = [*FIRST, *sorted(set(options("model")) - {*FIRST, *LAST}), *LAST]
"""In the order in which their figures are wanted: a part may come to its limit. PyramidNet's 271 convolutions have as
many shapes, for each of which cuDNN looks for the fastest algorithm.
"""
CHECKED = {"check", "found", "at most", "passed"}
"""What a row says of a check; other things in it were measured."""


PARTS: dict[str, tuple[Callable[[argparse.Namespace], gpu_exact.Rows], float]] = {
    "training": (gpu_exact.of_training, 25),
    "gradients": (gpu_exact.of_gradients, 60),
    "graphs": (gpu_exact.of_graphs, 40),
    "waiting": (gpu_exact.of_waiting, 20),
    "resume": (gpu_exact.of_resume, 30),
    "rates": (gpu_speed.of_rates, 90),
    "ascent": (gpu_speed.of_ascent, 60),
    "together": (gpu_speed.of_together, 90),
    "convolutions": (gpu_speed.of_convolutions, 60),
}
"""In their order, with the seconds that each may take at most."""


class TimeIsUp(BaseException):
    """A part has come to its limit. No Exception, of which others make their own."""


class Ended(BaseException):
    """SIGTERM has come."""


def end_at_sigterm() -> None:
    """From now on SIGTERM raises Ended, once; `together` ends its processes then, which nobody else would."""

    def end(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Ended

    signal.signal(signal.SIGTERM, end)


def limited(rows: gpu_exact.Rows, limit: float) -> gpu_exact.Rows:
    """`rows` until `limit` seconds are over, also in the middle of one; then TimeIsUp is raised."""

    def end(*_: Any) -> None:
        raise TimeIsUp

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        yield from rows
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu (cuda)")
    made.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help="all by default")
    made.add_argument(
        "--networks", nargs="+", choices=NETWORKS, default=NETWORKS, metavar="NAME", help="all by default"
    )
    made.add_argument("--limit", type=float, default=1.0, metavar="X", help="each part's time limit, times X (1)")
    made.add_argument("--batch", type=int, default=measure.BATCH, help="images a step where rates are measured (128)")
    made.add_argument(
        "--steps", type=int, default=60, help="steps a turn where rates are measured, after the first ones (60)"
    )
    made.add_argument("--rounds", type=int, default=3, help="turns, after one that is not counted (3)")
    made.add_argument("--runs", type=int, default=4, help="together: the most runs on the card (4)")
    made.add_argument("--compile", action="store_true", help="rates: with torch.compile as well")
    made.add_argument("--json", type=Path, help="write the rows as JSON, with the command and the machine's facts")
    made.add_argument("--one-of-several", metavar="NAME", help=argparse.SUPPRESS)  # a process of `together`
    return made


def card(device: torch.device) -> str:
    """torch, driver and card in a line."""
    facts = [f"torch {torch.__version__}", f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"]
    if device.type == "cuda" and shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True).stdout.split()
        facts += [f"driver {driver[0]}"] if driver else []
    return ", ".join([*facts, device_name(device)])


def main() -> None:
    """Run the parts, row by row, then print a table of each."""
    arguments = parser().parse_args()
    # Of what broadopt says by the way, only why steps are not recorded, which is to be known beside "recorded: no".
    logging.getLogger("broadopt").addFilter(
        lambda record: record.levelno >= logging.ERROR or "graphs=" in record.getMessage()
    )
    if arguments.one_of_several:
        return gpu_speed.one_of_several(arguments)
    rows: list[dict[str, Any]] = []
    began, left = time.monotonic(), list(arguments.parts)
    end_at_sigterm()
    try:
        facts = card(choose_device(arguments.device))
        gpu_exact.choose_flags(choose_device(arguments.device))  # imports what a limit must not leave half imported
        print(facts, flush=True)
        for part in arguments.parts:
            make, limit = PARTS[part]
            try:
                for row in limited(make(arguments), limit * arguments.limit):
                    rows.append({"part": part, **row})
                    print("  ".join(f"{key}: {measure.shown(value)}" for key, value in row.items()), flush=True)
                    measure.write(rows, arguments.json, device=arguments.device, machine=facts)
                left.remove(part)
            except TimeIsUp:
                left.remove(part)
                print(f"{part}: ended by its limit of {limit * arguments.limit:g} s", flush=True)
            except InputError:
                raise
            except Exception as error:  # noqa: BLE001 - the other parts tell something all the same
                words = f"{part}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
                print(words, flush=True)
                rows.append({"part": part, "check": words, "passed": "no"})
                measure.write(rows, arguments.json, device=arguments.device, machine=facts)
                left.remove(part)
    except InputError as error:
        measure.fail(error)
    except Ended:
        print(f"ended by SIGTERM: not made, or not to the end: {', '.join(left)}", flush=True)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    failed = summary(rows)
    print(f"{sum('passed' in row for row in rows)} checks, {failed} failed, {time.monotonic() - began:.0f} s")
    sys.exit(1 if failed else 75 if left else 0)


def summary(rows: list[dict[str, Any]]) -> int:
    """Print a table of what each part has measured, then the checks that failed, and return their number."""
    for part in PARTS:
        if measured := [row for row in rows if row["part"] == part and len(row.keys() - CHECKED) > 1]:
            print(f"\n{part}")
            measure.show([{key: value for key, value in row.items() if key != "part"} for row in measured])
    failed = [row for row in rows if row.get("passed") == "no"]
    print(f"\n{measure.HOW}")
    for row in failed:
        print(f"failed: {row['part']}: {row['check']}" + (f": {row['found']:.4g}" if "found" in row else ""))
    return len(failed)


if __name__ == "__main__":
    main()
