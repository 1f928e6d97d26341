"""Short trainings in float64, alone or as one of torchrun's processes: what each process ends with goes to a file.

python tests/processes.py FOLDER 'OVERRIDE ...' 'OVERRIDE ...', one argument a training: FOLDER/<its place>-<rank>.pt
"""

import sys
from pathlib import Path

import torch
from torch import nn

from broadopt.config.compose import compose, register_resolvers, run_config
from broadopt.data.datasets import read
from broadopt.devices.processes import join
from broadopt.signals import Stop
from broadopt.training.build import build
from broadopt.training.loop import Training
from broadopt.training.progress import EpochLines

sys.path.append(str(Path(__file__).parent / "own"))
CPU = torch.device("cpu")
NETWORK = ("model=resnet20", "model.name=small", "model._target_=own_network.Small", "~model.depth")
SMALL = ("experiment=quickstart", *NETWORK, "batch_size=200", "budget=2", "evaluate_every=1", "lr=0.01")
"""Digits in 8 batches an epoch, the last of 37: two processes have 18 and 19 of them. The losses fall: in a training
that diverges, as with the lr of the recipe, LookSAM's direction makes 1e-8 of a rounding error of 1e-16.
"""


def training(*overrides: str) -> Training:
    """The training of this process; the network computes in float64, without dropout."""
    run = run_config(compose([*SMALL, "precision=fp32", *overrides]))
    parts = build(run, read(run.recipe.dataset), CPU, join(CPU))
    parts.model.double().register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
    for module in parts.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # each process draws its own
    return Training(parts, stop=Stop(), reporter=EpochLines())


def outcome(made: Training) -> dict:
    """Weights, the optimizer's states, figures, and the BN statistics estimated anew for the last weights."""
    made.run(lambda: None, minutes=float("inf"))
    weights = {name: value.clone() for name, value in made.parts.model.state_dict().items()}
    made.reestimate(made.parts.model)
    return {
        "weights": weights,
        "states": made.parts.step.optimizer.state_dict()["state"],
        "history": made.progress.history,
        "collected": made.progress.collected,
        "gradients": made.progress.gradient_evaluations,
        "statistics": {name: value.clone() for name, value in made.parts.model.named_buffers()},
    }


if __name__ == "__main__":
    register_resolvers()
    folder, *trainings = sys.argv[1:]
    for place, overrides in enumerate(trainings):
        with torch.random.fork_rng():
            made = training(*overrides.split())
        torch.save(outcome(made), Path(folder) / f"{place}-{made.parts.processes.rank}.pt")
