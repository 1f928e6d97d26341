"""The lines of documents that quote a GPU's measurements, with the figures that the committed files give."""

import re
from collections.abc import Iterator
from itertools import product
from typing import Any

from documents import text
from quoted import Line, ascents, gain, options, passed, rated, ratio, results, rows, speed, together

from broadopt.analysis.tables import published
from broadopt.config.shipped import paper_dir

HEADS = {"torchvision": "torchvision's", "hidden4096": "512-4096-4096"}


def heads(head: str, method: str = "") -> list[dict[str, Any]]:
    """The runs of VGG19-BN with that head."""
    found = [one for one in results("vgg19_heads") if one["config"]["model"]["head"] == head]
    return [one for one in found if method in ("", one["method"])]


def accuracies(found: list[dict[str, Any]]) -> list[float]:
    """The last of the runs that have finished, by seed, above three times chance."""
    ends = [one for one in sorted(found, key=lambda one: one["seed"]) if one["state"] == "finished"]
    return [one["metrics"]["last"]["test_accuracy"] for one in ends if one["metrics"]["last"]["test_accuracy"] > 3]


def of_heads() -> Iterator[Line]:
    """What is said of the heads of VGG19-BN."""
    everything, (bad, good) = results("vgg19_heads"), (heads(head) for head in HEADS)
    ends = accuracies(good)
    spread = f"{min(ends):.1f} to {max(ends):.1f} %"
    seeds = {len(heads("torchvision", method)) for method in ("sgd", "sam", "asam")}
    assert {one["budget"] for one in everything} == {2.0}
    assert all(" not finite in epoch 1 " in one["failure"]["reason"] for one in bad)
    yield Line(
        "docs/log.md",
        "| 2026-11-27 | which head does VGG19-BN have?",
        (
            f"after {len(everything)} of 30 runs",
            f"torchvision's: {len(accuracies(bad))} of {len(bad)} runs",
            f"ASAM, {max(seeds)} seeds each",
            f"512-4096-4096: {len(ends)} of {len(good)} end at {spread}",
            "for 2 epochs",
        ),
        ("chance being 1 %", "counts 13 of 15"),
    )
    for head, words in HEADS.items():
        size = heads(head)[0]["cost"]["parameters"] / 1e6
        by_method = [(accuracies(heads(head, method)), heads(head, method)) for method in ("sgd", "sam", "asam")]
        cells = " | ".join(f"{len(above)} of {len(found)}" for above, found in by_method)
        yield Line("docs/rows.md", f"| {words}, ", (f"| {words}, {size:.0f} M parameters | {cells} |",))
    chance = 0.2 ** len(bad)
    yield Line(
        "docs/rows.md",
        "are above three times chance",
        (f"({spread})", f"a probability of {chance:.0e}".replace("e-0", "e-"), "head 512-4096-4096"),
        ("if 4 of 5 runs",),
    )
    for head, method in product(HEADS, ("sgd", "sam", "asam")):
        found = sorted(heads(head, method), key=lambda one: one["seed"])
        cells = [head, method.upper(), ", ".join(str(one["seed"]) for one in found)]
        ends = accuracies(found)
        cells += (
            ["finished", ", ".join(f"{one:.2f}" for one in ends)] if ends else ["weights not finite in epoch 1", ""]
        )
        line = re.sub(" +", " ", f"| {' | '.join(cells)} |")
        yield Line("results/vgg19_heads/README.md", f"| {head} | {method.upper()} |", (line,))


