"""The recipes of all rows, and what identifies a run.

The oracles: the recipes typed a second time, from the papers and the authors' code; hashlib on JSON written out by
hand.
"""

import copy
import hashlib
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from broadopt.config.compose import compose, recipe_of, run_config
from broadopt.config.identity import AS_WITHOUT, SEMANTICS, identity_of
from broadopt.config.instantiate import instantiated
from broadopt.config.run_config import EXECUTION, Recipe
from broadopt.config.shipped import config_dir
from broadopt.errors import InputError
from broadopt.methods.steps.sharp_steps import SharpSteps

# The recipes, typed from the papers and the authors' repositories and not from the configuration: the one is to be
# held against the other.

SWA_VGG = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
SWA_OTHER = ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010])
# The codes of PyramidNet and Shake-Shake give 255ths; the protocol keeps six decimals of them.
IN_255THS = tuple([round(value / 255, 6) for value in triple] for triple in ((125.3, 123.0, 113.9), (63.0, 62.1, 66.7)))
ASAM_CIFAR10 = SWA_OTHER
ASAM_CIFAR100 = ([0.5071, 0.4867, 0.4408], [0.2675, 0.2565, 0.2761])

VGG16 = {"name": "vgg16", "_target_": "broadopt.models.vgg.VGG", "depth": 16, "batch_norm": False, "head": "hidden512"}
RESNET164 = {"name": "preresnet164", "_target_": "broadopt.models.preresnet.PreResNet", "depth": 164}
PYRAMIDNET272 = {
    "name": "pyramidnet272",
    "_target_": "broadopt.models.pyramidnet.PyramidNet",
    "depth": 272,
    "alpha": 200,
    "rounding": "round",
    "shakedrop": False,
}
SHAKEDROP = {"name": "pyramidnet272_shakedrop", "shakedrop": True, "final_drop_probability": 0.5, "gate": "batch"}
SHAKESHAKE = {
    "name": "shakeshake26_2x64d",
    "_target_": "broadopt.models.shakeshake.ShakeShake",
    "depth": 26,
    "width": 64,
}
DENSENET121 = {"name": "densenet121", "_target_": "broadopt.models.densenet.densenet121", "stem": "imagenet"}
VGG19_BN = {"name": "vgg19_bn", "_target_": "broadopt.models.vgg.vgg19_bn", "head": "hidden4096"}
RESNEXT29 = {
    "name": "resnext29_32x4d",
    "_target_": "broadopt.models.resnext.ResNeXt",
    "depth": 29,
    "groups": 32,
    "group_width": 4,
}


def resnet(depth: int) -> dict[str, Any]:
    return {"name": f"resnet{depth}", "_target_": "broadopt.models.resnet.ResNet", "depth": depth}


def wide(depth: int, widen: int, variant: str) -> dict[str, Any]:
    """BN's gamma starts at 1 in homura, which is not recorded, and is uniform in the SWA paper's torch of 2018."""
    return {
        "name": f"wrn{depth}_{widen}",
        "_target_": "broadopt.models.wrn.WideResNet",
        "depth": depth,
        "widen_factor": widen,
        "variant": variant,
        **({"gamma": "uniform"} if variant == "swa2018" else {}),
    }


VGG_ROW = {
    "model": VGG16,
    "normalisation": SWA_VGG,
    "budget": 200,
    "lr": 0.05,
    "nesterov": False,
    "weight_decay": 5e-4,
    "schedule": ("linear", False),
    "swa": {"start": 0.805, "lr": 0.01, "decay_to": 0.01, "tail": "constant", "low": None, "cycle": None},
    "swa_budgets": [1, 1.25, 1.5],
    "fge": {"start": 156, "cycle": 2, "members": 22, "high": 1e-2, "low": 5e-4},
}
WRN_ROW = VGG_ROW | {
    "model": wide(28, 10, "swa2018"),
    "normalisation": SWA_OTHER,
    "lr": 0.1,
    "swa": VGG_ROW["swa"] | {"lr": 0.05, "decay_to": 0.05},
    "fge": {"start": 152, "cycle": 4, "members": 12, "high": 5e-2, "low": 5e-4},
}
RESNET_ROW = WRN_ROW | {
    "model": RESNET164,
    "budget": 150,
    "weight_decay": 3e-4,
    "fge": {"start": 126, "cycle": 4, "members": 6, "high": 5e-2, "low": 5e-4},
}
CYCLES = {"start": 1.0, "lr": 0.05, "decay_to": None, "tail": "sawtooth", "low": 0.001, "cycle": 3 / 300}
REPLAY = {"start": 1.0, "lr": None, "decay_to": None, "tail": "replay", "low": None, "cycle": 100 / 1800}

