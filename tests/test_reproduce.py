"""The scripts that make a whole table."""

import os
import re
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"


def reproduce(table: str, *arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"SEEDS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = [SCRIPTS / f"reproduce_{table}.sh", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("table", ["table1", "table3"])
def test_exactly_the_runs_that_the_paper_has_values_for_are_made(table: str, tmp_path: Path) -> None:
    """As broadopt-table names them; each sweep is planned in one command, with the hours of its runs and their sum."""
    planned = reproduce(table, "plan=true", cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    assert not list(tmp_path.rglob("result.json"))
    runs = [line for line in planned.stdout.splitlines() if " seed " in line]
    made = [tuple(line.split()[:3]) for line in runs]
    kinds = r"(an H100|\d+ threads? of a CPU)"
    assert all(re.search(rf"about [\d.,]+ h on {kinds} \((derived|by measured rate)\)", line) for line in runs)
    sums = re.findall(r"^(\d+) runs, about .* (\S+) PFLOPs$", planned.stdout, flags=re.MULTILINE)
    assert [int(count) for count, _ in sums] == {"table1": [16, 6], "table3": [24]}[table]
    figures = iter(float(line.split()[-2].replace(",", "")) for line in runs)
    for count, total in sums:
        of_sweep = sum(islice(figures, int(count)))
        assert float(total.replace(",", "")) == pytest.approx(of_sweep, rel=1e-3)
    missing = subprocess.run(
        [Path(sys.executable).parent / "broadopt-table", table, "--missing", "--seeds", "1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert len(made) == len(set(made)) == len(missing.splitlines())
    for line in missing.splitlines():
        row, method = (word.split("=")[1] for word in line.split()[1:3])
        network = row.partition("/")[2].removesuffix("_cifar10").removesuffix("_cifar100")
        dataset = "cifar10" if row.endswith("_cifar10") else "cifar100"
        assert any(d == dataset and m.startswith(network) and how == method for d, m, how in made), line


def test_bad_input_ends_the_script_with_its_exit_code(tmp_path: Path) -> None:
    done = reproduce("table3", "sed=1", cwd=tmp_path)
    assert done.returncode == 2
    assert 'did you mean "seed"?' in done.stderr
    assert not done.stdout
