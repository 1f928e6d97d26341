"""The README's examples, taken from the README and run as written."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from broadopt.config.compose import compose, run_config
from broadopt.config.shipped import options
from broadopt.training.plan import price

README = (Path(__file__).parent.parent / "README.md").read_text()


def section(title: str) -> str:
    return README.split(f"## {title}\n")[1].split("\n## ")[0]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def run_example(title: str, folder: Path) -> list[str]:
    """Write the section's files under the names that it gives and run its commands; what each printed."""
    text = section(title)
    contents = blocks(text, "python") + blocks(text, "yaml")
    names = re.findall(r"`([\w/]+\.(?:py|yaml))`:", text)
    assert len(names) == len(contents)
    for name, content in zip(names, contents, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return [
        subprocess.run(
            ["bash", "-c", command],
            cwd=folder,
            env=os.environ | {"PATH": path},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for command in blocks(text, "bash")[0].splitlines()
    ]


def test_your_own_method_runs_as_written(tmp_path: Path) -> None:
    alone, averaged = run_example("Your own method", tmp_path)
    assert "/random_sam/seed1-" in alone
    assert "/random_sam+swa/seed1-" in averaged
    assert "collected after 1.5 budgets" in averaged
    code = blocks(section("Your own method"), "python")[0]
    assert len(code.splitlines()) < 30


def test_your_own_network_runs_as_written(tmp_path: Path) -> None:
    (output,) = run_example("Your own network", tmp_path)
    assert "asam, small_net, digits" in output


def test_the_methods_serve_a_loop_of_ones_own() -> None:
    namespace: dict = {}
    exec(blocks(section("The methods in a loop of your own"), "python")[0], namespace)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))
    batches = [(torch.randn(6, 3, 8, 8), torch.arange(6) % 5) for _ in range(3)]
    test_images = torch.randn(7, 3, 8, 8)
    weights = []

    class Recorded(list):
        """The batches, noting the weights at the end of each epoch."""

        def __iter__(self):  # type: ignore[no-untyped-def]
            yield from batches
            weights.append([parameter.detach().clone() for parameter in model.parameters()])

    network, probabilities = namespace["train"](model, Recorded(batches), test_images, 4)

    assert probabilities.sum(dim=1).tolist() == pytest.approx([1.0] * 7)
    for averaged, *seen in zip(network.parameters(), *weights[:4], strict=True):
        torch.testing.assert_close(averaged, torch.stack(seen).mean(dim=0))
    inputs = torch.cat([network[0](images) for images, _ in batches])
    torch.testing.assert_close(network[1].running_mean, inputs.mean(dim=(0, 2, 3)))


@pytest.mark.parametrize("command", ["make run", "make test"])
def test_the_readme_opens_with_the_two_commands(command: str) -> None:
    assert command in blocks(README, "bash")[0]


def table_rows() -> dict[str, tuple[str, str, str]]:
    """Parameters, MACs and budget of each experiment of README's table of rows."""
    found = {}
    for line in re.findall(r"^\| (`table[13]/.*)$", section("The rows"), flags=re.MULTILINE):
        names, _, parameters, macs, budget, *_ = (cell.strip() for cell in line.split("|"))
        first, *endings = re.findall(r"`([\w/]+)`", names)
        experiments = [first, *(first.rpartition("_")[0] + ending for ending in endings)]
        for place, experiment in enumerate(experiments):
            found[experiment] = (parameters.split(", ")[min(place, parameters.count(", "))], macs, budget)
    return found


def test_the_table_of_rows_names_every_row() -> None:
    assert sorted(table_rows()) == [name for name in options("experiment") if name.startswith("table")]


@pytest.mark.parametrize(("experiment", "stated"), table_rows().items())
def test_the_table_of_rows_gives_the_figures_of_the_code(experiment: str, stated: tuple[str, str, str]) -> None:
    methods = ("sgd", "asam") if experiment.startswith("table3") else ("sgd",)
    composed = [run_config(compose([f"experiment={experiment}", f"method={method}"])).recipe for method in methods]
    parameters, macs, budget = stated
    cost = price(composed[0])
    assert rounded_as(parameters, cost.parameters / 1e6, "M")
    assert rounded_as(macs, cost.macs / 1e9, "G")
    assert budget == ", ".join(f"{recipe.budget:g}" for recipe in composed)


def rounded_as(stated: str, value: float, unit: str) -> bool:
    """Whether `stated`, a figure and its unit, is `value` rounded to the figure's decimals."""
    figure = stated.removesuffix(f" {unit}")
    return stated.endswith(f" {unit}") and figure == f"{value:.{len(figure.partition('.')[2])}f}"