TABLE1 = {
    "vgg16_cifar100": VGG_ROW,
    "vgg16_cifar10": VGG_ROW,
    "preresnet164_cifar100": RESNET_ROW | {"swa": WRN_ROW["swa"] | {"start": 0.84}},
    "preresnet164_cifar10": RESNET_ROW | {"swa": WRN_ROW["swa"] | {"start": 0.84, "lr": 0.01, "decay_to": 0.01}},
    "wrn28_10_cifar100": WRN_ROW,
    "wrn28_10_cifar10": WRN_ROW,
    "pyramidnet272_cifar100": {
        "model": PYRAMIDNET272,
        "normalisation": IN_255THS,
        "budget": 300,
        "lr": 0.5,
        "nesterov": True,
        "weight_decay": 1e-4,
        "schedule": ("steps", False),
        "swa": CYCLES,
        "swa_budgets": [1.25, 1.5],
    },
    "shakeshake26_2x64d_cifar10": {
        "model": SHAKESHAKE,
        "normalisation": IN_255THS,
        "border": "mean",  # padded after the normalisation
        "budget": 1800,
        "lr": 0.2,
        "nesterov": True,
        "weight_decay": 1e-4,
        "schedule": ("cosine", True),
        "count_from": 1,  # iterations
        "swa": REPLAY,
        "replay_from": 1600 / 1800,
        "swa_budgets": [1.25, 1.5],
    },
}

TABLE3 = {  # network, budget of SGD, of SAM and ASAM, lr; PyramidNet's batch, m and rho are below
    "densenet121": (DENSENET121, 400, 200, 0.1),
    "resnet20": (resnet(20), 400, 200, 0.1),
    "resnet56": (resnet(56), 400, 200, 0.1),
    "vgg19_bn": (VGG19_BN, 400, 200, 0.1),
    "resnext29_32x4d": (RESNEXT29, 400, 200, 0.1),
    "wrn28_2": (wide(28, 2, "homura"), 400, 200, 0.1),
    "wrn28_10": (wide(28, 10, "homura"), 400, 200, 0.1),
    "pyramidnet272": (PYRAMIDNET272 | SHAKEDROP, 1800, 900, 0.05),
}

# The other readings that the protocols name, each a few words of a command line.
FGE_README = ["collect.start=0.8", "collect.cycle=0.01", "schedule.low=0.01"]
SAWTOOTH = ["schedule.tail=sawtooth", "schedule.high=0.05", "schedule.low=0.001", "collect.cycle=0.02"]
SHAKESHAKE_IMAGES = [
    "augmentation.border=black",
    "augmentation.mean=[0.4914,0.4822,0.4465]",
    "augmentation.std=[0.2023,0.1994,0.2010]",
    "schedule.count_from=0",
]

PLAIN_STEP = {"_target_": "broadopt.methods.step.Plain"}
NO_COLLECTOR = {"_target_": "broadopt.methods.collect.Nothing"}


def common(*, dataset: str, model: dict, normalisation: tuple, protocol: str, method: str) -> dict[str, Any]:
    """What all rows of both tables share, and what a row says of itself."""
    return {
        "seed": 1,
        "precision": "auto",
        "evaluate_every": 1,
        "batch_size": 128,
        "momentum": 0.9,
        "augmentation": {
            "_target_": "broadopt.augment.Augmentation",
            "pad": 4,
            "flip": True,
            "autoaugment": False,
            "cutout": 0,
            "cutmix": 0.0,
            "mean": normalisation[0],
            "std": normalisation[1],
        },
        "dataset": {
            "_target_": "broadopt.datasets.cifar",
            "name": dataset,
            "label_noise": 0.0,
            "validation": 0,
            "fingerprint": None,
        },
        "model": model,
        "protocol": protocol,
        "method": method,
    }


