"""Which head of VGG19-BN learns at all? `python scripts/vgg19_heads.py`, on a GPU.

The recipe of table3/vgg19_bn for 2 epochs in fp32: the heads torchvision and hidden4096, each with SGD, SAM and ASAM
and five seeds. Counted are the runs whose last test accuracy is more than three times chance. Runs that are finished
are not made again; a CPU would take days for them, so it is refused unless --device cpu is given, to rehearse.
"""

import argparse
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import torch

from broadopt.runs.results import read_all

HEADS, METHODS, SEEDS = ("torchvision", "hidden4096"), ("sgd", "sam", "asam"), (1, 2, 3, 4, 5)
PRECISION, CHANCE = "fp32", 1.0
"""CHANCE in percent, of CIFAR-100's classes."""


def counts(
    results: Iterable[Mapping[str, Any]], *, budget: float, seeds: Collection[int]
) -> dict[tuple[str, str], tuple[int, int]]:
    """Of each head and method the runs above three times chance, and all that have come to their end; results of
    another budget, seed or precision, as a rehearsal leaves them in the same folder, are not counted.
    """
    above, ended = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for result in results:
        config = result["config"]
        asked = config["budget"] == budget and config["seed"] in seeds and config["precision"] == PRECISION
        if not asked or result["state"] not in ("finished", "failed"):
            continue
        place = (config["model"]["head"], result["method"])
        ended[place] += 1
        above[place] += result["state"] == "finished" and result["metrics"]["last"]["test_accuracy"] > 3 * CHANCE
    return {place: (above[place], ended[place]) for place in product(HEADS, METHODS)}


def command(arguments: argparse.Namespace) -> list[str]:
    """The sweep."""
    swept = {"seed": arguments.seeds, "model.head": HEADS, "method": METHODS}  # ended early, all have as many seeds
    return [
        *(sys.executable, "-m", "broadopt.run", "-m", "experiment=table3/vgg19_bn"),
        *(f"{key}={','.join(map(str, values))}" for key, values in swept.items()),
        *(f"budget={arguments.budget:g}", f"precision={PRECISION}", f"device={arguments.device}"),
        *(f"results_dir={arguments.results}", *arguments.overrides),
    ]


def exit_code(words: list[str]) -> int:
    """The exit code of a command, which is left the time to save its state: it has a terminal's signals itself, and
    those that are sent to this process are passed on.
    """
    with subprocess.Popen(words) as process:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, _: process.send_signal(number))
        code = process.wait()
    return code if code >= 0 else 128 - code


def main() -> None:
    """Train what is missing, then print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu to rehearse (cuda)")
    parser.add_argument("--results", type=Path, default=Path("results/vgg19_heads"), help="(results/vgg19_heads)")
    parser.add_argument("--budget", type=float, default=2.0, help="epochs (2)")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="(1 to 5)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="given to broadopt-run: plan=true, data_dir=")
    arguments = parser.parse_args()
    if arguments.device != "cpu" and "plan=true" not in arguments.overrides and not torch.cuda.is_available():
        print("vgg19_heads.py: this machine has no CUDA device; --device cpu rehearses", file=sys.stderr)
        sys.exit(2)
    code = exit_code(command(arguments))
    if "plan=true" in arguments.overrides or code in (2, 75):
        sys.exit(code)
    found = counts(read_all(arguments.results)[0], budget=arguments.budget, seeds=arguments.seeds)
    for (head, method), (above, ended) in found.items():
        print(f"{head:12} {method:5} {above} of {ended} runs above three times chance")
    sys.exit(code)


if __name__ == "__main__":
    main()
