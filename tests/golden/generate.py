"""Writes the result files and the expected tables beside it: python tests/golden/generate.py

Only after a wanted change of the identity or of the layout; read the difference before keeping it.
"""

import json
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from stored import RESNET20, VGG16, record, store  # noqa: E402

from broadopt import table as tables  # noqa: E402
from broadopt.analysis.tables.request import parse  # noqa: E402
from broadopt.config.compose import recipe_of  # noqa: E402

TABLES = {
    "table1.md": ("table1", "markdown"),
    "table3.md": ("table3", "markdown"),
    "runs.md": ("runs", "markdown"),
    "table3.tex": ("table3", "latex"),
    "table3.html": ("table3", "html"),
    "table3.csv": ("table3", "csv"),
}


def write_results() -> None:
    shutil.rmtree(HERE / "runs", ignore_errors=True)
    for seed, best in ((1, 69.5), (2, 70.2), (3, 69.4)):
        store(HERE, record(RESNET20, "method=sgd", seed=seed), last=best - 0.5, best=best)
    store(HERE, record(RESNET20, "method=sam"), last=70.9, best=71.07)
    for seed, best in ((1, 71.5), (2, 72.2)):
        store(HERE, record(RESNET20, "method=asam", seed=seed, precision="bf16"), last=best - 0.3, best=best)
    store(HERE, record(RESNET20, "method=asam", seed=3), last=71.0, best=71.3)
    store(HERE, record(RESNET20, "method=asam", "budget=5"), last=40.9, best=41.0)
    store(HERE, record(RESNET20, "method=sam", "collect=swa"), last=70.0, best=70.5, collected={"1": 71.2, "1.5": 71.6})
    store(HERE, record(RESNET20, "method=asam", seed=4, precision="bf16"), best=12.0, state="interrupted")
    store(HERE, record(VGG16, "method=sgd"), last=72.5, best=72.9)
    for seed, (one, more, most) in ((1, (73.8, 74.1, 74.2)), (2, (74.0, 74.3, 74.6))):
        collected = {"1": one, "1.25": more, "1.5": most}
        store(HERE, record(VGG16, "method=swa", seed=seed), last=70.1, best=71.4, collected=collected)
    store(HERE, record("experiment=quickstart", "method=sgd"), last=96.1, best=96.7)
    store(HERE, record("experiment=quickstart", "method=fge"), last=95.8, best=96.4, collected={"1": 96.9})


def write_tables() -> None:
    recipes = {}

    def compose(overrides: list[str]) -> dict:
        return recipes.setdefault(" ".join(overrides), recipe_of(overrides))

    for name, (table, form) in TABLES.items():
        request = parse([table, "--results", str(HERE), "--format", form])
        text, _ = tables.make(request, compose=compose)
        (HERE / name).write_text(text, encoding="utf-8")
    (HERE / "recipes.json").write_text(json.dumps(recipes, indent=1) + "\n")


if __name__ == "__main__":
    write_results()
    write_tables()