def schedule(
    *, lr: float, budget: float, shape: str, per_step: bool, count_from: int = 0, **tail: Any
) -> dict[str, Any]:
    """Epochs, or steps, that are counted from 0 are not recorded as such."""
    head = {"_target_": "broadopt.schedule.Schedule", "lr": lr, "budget": budget, "shape": shape, "per_step": per_step}
    return head | ({"count_from": 1} if count_from else {}) | tail


def fge_start_and_cycle(row: dict[str, Any]) -> dict[str, float]:
    """In budgets; the cycles end with the budget."""
    epochs = row["fge"]
    assert epochs["start"] + epochs["members"] * epochs["cycle"] == row["budget"]
    return {"start": epochs["start"] / row["budget"], "cycle": epochs["cycle"] / row["budget"]}


def of_table1(row: str, method: str) -> dict[str, Any]:
    values = TABLE1[row]
    swa, (shape, per_step) = values["swa"], values["schedule"]
    count_from = values.get("count_from", 0)
    tails = {
        "sgd": {"count_from": count_from},
        "swa": {
            "count_from": count_from,
            "decay_over": swa["start"],
            "decay_to": swa["decay_to"],
            "tail": swa["tail"],
            "start": swa["start"],
            "high": swa["lr"],
            "low": swa["low"],
            "cycle": swa["cycle"],
            **({"replay_from": values["replay_from"]} if "replay_from" in values else {}),
        },
    }
    collectors = {
        "sgd": NO_COLLECTOR,
        "swa": {
            "_target_": "broadopt.methods.swa.WeightAverage",
            "start": swa["start"],
            "cycle": swa["cycle"],
            "budgets": values["swa_budgets"],
        },
    }
    if method == "fge":
        cycles = fge_start_and_cycle(values)
        bounds = {"high": values["fge"]["high"], "low": values["fge"]["low"]}
        tails["fge"] = {"count_from": 1, "tail": "triangle", **cycles, **bounds}
        collectors["fge"] = {"_target_": "broadopt.methods.fge.SnapshotEnsemble", **cycles}
    recipe = common(
        dataset=row.rpartition("_")[2],
        model=values["model"],
        normalisation=values["normalisation"],
        protocol="swa2018",
        method=method,
    ) | {
        "budget": values["budget"],
        "lr": values["lr"],
        "nesterov": values["nesterov"],
        "weight_decay": values["weight_decay"],
        "label_smoothing": 0.0,
        "schedule": schedule(lr=values["lr"], budget=values["budget"], shape=shape, per_step=per_step, **tails[method]),
        "step": PLAIN_STEP,
        "collect": collectors[method],
    }
    if "border" in values:
        recipe["augmentation"] |= {"border": values["border"]}
    return recipe


def ascent(method: str, dataset: str) -> dict[str, Any]:
    """The steps of ASAM's Table 3 (CIFAR-100) and of its sister for CIFAR-10."""
    passes = {"p": 2, "bn": "both", "noise": "fresh"}
    hundred = dataset == "cifar100"
    return {
        "sgd": PLAIN_STEP,
        "sam": {"_target_": "broadopt.methods.sam.sam", "rho": 0.1 if hundred else 0.05, **passes},
        "asam": {
            "_target_": "broadopt.methods.asam.asam",
            "rho": 1.0 if hundred else 0.5,
            "eta": 0.01,
            "normalisation": "element",
            **passes,
        },
    }[method]


