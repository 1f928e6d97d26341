"""What broadopt's speed comes to, in things measured in turns: `python scripts/benchmark.py ratios`.

methods    the steps of each method over those of SGD, in one epoch of the loop, and the gradients that they take
ratios     the training loop against the bare step and the loops of the field, with PIL images and with images on the
           device; SAM against SGD
networks   images/s of every network's bare step by memory format and by torch.compile
pipelines  images/s of each augmentation alone, beside torchvision's on PIL images
landscape  points a second of a loss landscape, beside networks that are loaded and evaluated one by one
profile    where a step's time goes, by operator; with --picture drawn, with --trace as a Chrome trace
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import landscapes
import measure
import ratios
import torch
import usual_loop
from measure import BATCH, PROTOCOL, bare, interleaved, parts_of, random_dataset, ratio, seconds, steady
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torchvision import transforms

from broadopt.config.shipped import options
from broadopt.data.batches import Data
from broadopt.devices.rates import OPERATIONS
from broadopt.errors import InputError
from broadopt.training.parts import Parts

NETWORKS = sorted(options("model"))
Rows = Iterator[dict[str, Any]]


def of_ratios(arguments: argparse.Namespace) -> Rows:
    """The table that broadopt's speed is judged by."""
    options = {key: getattr(arguments, key) for key in ("device", "steps", "few", "rounds", "workers")}
    return ratios.rows(**options)


def of_methods(arguments: argparse.Namespace) -> Rows:
    """Each method's seconds a step over SGD's, in turns, of each of --networks; an epoch is all of the training."""
    dataset = random_dataset(arguments.batch * arguments.steps, 2)
    methods = {name: (f"method={name}",) for name in ("sgd", *(name for name in options("step") if name != "sgd"))}
    methods |= {
        "sam step.ascent=0.25": ("method=sam", "step.ascent=0.25"),
        "sam step.every=5": ("method=sam", "step.every=5"),
        "sam step.second_order=true": ("method=sam", "step.second_order=true"),
        "sgd optimizer=adamw": ("method=sgd", "optimizer=adamw"),
    }
    for network in arguments.networks:
        common = (f"model={network}", PROTOCOL, "budget=1", f"precision={arguments.precision}")
        # Plain steps throughout: not all methods are recorded on a GPU, and recorded steps are several times as fast.
        common = (*common, "graphs=false", f"device={arguments.device}", f"batch_size={arguments.batch}")
        made = {name: parts_of(*keys, *common, dataset=dataset) for name, keys in methods.items()}
        cases = {name: epoch(parts, arguments.steps) for name, parts in made.items()}
        measured = interleaved(cases, rounds=arguments.rounds)
        for name, parts in made.items():
            found = ratio(measured, name, "sgd")
            yield {"network": network, "method": name, "gradients a step": parts.size["passes"], **found}


def epoch(parts: Parts, steps: int) -> Callable[[], float]:
    """Seconds of the steps of an epoch; on a CPU those of this process alone, which others on the machine do not
    lengthen.
    """
    clock = time.perf_counter if parts.device.type == "cuda" else time.process_time
    make = steady(parts, steps)
    return lambda: seconds(make, parts.device, clock=clock)


def of_networks(arguments: argparse.Namespace) -> Rows:
    """Each network's rates in both memory formats and, with --compile, compiled in the one that auto takes."""
    variants = {"contiguous": "memory_format=contiguous", "channels_last": "memory_format=channels_last"}
    if arguments.compile:
        variants["compiled"] = "compile=true"
    for network in arguments.networks:
        common = (f"model={network}", f"batch_size={arguments.batch}", f"precision={arguments.precision}")
        dataset = random_dataset(arguments.batch, 2)
        cases = {
            name: bare(parts_of(*common, f"device={arguments.device}", variant, dataset=dataset), arguments.few)
            for name, variant in variants.items()
        }
        measured = interleaved(cases, rounds=arguments.rounds)
        images, gmacs = arguments.batch * arguments.few, measure.gmacs(f"model={network}")
        rates = {name: images / median(values[name] for values in measured) for name in cases}
        yield {
            "network": network,
            "batch": arguments.batch,
            "GMACs": gmacs,
            **{f"{name}, images/s": rate for name, rate in rates.items()},
            **{f"{name} / contiguous": ratio(measured, "contiguous", name)["ratio"] for name in list(cases)[1:]},
            "best, TFLOP/s": 1e-3 * OPERATIONS * gmacs * max(rates.values()),
        }