def of_the_loop() -> Iterator[Line]:
    """What is said of the loop beside others."""
    usual, given = "ratios_h100", options("ratios_h100")
    beside: dict[tuple[str, str], list[str]] = {}
    for loop, method, network in product(
        ("DataLoader + PIL", "fp32 loop on the device"), ("sgd", "asam"), ("resnet20", "vgg16")
    ):
        found = ratio(usual, f"images/s, loop over {loop}, {method} ({network})")
        beside.setdefault((loop, method), []).append(f"{found:.1f}")
    words = [" and ".join(found) for found in beside.values()]
    hoped = {row["to reach"].removeprefix(">= ") for row in rows(usual) if "DataLoader" in row["what"]}
    reached = {row["to reach"].removeprefix(">= "): row["reached"] for row in rows(usual)}
    assert (hoped, reached) == ({"10"}, {"10": "no", "3": "yes"})
    yield Line(
        "docs/log.md",
        "| 2026-11-27 | the loop beside the field's,",
        (
            f"{given['steps']} steps a turn, {given['rounds']} turns",
            f"a DataLoader of {given['workers']} processes",
            f"SGD {words[0]}, ASAM {words[1]} times its images/s, hoped for 10",
            f"SGD {words[2]}, ASAM {words[3]}, hoped for 3",
            "3 is reached, 10 is *not*",
        ),
        ("batch 128", "16 slow virtual cores"),
    )
    steps, networks = "ratios_h100_steps", ("resnet20", "wrn28_2", "vgg16")
    bare = [ratio(steps, f"images/s, loop over bare step ({network})") for network in networks]
    sam, asam = (
        [ratio(steps, f"seconds, {method} step over sgd step ({network})") for network in networks]
        for method in ("sam", "asam")
    )
    ema, swag, swa = (
        ratio(steps, f"seconds, {what} over SGD epoch")
        for what in ("EMA epoch", "SWAG epoch of 50,000 images", "SWA epoch of 50,000 images")
    )
    yield Line(
        "docs/log.md",
        "| 2026-11-27 | the loop beside the bare step,",
        (
            "{:.2f}, {:.2f} and {:.2f} of its images/s, hoped for 0.97".format(*bare),
            f"SAM's step {min(sam):.2f} to {max(sam):.2f}, ASAM's {min(asam):.2f} to {max(asam):.2f} times",
            f"an EMA epoch {ema:.3f}, an SWAG epoch {swag:.3f}, an SWA epoch {swa:.3f} SGD epochs",
            f"a BN pass {ratio(steps, 'seconds, BN re-estimation over training epoch'):.1f} recorded epochs",
            f"a step takes {128e6 / rated('gpu_recorded', 'wrn28_10')['sgd, images/s']:,.0f})".replace(",601", ",600"),
        ),
        ("some 120 µs a step", "the 120 µs are below 3 %"),
    )
    yield Line(
        "docs/log.md",
        "| 2026-11-27 | can these 120 µs be fewer?",
        ("in place of {:.3f}, {:.3f} and {:.3f} (".format(*bare),),
        ("these 120 µs", "some 20 small kernels instead of 36", "0.946, 0.962 and 0.934", "512 bytes"),
    )