def of_table3(row: str, method: str) -> dict[str, Any]:
    model, sgd_budget, sam_budget, lr = TABLE3[row]
    budget = sgd_budget if method == "sgd" else sam_budget
    values = common(
        dataset="cifar100", model=model, normalisation=ASAM_CIFAR100, protocol="asam2021", method=method
    ) | {
        "budget": budget,
        "lr": lr,
        "nesterov": False,
        "weight_decay": 5e-4,
        "label_smoothing": 0.1,
        "schedule": schedule(lr=lr, budget=budget, shape="cosine", per_step=False),
        "step": ascent(method, "cifar100"),
        "collect": NO_COLLECTOR,
    }
    if row == "pyramidnet272":
        values["augmentation"] |= {"autoaugment": True, "cutmix": 0.5}
        values["batch_size"] = 256
        if method != "sgd":
            values["step"] |= {"chunk": 32, "rho": 0.05 if method == "sam" else 1.0}
    return values


def cells() -> list[tuple[str, str]]:
    first = [
        (row, method) for row in TABLE1 for method in ("sgd", "swa", "fge") if method != "fge" or "fge" in TABLE1[row]
    ]
    return [(f"table1/{row}", method) for row, method in first] + [
        (f"table3/{row}", method) for row in TABLE3 for method in ("sgd", "sam", "asam")
    ]


@pytest.mark.parametrize(("row", "method"), cells())
def test_row_resolves_to_the_published_recipe(row: str, method: str) -> None:
    table, name = row.split("/")
    expected = of_table1(name, method) if table == "table1" else of_table3(name, method)
    actual = recipe_of([f"experiment={row}", f"method={method}"])
    assert actual == expected
    assert identity_of(actual) == identity_of(expected)  # as above, and true is not 1


FIRST_IDENTITIES = {
    ("table1/vgg16_cifar100", "sgd"): "c6b82ab2",
    ("table1/vgg16_cifar100", "swa"): "5a1391e4",
    ("table1/vgg16_cifar10", "sgd"): "959b322f",
    ("table1/vgg16_cifar10", "swa"): "81063905",
    ("table1/preresnet164_cifar100", "sgd"): "9483719f",
    ("table1/preresnet164_cifar100", "swa"): "8ca3c4c1",
    ("table1/preresnet164_cifar10", "sgd"): "66e9b17a",
    ("table1/preresnet164_cifar10", "swa"): "9275b415",
    ("table1/pyramidnet272_cifar100", "sgd"): "4fb37795",
    ("table3/densenet121", "sgd"): "e9242a27",
    ("table3/densenet121", "sam"): "205badb4",
    ("table3/densenet121", "asam"): "7d9e9f36",
    ("table3/resnet20", "sgd"): "542df6af",
    ("table3/resnet20", "sam"): "663dce04",
    ("table3/resnet20", "asam"): "3d6ad328",
    ("table3/resnet56", "sgd"): "e92b46b0",
    ("table3/resnet56", "sam"): "2417aa4f",
    ("table3/resnet56", "asam"): "2f60b345",
    ("table3/vgg19_bn", "sgd"): "3f67c225",
    ("table3/vgg19_bn", "sam"): "5e38a2c9",
    ("table3/vgg19_bn", "asam"): "3e99e0ac",
    ("table3/resnext29_32x4d", "sgd"): "5b4b9569",
    ("table3/resnext29_32x4d", "sam"): "9753e7c3",
    ("table3/resnext29_32x4d", "asam"): "20e59108",
    ("table3/wrn28_2", "sgd"): "440fc492",
    ("table3/wrn28_2", "sam"): "ad92e02b",
    ("table3/wrn28_2", "asam"): "09c959b2",
    ("table3/wrn28_10", "sgd"): "94f589a1",
    ("table3/wrn28_10", "sam"): "46b653ed",
    ("table3/wrn28_10", "asam"): "90893c37",
    ("quickstart", "sgd"): "ad7b5e09",
    ("quickstart", "swa"): "a2114e47",
    ("quickstart", "sam"): "2c4afbcb",
    ("quickstart", "asam"): "69077ad8",
}
"""The oracle: identities as they were computed before any key of AS_WITHOUT but the step's existed."""


@pytest.mark.parametrize(("experiment", "method"), FIRST_IDENTITIES)
def test_recipes_that_never_changed_have_kept_their_identity(experiment: str, method: str) -> None:
    identity = identity_of(recipe_of([f"experiment={experiment}", f"method={method}"]))
    assert identity[:8] == FIRST_IDENTITIES[experiment, method]