def of_pipelines(arguments: argparse.Namespace) -> Rows:
    """Rates of broadopt's augmentations, made batch by batch as the loop asks for them, and of PIL's in one process."""
    autoaugment, cutout, cutmix = "augmentation.autoaugment=true", "augmentation.cutout=16", "augmentation.cutmix=1"
    options = {
        "crop, flip": (),
        "crop, flip, Cutout": (cutout,),
        "crop, flip, CutMix": (cutmix,),
        "crop, flip, AutoAugment": (autoaugment,),
        "crop, flip, AutoAugment, Cutout, CutMix": (autoaugment, cutout, cutmix),
    }
    count = BATCH * arguments.steps
    dataset, device = random_dataset(count, 2), f"device={arguments.device}"
    pictures = usual_loop.pictures(count)

    def passed(data: Data, on: torch.device) -> Callable[[], float]:
        return lambda: seconds(lambda: [None for _ in data.train(0)], on)

    def of_pictures(*pipeline: Any) -> Callable[[], float]:
        transform = transforms.Compose([*usual_loop.CROP_AND_FLIP, *pipeline, *usual_loop.TO_TENSOR])
        return lambda: seconds(lambda: [transform(picture) for picture in pictures], torch.device("cpu"))

    made = {name: parts_of("model=resnet20", device, *keys, dataset=dataset) for name, keys in options.items()}
    cases = {name: passed(parts.data, parts.device) for name, parts in made.items()}
    cases["PIL: crop, flip"] = of_pictures()
    cases["PIL: crop, flip, AutoAugment"] = of_pictures(usual_loop.AUTOAUGMENT)
    measured = interleaved(cases, rounds=arguments.rounds)
    for name in cases:
        yield {"pipeline": name, "images/s": count / median(values[name] for values in measured)}


def of_landscape(arguments: argparse.Namespace) -> Rows:
    """Points a second of the first of --networks, on 128 images of each split times --few."""
    options = {key: getattr(arguments, key) for key in ("device", "rounds")}
    return landscapes.rows(network=arguments.networks[0], steps=arguments.few, **options)


def of_profile(arguments: argparse.Namespace) -> Rows:
    """The share of each operator's own time in broadopt's training steps, of the first of --networks."""
    network, dataset = arguments.networks[0], random_dataset(BATCH * arguments.few, 2)
    # Plain steps: a replayed graph has no operators, only kernels.
    common = ("method=sgd", "budget=1", "graphs=false", f"device={arguments.device}")
    parts = parts_of(f"model={network}", *common, dataset=dataset)
    make = steady(parts, arguments.few)
    cuda = parts.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as profiler:
        seconds(make, parts.device)
    if arguments.trace is not None:
        profiler.export_chrome_trace(str(arguments.trace))
    times = {
        event.key: event.self_device_time_total if cuda else event.self_cpu_time_total
        for event in profiler.key_averages()
        if event.device_type == DeviceType.CPU  # kernels stand there once more, beside the operators that started them
    }
    total = sum(times.values())
    shares = {name: times[name] / total for name in sorted(times, key=lambda name: times[name], reverse=True)[:12]}
    if arguments.picture is not None:
        draw(shares, arguments.picture, title=f"{network}, SGD: share of the time by operator")
    yield from ({"operator": name, "share": share} for name, share in shares.items())


def draw(shares: dict[str, float], path: Path, *, title: str) -> None:
    """Horizontal bars."""
    try:
        from matplotlib import pyplot
    except ModuleNotFoundError as error:
        raise InputError("--picture needs matplotlib: pip install '.[figures]' in the checkout") from error
    figure, axes = pyplot.subplots(figsize=(8, 0.35 * len(shares) + 1), layout="constrained")
    bars = axes.barh(list(shares), [100 * share for share in shares.values()])
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.invert_yaxis()
    axes.set(xlabel="% of the time", title=title)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


SECTIONS = {
    "methods": of_methods,
    "ratios": of_ratios,
    "networks": of_networks,
    "pipelines": of_pipelines,
    "landscape": of_landscape,
    "profile": of_profile,
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("section", choices=SECTIONS)
    made.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    made.add_argument("--rounds", type=int, default=5, help="turns, after one that is not counted (5)")
    made.add_argument("--steps", type=int, default=20, help="steps a turn where a step is short (20)")
    made.add_argument("--few", type=int, default=3, help="steps a turn where a step is long (3)")
    made.add_argument("--workers", type=int, default=2, help="ratios: processes of the DataLoader (2)")
    made.add_argument(
        "--networks", nargs="+", choices=NETWORKS, default=NETWORKS, metavar="NAME", help="all by default"
    )
    made.add_argument("--batch", type=int, default=BATCH, help="methods, networks: images a step (128)")
    made.add_argument("--precision", default="auto", help="methods, networks: auto, fp32, tf32 or bf16")
    made.add_argument(
        "--compile", action="store_true", help="networks: torch.compile as well, a minute or more a network"
    )
    made.add_argument("--json", type=Path, help="write the table as JSON, with the command and the machine's facts")
    made.add_argument("--trace", type=Path, help="profile: write a Chrome trace")
    made.add_argument("--picture", type=Path, help="profile: draw the table (needs matplotlib)")
    return made


def main() -> None:
    """Measure a section, row by row, then print its table."""
    arguments = parser().parse_args()
    began, rows = time.monotonic(), []
    try:
        for row in SECTIONS[arguments.section](arguments):
            print("  ".join(f"{key}: {measure.shown(value)}" for key, value in row.items()), flush=True)
            rows.append(row)
            asked = {} if arguments.precision == "auto" else {"precision": arguments.precision}
            measure.write(rows, arguments.json, device=arguments.device, **asked)
    except InputError as error:
        measure.fail(error)
    print()
    measure.show(rows)
    print(f"{measure.HOW} {time.monotonic() - began:.0f} s with {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
