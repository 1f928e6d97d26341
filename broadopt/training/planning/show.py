"""plan=true: what a run would do and cost, printed in its place."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from broadopt.config.instantiate import collectors_of, instantiated
from broadopt.config.run_config import Recipe, RunConfig
from broadopt.training.build import schedule_of
from broadopt.training.planning.page import line, origins, page
from broadopt.training.planning.price import Cost, Price, price, time_of

Plan = tuple[Recipe, Cost, Price]
"""Of a run that is planned the recipe, its size and its price."""


def show(composed: DictConfig, run: RunConfig, overrides: list[str], *, brief: bool) -> Plan:
    """Print the plan of a run that Hydra has `composed` from these overrides, in one line where `brief`; returns it.
    Raises InputError, or RunFailed, where the run would fail ahead of its first step.
    """
    recipe = run.recipe
    cost = price(recipe)
    time = time_of(recipe, cost, device=run.execution.device)
    # What the run would refuse is refused, and what it would warn of is said, of each run of a sweep too.
    instantiated("augmentation", recipe.augmentation)
    collectors = collectors_of(recipe.collect)
    for collector in collectors.values():
        collector.collection_points(recipe.budget)
    schedule = schedule_of(recipe, collectors)
    if brief:
        print(line(recipe, cost, time), flush=True)
    else:
        nodes: Any = OmegaConf.to_container(composed, resolve=False)
        sources = origins(nodes, run.values(), protocol=nodes["protocol"]["recipe"], given=overrides)
        print(page(recipe, cost, time, schedule=schedule, origins=sources))
    return recipe, cost, Price.of(cost, time)