@pytest.mark.parametrize(
    ("row", "method", "first", "overrides"),
    [
        ("table1/wrn28_10_cifar100", "sgd", "3643cc0c", ["model.gamma=ones"]),
        ("table1/wrn28_10_cifar100", "swa", "6cec23f8", ["model.gamma=ones"]),
        ("table1/vgg16_cifar100", "fge", "ea78c5a8", [*FGE_README, "schedule.count_from=0"]),
        ("table1/preresnet164_cifar10", "fge", "0a84bf0a", [*FGE_README, "schedule.count_from=0"]),
        ("table1/wrn28_10_cifar10", "fge", "8d0e8d32", [*FGE_README, "schedule.count_from=0", "model.gamma=ones"]),
        ("table1/pyramidnet272_cifar100", "swa", "573661d5", ["collect.cycle=0.02"]),
        ("table1/shakeshake26_2x64d_cifar10", "sgd", "182539cd", SHAKESHAKE_IMAGES),
        (
            "table1/shakeshake26_2x64d_cifar10",
            "swa",
            "ddcc9979",
            [*SHAKESHAKE_IMAGES, *SAWTOOTH, "schedule.replay_from=null"],
        ),
        ("table3/pyramidnet272", "sgd", "29c1088a", ["batch_size=128"]),
        ("table3/pyramidnet272", "sam", "70eae53d", ["batch_size=128", "step.chunk=null", "step.rho=0.1"]),
        ("table3/pyramidnet272", "asam", "b89b4f8b", ["batch_size=128", "step.chunk=null"]),
    ],
)
def test_another_reading_of_a_row_is_one_command_line_and_has_kept_its_identity(
    row: str, method: str, first: str, overrides: list[str]
) -> None:
    assert identity_of(recipe_of([f"experiment={row}", f"method={method}", *overrides]))[:8] == first


def test_swas_lr_of_wrn_as_the_appendix_may_have_it_is_one_command_line() -> None:
    row = ["experiment=table1/wrn28_10_cifar100", "method=swa"]
    code = recipe_of(row)
    appendix = recipe_of([*row, "schedule.decay_to=0.01", "schedule.high=0.01"])
    assert (code["schedule"]["decay_to"], code["schedule"]["high"]) == (0.05, 0.05)
    assert appendix == code | {"schedule": code["schedule"] | {"decay_to": 0.01, "high": 0.01}}


LATER_KEYS = {
    "step.perturbation": (["method=sam"], "share"),
    "step.chunk": (["method=sam"], 32),
    "step.from": (["method=sam"], 0.43),
    "step.until": (["method=asam"], 0.5),
    "step.every": (["method=sam"], 5),
    "step.ascent": (["method=asam"], 0.25),
    "step.layers": (["method=sam"], "normalisation"),
    "step.second_order": (["method=sam"], True),
    "schedule.count_from": (["method=sgd"], 1),
    "schedule.replay_from": (["method=swa", "schedule.tail=replay"], 0.5),
    "schedule.warmup": (["method=swa"], 0.025),
    "augmentation.border": (["method=sgd"], "mean"),
    "model.gamma": (["method=sam", "model=wrn28_2"], "uniform"),
    "dataset.noise": (["dataset=cifar10", "dataset.label_noise=0.2"], "asymmetric"),
    "dataset.coarse": (["dataset=cifar100"], True),
}


@pytest.mark.parametrize("key", [key for key in AS_WITHOUT if "." in key])
def test_a_key_that_came_later_is_recorded_only_where_it_changes_the_run(key: str) -> None:
    overrides, value = LATER_KEYS[key]
    group, leaf = key.split(".")
    plainly = recipe_of(overrides)
    assert leaf not in plainly[group]
    default = "null" if AS_WITHOUT[key] is None else AS_WITHOUT[key]
    assert recipe_of([*overrides, f"++{key}={default}"]) == plainly
    assert recipe_of([*overrides, f"++{key}={value}"]) == plainly | {group: plainly[group] | {leaf: value}}


