"""Makes the table of measured rates anew from the committed results, with the sizes of the papers' networks:
`python scripts/rates.py`.

A rate is images/s times the gradients of a step, the median over the runs of one network on one kind of device, with as
many threads, in one precision. Rates that scripts/gpu_check.py has written as results/benchmark/gpu*.json count too.
"""

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml
from measure import PROTOCOL, multiply_adds

from broadopt.config.compose import compose, recipe_of, run_config
from broadopt.config.identity import public
from broadopt.config.run_config import ModelConfig
from broadopt.config.shipped import options
from broadopt.devices.rates import TABLE, went_on_elsewhere
from broadopt.methods.recorded import PASSES
from broadopt.runs.results import read_all
from broadopt.training.planning.price import price

COUNTED = ("cifar10_resnet20_5epochs", "cifar10_resnet20_rho")
"""Folders of runs that had their cores to themselves: the seconds of others measure the load of the machine."""

RESULTS = Path(__file__).resolve().parent.parent / "results"
HEAD = "# Made by scripts/rates.py: rates, in images a second of one gradient, from the results that are named.\n"


def measured(root: Path) -> list[tuple[dict[str, Any], float, str]]:
    """Of every run and every row of a GPU check below `root`: what was trained on what, its rate, and its source."""
    found = []
    for folder in (root / name for name in COUNTED):
        for result in read_all(folder)[0]:
            config, cost, environment = (result[key] for key in ("config", "cost", "environment"))
            passes = cost.get("passes") or PASSES[public(config["step"]["_target_"])]
            threads = environment.get("threads") if environment["device"].startswith("CPU") else None
            what = {"model": config["model"], "device": environment["device"], "threads": threads}
            what["precision"] = config["precision"]
            if result["state"] == "finished" and not went_on_elsewhere(environment):
                found.append((what, cost["images_per_second"] * passes, f"results/{folder.name}"))
    for path in sorted(root.glob("benchmark/gpu*.json")):
        content = json.loads(path.read_text())
        for row in content["rows"]:
            if row["part"] == "rates" and row["variant"] == "as auto chooses":
                # A network's configuration may have been another one then: its row says how.
                keys = [f"model={row['network']}", *row.get("overrides", ()), PROTOCOL]
                what = {"model": recipe_of(keys)["model"]}
                what |= {"device": content["environment"]["device"], "threads": None, "precision": row["precision"]}
                found.append((what, row["sgd, images/s"], f"results/benchmark/{path.name}"))
    return found


def rates(root: Path) -> list[dict[str, Any]]:
    """A row for each network, kind of device and precision that something below `root` was measured with."""
    together = defaultdict(list)
    for what, rate, source in measured(root):
        together[json.dumps(what)].append((rate, source))
    rows = []
    for what, rates in sorted(together.items()):
        speed = round(statistics.median(rate for rate, _ in rates), 1)
        source = ", ".join(sorted({source for _, source in rates}))
        row = json.loads(what)
        size = multiply_adds(ModelConfig.of(row["model"]))
        rows.append({**row, "images_per_second": speed, "runs": len(rates), "source": source, "macs": size})
    return rows


def networks() -> list[dict[str, Any]]:
    """The network, data set and multiply-adds of every row of the papers' tables."""
    rows = []
    for experiment in options("experiment"):
        if experiment.startswith("table"):
            recipe = run_config(compose([f"experiment={experiment}"])).recipe
            node, dataset = recipe.record()["model"], recipe.dataset.name
            rows.append({"model": node, "dataset": dataset, "macs": price(recipe).macs})
    return [row for place, row in enumerate(rows) if row not in rows[:place]]


def table(root: Path = RESULTS) -> str:
    """The content of the table."""
    content = {"rates": rates(root), "networks": networks()}
    return HEAD + yaml.safe_dump(content, sort_keys=False, width=120, allow_unicode=True)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    TABLE.write_text(table())
    print(
        f"{TABLE.name}: {', '.join(f'{len(rows)} {name}' for name, rows in yaml.safe_load(TABLE.read_text()).items())}"
    )
