"""The built wheel, installed into an environment of its own, run from a folder that has nothing of the checkout."""

import json
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


AUDIT = """
import os, sys

CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate")

def note(event, args):
    opened = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if not opened and event not in CHANGES:
        return
    for path in args[:2]:
        if isinstance(path, str) and os.path.abspath(path).startswith(os.environ["PACKAGE"] + os.sep):
            with open(os.environ["SEEN"], "a") as seen:
                seen.write(f"{event} {path}\\n")

sys.addaudithook(note)
"""
"""A sitecustomize.py that tells of whatever a process would write beside the installed code."""


ONE_AFTER_THE_OTHER = """
import json, runpy, sys

from hydra.core.global_hydra import GlobalHydra

for program, *arguments in json.loads(sys.argv[1]):
    GlobalHydra.instance().clear()
    sys.argv = [program, *arguments]
    try:
        runpy.run_path(program, run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
"""
"""Carries out commands in one process, which imports torch once."""


def written(program: Path, *arguments: str, cwd: Path, package: Path, **environment: str) -> str:
    """What a command writes, or would change, below `package`."""
    (cwd / "audit").mkdir(exist_ok=True)
    (cwd / "audit/sitecustomize.py").write_text(AUDIT)
    (cwd / "seen").write_text("")
    variables = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(cwd / "audit"), "PACKAGE": str(package)}
    variables |= {"SEEN": str(cwd / "seen"), **environment}
    done = subprocess.run([program, *arguments], cwd=cwd, env=os.environ | variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return (cwd / "seen").read_text()


def test_an_installation_may_be_read_only(installed: Path, tmp_path: Path) -> None:
    """Python's own bytecode apart, which PYTHONDONTWRITEBYTECODE keeps away, no command writes beside its code."""
    (package,) = (installed.parent / "lib").glob("python*/site-packages/broadopt")
    python, probe = installed / "python", f"open({str(package / 'probe')!r}, 'w').close()"
    assert written(python, "-c", probe, cwd=tmp_path, package=package) == f"open {package}/probe\n"
    (package / "probe").unlink()
    commands = (
        ("broadopt-run", "experiment=quickstart", "method=swa", "budget=0.05", "keep=snapshots"),
        ("broadopt-run", "-m", "experiment=quickstart", "budget=0.05", "seed=2"),
        ("broadopt-run", "experiment=quickstart", "plan=true"),
        ("broadopt-table", "runs"),
        ("broadopt-table", "runs", "--status"),
        ("broadopt-report", "results", "-o", "page.html"),
        ("broadopt-figure", "curves", "method=swa", "--results", "results"),
        ("broadopt-export", "tensorboard"),
    )
    programs = json.dumps([[str(installed / program), *arguments] for program, *arguments in commands])
    bytecode = {"PYTHONDONTWRITEBYTECODE": "1"}
    assert written(python, "-c", ONE_AFTER_THE_OTHER, programs, cwd=tmp_path, package=package, **bytecode) == ""
    assert (tmp_path / "page.html").exists()
    assert len(list((tmp_path / "results/runs").rglob("result.json"))) == 2