def test_a_looksam_of_every_step_is_another_run_and_is_built_from_its_record() -> None:
    often, seldom = (recipe_of(["method=looksam", f"step.every={every}"]) for every in (1, 5))
    assert "every" not in often["step"]
    assert seldom["step"]["every"] == 5
    assert recipe_of(["method=looksam"]) == seldom
    assert identity_of(often) != identity_of(seldom)
    model = nn.Linear(2, 2)
    for record, every in ((often, 1), (seldom, 5)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        step = instantiated("step", Recipe.of_record(record).step, model, optimizer)
        assert step.ascents == SharpSteps(every=every)


def test_the_optimizer_of_the_papers_is_not_recorded_and_another_is() -> None:
    plainly = recipe_of(["method=sam"])
    assert not {"optimizer", "clip"} & plainly.keys()
    assert recipe_of(["method=sam", "optimizer=sgd", "clip=null"]) == plainly
    assert recipe_of(["method=sam", "clip=1"]) == plainly | {"clip": 1.0}
    other = recipe_of(["method=sam", "optimizer=adamw", "weight_decay=0.05"])
    node = {"_target_": "broadopt.methods.steps.optimizers.adamw", "betas": [0.9, 0.999], "eps": 1e-8}
    given = {"lr": 1e-3, "momentum": 0.0, "nesterov": False, "weight_decay": 0.05}
    assert other == plainly | given | {"optimizer": node, "schedule": plainly["schedule"] | {"lr": 1e-3}}
    assert Recipe.of_record(other).record() == other
    assert Recipe.of_record(plainly).record() == plainly


def test_there_is_a_row_for_every_experiment_of_a_table() -> None:
    experiments = {
        str(path.relative_to(config_dir() / "experiment").with_suffix(""))
        for path in (config_dir() / "experiment").glob("table*/*.yaml")
    }
    assert experiments == {row for row, _ in cells()}
    assert len(experiments) == 16


@pytest.mark.parametrize(("dataset", "rho"), [("cifar10", 0.5), ("cifar100", 1.0)])
def test_the_model_and_the_data_alone_give_the_whole_asam_recipe(dataset: str, rho: float) -> None:
    values = recipe_of(["method=asam", "model=wrn28_10", f"dataset={dataset}"])
    normalisation = ASAM_CIFAR10 if dataset == "cifar10" else ASAM_CIFAR100
    assert values["batch_size"] == 128
    assert (values["lr"], values["schedule"]["shape"], values["schedule"]["lr"]) == (0.1, "cosine", 0.1)
    assert values["label_smoothing"] == 0.1
    assert (values["step"]["rho"], values["step"]["eta"]) == (rho, 0.01)
    assert values == of_table3("wrn28_10", "asam") | {
        key: value
        for key, value in common(
            dataset=dataset,
            model=wide(28, 10, "homura"),
            normalisation=normalisation,
            protocol="asam2021",
            method="asam",
        ).items()
        if key in ("dataset", "augmentation")
    } | {"step": ascent("asam", dataset)}


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_sam_takes_the_radius_of_the_data_set(dataset: str) -> None:
    assert recipe_of(["method=sam", "model=wrn28_10", f"dataset={dataset}"])["step"] == ascent("sam", dataset)


def test_order_of_experiment_and_method_on_the_command_line_does_not_matter() -> None:
    for row, method in (("table3/resnet20", "sgd"), ("table1/vgg16_cifar10", "sam")):
        overrides = [f"experiment={row}", f"method={method}"]
        assert recipe_of(overrides) == recipe_of(overrides[::-1])
    assert recipe_of(overrides)["protocol"] == "swa2018"


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["method=sgd"], "sgd"),
        (["method=sgd", "collect=swa"], "swa"),
        (["method=sgd", "collect=fge"], "fge"),
        (["method=sgd", "step=sam"], "sam"),
        (["method=swa", "step=sam"], "sam+swa"),
        (["method=sam", "collect=swa"], "sam+swa"),
        (["method=sam", "collect=fge"], "sam+fge"),
        (["method=asam", "collect=swa"], "asam+swa"),
        (["method=asam", "collect=fge"], "asam+fge"),
        (["method=asam", "collect=swa_paper"], "asam+swa_paper"),
        (["method=swa", "collect=none"], "sgd"),
        (["method=sgd", "collect=ema"], "ema"),
        (["method=sam", "collect=lawa"], "sam+lawa"),
        (["collect=swa+ema"], "sgd+swa+ema"),
        (["method=swa", "collect=swa+ema+swag"], "sgd+swa+ema+swag"),
        (["method=asam", "collect=fge+swa"], "asam+fge+swa"),
    ],
)
def test_methods_and_compositions_have_the_names_of_their_parts(overrides: list[str], name: str) -> None:
    assert recipe_of(overrides)["method"] == name


