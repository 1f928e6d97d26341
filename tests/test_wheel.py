"""The built wheel, installed into an environment of its own, run from a folder that has nothing of the checkout."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with the wheel; its dependencies are those of the tests."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, CHECKOUT]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("broadopt-*.whl")
    venv.create(folder / "venv", with_pip=False)
    bin_folder = folder / "venv" / "bin"
    pip = [sys.executable, "-m", "pip", "--python", bin_folder / "python", "install", "--no-deps", "--no-index", wheel]
    subprocess.run(pip, check=True, capture_output=True)
    site = next((folder / "venv" / "lib").glob("python*/site-packages"))
    # A plain path entry: the .pth file of the checkout's own editable install is not followed from there.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return bin_folder


def run(program: Path, *arguments: str, cwd: Path) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([program, *arguments], cwd=cwd, env=environment, check=True, capture_output=True, text=True)
    return done.stdout


def test_the_wheel_is_what_runs(installed: Path, tmp_path: Path) -> None:
    program = "import broadopt.config.shipped as c; print(c.__file__, c.config_dir(), c.paper_dir())"
    for path in run(installed / "python", "-c", program, cwd=tmp_path).split():
        assert Path(path).is_relative_to(installed.parent)


def test_the_wheel_holds_every_config_and_both_published_tables(installed: Path) -> None:
    (wheel,) = installed.parent.parent.glob("broadopt-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for inside, checkout in (("configs", "configs"), ("paper", "results/paper")):
        files = {path.relative_to(CHECKOUT / checkout).as_posix() for path in (CHECKOUT / checkout).rglob("*.yaml")}
        assert len(files) >= 2
        assert {name.removeprefix(f"broadopt/{inside}/") for name in names if f"/{inside}/" in name} == files
    assert "broadopt/analysis/figures/broadopt.mplstyle" in names
    assert not {name.partition("/")[0] for name in names} - {
        "broadopt",
        wheel.stem.rpartition("-py3")[0] + ".dist-info",
    }


def test_the_commands_work_from_any_folder(installed: Path, tmp_path: Path) -> None:
    output = run(installed / "broadopt-run", "experiment=quickstart", "method=sam", "budget=0.05", cwd=tmp_path)
    assert "finished: results/runs/digits/resnet20/sam/seed1-" in output
    assert "| sam " in run(installed / "broadopt-table", "runs", cwd=tmp_path)
    assert "schematic" in run(installed / "broadopt-figure", "--help", cwd=tmp_path)
    assert "83.68 ± 0.12" in run(installed / "broadopt-table", "table3", cwd=tmp_path)
    assert run(installed / "broadopt-report", "results", "-o", "page.html", cwd=tmp_path) == ""
    assert (tmp_path / "page.html").read_text(encoding="utf-8").endswith("</html>\n")
    assert "table1/vgg16_cifar100" in run(installed / "broadopt-run", "--help", cwd=tmp_path).replace(", ", " table1/")