def of_the_card() -> Iterator[Line]:
    """What is said of the GPU checks."""
    several = [f"{round(together('gpu_together', runs), -1):,.0f}" for runs in (1, 2, 3)]
    yield Line(
        "docs/log.md",
        "| 2026-11-27 | several ResNet-20 on one card,",
        ("one {}, two {}, three {} images/s in all".format(*several),),
    )
    foretold = {
        "ResNet-56 {} (foretold 24,000)": "resnet56",
        "WRN-28-2 {} (43,000)": "wrn28_2",
        "Shake-Shake {} (14,000)": "shakeshake26_2x64d",
        "ResNeXt-29 {} (28,000:": "resnext29_32x4d",
        "PyramidNet-272 {} (3,800:": "pyramidnet272",
    }
    hours = float(re.findall(r"seeds 1-5 .*: ([\d.]+) device hours needed", text("docs/rows.md"))[0])
    yield Line(
        "docs/log.md",
        "| 2026-11-27 | rates of seven more networks",
        (*(words.format(speed("gpu_rates", name)) for words, name in foretold.items()), f"5 seeds takes {hours:.0f} h"),
        ("not 127",),
    )
    gains = [f"{gain('gpu_recorded', name):.1f}" for name in ("vgg16", "resnet20", "wrn28_10", "preresnet164")]
    wrn, kinds = rated("gpu_recorded", "wrn28_10"), [row["check"] for row in rows("gpu_recorded") if "check" in row]
    cases = [check for check in kinds if check.endswith("recorded steps, differing values")]
    (sam,), (asam,) = (ascents("gpu_vgg16", method) for method in ("sam", "asam"))
    share = wrn["TFLOP/s"] / wrn["matmul TFLOP/s"]
    yield Line(
        "docs/log.md",
        "| 2026-11-27 | what failed in the first GPU check, again",
        (
            f"{passed('gpu_recorded')} checks, none failed",
            f"bit-equal in all {len(cases)} cases",
            "VGG-16 {}, ResNet-20 {}, WRN-28-10 {}, PreResNet-164 {}".format(*gains),
            f"VGG19-BN {gain('gpu_recorded', 'vgg19_bn'):.1f} times the images/s",
            f"{wrn['TFLOP/s']:.0f} TFLOP/s, {100 * share:.0f} % of the {wrn['matmul TFLOP/s']:.0f} of",
            f"no step of {sum('waits for the device in' in check for check in kinds) - 1} methods and of EMA waits",
            f"SAM {sam:.2f}, ASAM {asam:.2f} times SGD's",
        ),
        ("77 s", "336", "of 20 steps, 10 % below", "times 60"),
    )
    assert passed("gpu_recorded", "no") == 0
    training = [row for row in rows("gpu") if row["part"] == "training" and "check" in row]
    gains = [f"{gain('gpu', name):.1f}" for name in ("densenet121", "preresnet110", "preresnet164")]
    resumed, recorded = (
        [row for row in rows("gpu") if row.get("check", "").endswith(f"{words}, differing values")]
        for words in ("middle of an epoch", "recorded steps")
    )
    sams, asams = ascents("gpu", "sam"), ascents("gpu", "asam")
    assert len(training) == 7
    yield Line(
        "docs/log.md",
        "| 2026-11-27 | the first GPU:",
        (
            f"{passed('gpu')} checks passed, {passed('gpu', 'no')} failed",
            f"at most {max(row['found'] for row in training):.1e} apart",
            f"bit-equal in all {len(recorded)} cases each",
            "{}, {} and {} times the images/s".format(*gains),
            f"SAM takes {min(sams):.2f} to {max(sams):.2f} and ASAM {min(asams):.2f} to {max(asams):.2f} times",
        ),
        ("16 slow virtual cores", "in 235 s"),
    )
    assert len(resumed) == len(recorded)
    kinds = [row["check"].split(":")[0] for row in rows("gpu") if row["part"] == "gradients" and row["passed"] == "no"]
    found = {row["check"]: row["found"] for row in rows("gpu") if row["part"] == "gradients"}
    off, logits = ([found[f"{kind}: {what} against the CPU's"] for kind in kinds] for what in ("gradient", "logits"))
    assert len(kinds) == 10
    yield Line(
        "docs/log.md",
        "| 2026-11-27 | fp32 gradients of ten networks",
        (f"by {min(off):.3f} to {max(off):.3f} of", f"agreed to {max(logits):.0e}".replace("e-0", "e-")),
        ("0.0066", "0.0056", "0.0052", "3.5e-6, 2.0e-5 and 4.3e-6", "nearly 0"),
    )


def of_the_first_row() -> Iterator[Line]:
    """What is said of the row that is filled."""
    by_method = {one["method"]: one["metrics"] for one in results("table1")}
    sgd, fge = by_method["sgd"]["last"]["test_accuracy"], by_method["fge"]["collected"]["1"]["test_accuracy"]
    swa = [by_method["swa"]["collected"][key]["test_accuracy"] for key in ("1", "1.25", "1.5")]
    (paper,) = [
        row.cells
        for row in published.load("table1", folder=paper_dir()).rows
        if row.experiment == "table1/vgg16_cifar10"
    ]
    values = [paper[name].mean for name in ("sgd", "fge_1", "swa_1", "swa_1.25", "swa_1.5")]
    below = [found - value for found, value in zip([sgd, fge, *swa], values, strict=True)]
    (two, one) = (together("gpu_vgg16", runs) for runs in (2, 1))
    yield Line(
        "docs/log.md",
        "| 2026-11-27 | the first row:",
        (
            "{:.2f}, {:.2f}, {:.2f} / {:.2f} / {:.2f}".format(sgd, fge, *swa),
            f"{-min(below):.2f} below to {max(below):.2f} above the paper",
            "SGD, FGE (200 epochs), SWA (300), seed 1",
        ),
        ("16 slow virtual cores", "634 s in all", "69,600 (SWA), 69,300 (SGD) and 66,700"),
    )
    yield Line(
        "docs/log.md",
        "| 2026-11-27 | do several runs on one card gain,",
        (f"two {two / one:.2f} of one",),
        ("63,200 and three 63,000", "one 69,500", "15,200 alone, about 41,000"),
    )
    page = "results/table1/README.md"
    members = by_method["fge"]["collected"]["1"]["members"]
    yield Line(page, "| SGD, last weights", (f"| {sgd:.2f} |",))
    yield Line(page, "| FGE, ", (f"{members:.0f} members | {fge:.2f} |",))
    yield Line(page, "| SWA after 1,", ("1, 1.25, 1.5 budgets | {:.2f}, {:.2f}, {:.2f} |".format(*swa),))