@pytest.mark.parametrize("method", ["sam", "asam"])
@pytest.mark.parametrize("collect", ["swa", "fge"])
def test_composition_joins_a_step_and_a_collector_and_changes_neither(method: str, collect: str) -> None:
    row = "experiment=table1/wrn28_10_cifar100"
    joined = recipe_of([row, f"method={method}", f"collect={collect}"])
    assert joined["step"] == ascent(method, "cifar100")
    assert joined["collect"] == of_table1("wrn28_10_cifar100", collect)["collect"]
    assert joined["schedule"] == of_table1("wrn28_10_cifar100", collect)["schedule"]


EMA = {
    "_target_": "broadopt.methods.averaging.ema.MovingAverage",
    **{"decay": None, "half_life": 2.0, "start": 0.0, "every": 1, "bn": "reestimate", "budgets": [1]},
}
LAWA = {"_target_": "broadopt.methods.averaging.lawa.LatestAverage", "latest": 5}


def test_the_first_of_several_collectors_is_as_it_is_alone_and_the_others_stand_beside_it() -> None:
    row = "experiment=table1/wrn28_10_cifar100"
    swa, fge = (of_table1("wrn28_10_cifar100", name) for name in ("swa", "fge"))
    for first, second, names in ((swa, fge, "swa+fge"), (fge, swa, "fge+swa")):
        recipe = recipe_of([row, "method=sgd", f"collect={names}+lawa"])
        also = {names.partition("+")[2]: second["collect"], "lawa": LAWA}
        assert recipe == first | {"method": f"sgd+{names}+lawa", "collect": first["collect"] | {"also": also}}
    recipe = recipe_of(["collect=ema+lawa", "collect.also.lawa.latest=3"])
    assert recipe["collect"] == EMA | {"also": {"lawa": LAWA | {"latest": 3}}}
    assert recipe["schedule"] == recipe_of(["method=sgd"])["schedule"]


def test_a_decay_takes_the_place_of_the_half_life() -> None:
    assert recipe_of(["collect=ema"])["collect"] == EMA
    assert recipe_of(["collect=ema", "collect.decay=0.99"])["collect"] == EMA | {"decay": 0.99, "half_life": None}
    several = recipe_of(["collect=swa+ema", "collect.also.ema.decay=0.99"])["collect"]
    assert several["also"] == {"ema": EMA | {"decay": 0.99, "half_life": None}}


def test_values_of_further_collectors_keep_the_rules_of_the_first() -> None:
    whole = recipe_of(["collect=swa+ema", "collect.also.ema.half_life=3"])
    assert identity_of(whole) == identity_of(recipe_of(["collect=swa+ema", "collect.also.ema.half_life=3.0"]))
    with pytest.raises(InputError) as error:
        recipe_of(["collect=swa+ema", "collect.also.ema.every=0"])
    assert str(error.value) == "collect.also.ema.every=0: expected a whole number of steps >= 1"


def test_same_method_by_another_way_is_the_same_run() -> None:
    assert identity_of(recipe_of(["method=swa"])) == identity_of(recipe_of(["method=sgd", "collect=swa"]))


EVERYTHING = ("method=asam", "collect=swa", "model=wrn28_2", "dataset=cifar10")


@pytest.mark.parametrize(
    "override",
    [
        "device=cpu",
        "memory_format=contiguous",
        "compile=true",
        "graphs=true",
        "deterministic=true",
        "data_dir=elsewhere",
        "results_dir=elsewhere",
        "force=true",
        "wait=true",
        "plan=true",
        "tracker=[wandb,mlflow]",
        "trunk=share",
        "checkpoint.minutes=1",
    ],
)
def test_identity_does_not_depend_on_how_a_run_is_carried_out(override: str) -> None:
    assert override.split("=")[0].split(".")[0] in EXECUTION
    assert recipe_of([*EVERYTHING, override]) == recipe_of(EVERYTHING)


