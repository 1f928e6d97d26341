import copy
import hashlib
import re
from collections.abc import Iterator
from typing import Any

import pytest

from broadopt.config.compose import compose, recipe_of, run_config
from broadopt.config.identity import SEMANTICS, identity_of
from broadopt.config.run_config import EXECUTION
from broadopt.config.shipped import config_dir

# The recipes, typed from the papers and the authors' repositories and not from the configuration: the one is to be
# held against the other.

SWA_VGG = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
SWA_OTHER = ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010])
# The code gives 255ths; the protocol keeps six decimals of them.
PYRAMIDNET = tuple(
    [round(value / 255, 6) for value in triple] for triple in ((125.3, 123.0, 113.9), (63.0, 62.1, 66.7))
)
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
VGG19_BN = {"name": "vgg19_bn", "_target_": "broadopt.models.vgg.vgg19_bn", "head": "torchvision"}
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
    return {
        "name": f"wrn{depth}_{widen}",
        "_target_": "broadopt.models.wrn.WideResNet",
        "depth": depth,
        "widen_factor": widen,
        "variant": variant,
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
    "fge": {"high": 0.01, "low": 0.01},
}
WRN_ROW = VGG_ROW | {
    "model": wide(28, 10, "swa2018"),
    "normalisation": SWA_OTHER,
    "lr": 0.1,
    "swa": VGG_ROW["swa"] | {"lr": 0.05, "decay_to": 0.05},
    "fge": {"high": 0.05, "low": 0.01},
}
RESNET_ROW = WRN_ROW | {"model": RESNET164, "budget": 150, "weight_decay": 3e-4}
CYCLES = {"start": 1.0, "lr": 0.05, "decay_to": None, "tail": "sawtooth", "low": 0.001, "cycle": 0.02}

TABLE1 = {
    "vgg16_cifar100": VGG_ROW,
    "vgg16_cifar10": VGG_ROW,
    "preresnet164_cifar100": RESNET_ROW | {"swa": WRN_ROW["swa"] | {"start": 0.84}},
    "preresnet164_cifar10": RESNET_ROW | {"swa": WRN_ROW["swa"] | {"start": 0.84, "lr": 0.01, "decay_to": 0.01}},
    "wrn28_10_cifar100": WRN_ROW,
    "wrn28_10_cifar10": WRN_ROW,
    "pyramidnet272_cifar100": {
        "model": PYRAMIDNET272,
        "normalisation": PYRAMIDNET,
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
        "normalisation": SWA_OTHER,
        "budget": 1800,
        "lr": 0.2,
        "nesterov": True,
        "weight_decay": 1e-4,
        "schedule": ("cosine", True),
        "swa": CYCLES,
        "swa_budgets": [1.25, 1.5],
    },
}

TABLE3 = {  # network, budget of SGD, of SAM and ASAM, lr
    "densenet121": (DENSENET121, 400, 200, 0.1),
    "resnet20": (resnet(20), 400, 200, 0.1),
    "resnet56": (resnet(56), 400, 200, 0.1),
    "vgg19_bn": (VGG19_BN, 400, 200, 0.1),
    "resnext29_32x4d": (RESNEXT29, 400, 200, 0.1),
    "wrn28_2": (wide(28, 2, "homura"), 400, 200, 0.1),
    "wrn28_10": (wide(28, 10, "homura"), 400, 200, 0.1),
    "pyramidnet272": (PYRAMIDNET272 | SHAKEDROP, 1800, 900, 0.05),
}

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


def schedule(*, lr: float, budget: float, shape: str, per_step: bool, **tail: Any) -> dict[str, Any]:
    head = {"_target_": "broadopt.schedule.Schedule", "lr": lr, "budget": budget, "shape": shape, "per_step": per_step}
    return head | tail


def of_table1(row: str, method: str) -> dict[str, Any]:
    values = TABLE1[row]
    swa, (shape, per_step) = values["swa"], values["schedule"]
    tails = {
        "sgd": {},
        "swa": {
            "decay_over": swa["start"],
            "decay_to": swa["decay_to"],
            "tail": swa["tail"],
            "start": swa["start"],
            "high": swa["lr"],
            "low": swa["low"],
            "cycle": swa["cycle"],
        },
        "fge": {"tail": "triangle", "start": 0.8, "cycle": 0.01, **values.get("fge", {})},
    }
    collectors = {
        "sgd": NO_COLLECTOR,
        "swa": {
            "_target_": "broadopt.methods.swa.WeightAverage",
            "start": swa["start"],
            "cycle": swa["cycle"],
            "budgets": values["swa_budgets"],
        },
        "fge": {"_target_": "broadopt.methods.fge.SnapshotEnsemble", "start": 0.8, "cycle": 0.01},
    }
    return common(
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


def test_same_method_by_another_way_is_the_same_run() -> None:
    assert identity_of(recipe_of(["method=swa"])) == identity_of(recipe_of(["method=sgd", "collect=swa"]))


EVERYTHING = ("method=asam", "collect=swa", "model=wrn28_2", "dataset=cifar10")


@pytest.mark.parametrize(
    "override",
    [
        "device=cpu",
        "memory_format=contiguous",
        "compile=true",
        "cuda_graphs=true",
        "deterministic=true",
        "data_dir=elsewhere",
        "results_dir=elsewhere",
        "force=true",
        "wait=true",
        "plan=true",
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
    speed = {"device", "memory_format", "compile", "cuda_graphs", "deterministic"}
    assert set(EXECUTION) == speed | {"data_dir", "results_dir", "force", "wait", "plan", "checkpoint"}
    run = run_config(compose(list(EVERYTHING)))
    record = run.recipe.decided(precision="fp32", fingerprint="sha256:0").record()
    values = run.values()
    assert set(values) - set(record) == set(EXECUTION)
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