def test_identity_does_not_depend_on_where_the_data_lie_or_on_how_they_were_checked() -> None:
    assert recipe_of([*EVERYTHING, "dataset.verify=false"]) == recipe_of(EVERYTHING)
    assert recipe_of(["dataset=image_folder", "dataset.path=a"]) == recipe_of(
        ["dataset=image_folder", "dataset.path=b"]
    )


def test_execution_keys_are_exactly_those() -> None:
    speed = {"device", "memory_format", "compile", "graphs", "deterministic"}
    others = {"data_dir", "results_dir", "force", "wait", "plan", "tracker", "checkpoint", "objective", "keep", "trunk"}
    assert set(EXECUTION) == speed | others
    run = run_config(compose(list(EVERYTHING)))
    record = run.recipe.decided(precision="fp32", fingerprint="sha256:0").record()
    values = run.values()
    assert set(values) - set(record) == {*EXECUTION, "optimizer", "clip"}
    assert set(record) <= set(values)


def leaves(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The path of every value that is no mapping or list of more."""
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*path, key))
    else:
        yield path


def changed(config: dict[str, Any], path: tuple) -> dict[str, Any]:
    """A copy in which one value is another."""
    twin = copy.deepcopy(config)
    *groups, leaf = path
    node: Any = twin
    for key in groups:
        node = node[key]
    value = node[leaf]
    if isinstance(value, bool):
        node[leaf] = not value
    elif isinstance(value, (int, float)):
        node[leaf] = value + 0.125
    else:
        node[leaf] = f"{value}."
    return twin


def test_identity_depends_on_every_other_value() -> None:
    config = recipe_of(EVERYTHING)
    paths = list(leaves(config))
    assert {path[0] for path in paths} >= {
        "seed",
        "budget",
        "lr",
        "precision",
        "step",
        "collect",
        "schedule",
        "dataset",
    }
    assert len(paths) > 50
    assert len({identity_of(config), *(identity_of(changed(config, path)) for path in paths)}) == len(paths) + 1


@pytest.mark.parametrize(
    "override",
    ["seed=2", "budget=201", "lr=0.11", "step.rho=0.7", "step.bn=first", "step.noise=replay", "evaluate_every=2"],
)
def test_identity_depends_on_what_is_given_on_the_command_line(override: str) -> None:
    assert identity_of(recipe_of([*EVERYTHING, override])) != identity_of(recipe_of(EVERYTHING))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["budget=200"], ["budget=200.0"]),
        (["method=asam", "step.rho=1"], ["method=asam", "step.rho=1.0"]),
        (["lr=0.1"], ["lr=1e-1"]),
        (["method=asam", "step.p=2"], ["method=asam", "step.p=2.0"]),
        (["method=swa", "collect.budgets=[1,1.5]"], ["method=swa", "collect.budgets=[1.0,1.5]"]),
    ],
)
def test_equal_numbers_are_the_same_run(one: list[str], other: list[str]) -> None:
    assert identity_of(recipe_of(one)) == identity_of(recipe_of(other))


def test_identity_is_the_sha_256_of_the_sorted_compact_json() -> None:
    config = {"b": 2.0, "a": [1.0, True, None, 0.5], "c": {"z": "é", "y": 1e-4}}
    content = '{"a":[1,true,null,0.5],"b":2,"c":{"y":0.0001,"z":"\\u00e9"}}'
    canonical = f'{{"config":{content},"semantics":{SEMANTICS}}}'
    assert identity_of(config) == hashlib.sha256(canonical.encode()).hexdigest()
    assert re.fullmatch("[0-9a-f]{64}", identity_of(config))


def test_identity_tells_true_from_1_and_a_missing_key_from_a_null() -> None:
    assert len({identity_of(config) for config in ({"a": True}, {"a": 1}, {"a": None}, {}, {"a": "1"})}) == 5
