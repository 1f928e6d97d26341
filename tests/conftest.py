import gc
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import fork_server
import kept_configs
import numpy as np
import pytest
from command import SMALL, STARTUP, Sweep, folders, run
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # ahead of torch: a child that is forked beside its threads would hang

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background, where it is passed on to children
    signal.signal(signal.SIGINT, signal.default_int_handler)

kept_configs.install()
settings.register_profile("tests", derandomize=True, deadline=None)  # the same examples each time, on any machine
settings.load_profile("tests")

LONGEST = (
    *("training/test_rows.py", "test_docs.py", "test_streams.py", "launchers/test_ecosystem.py"),
    *(
        "devices/test_processes.py",
        "test_reference.py",
        "launchers/test_local_launcher.py",
        "models/test_model_runs.py",
    ),
    *("runs/test_trust.py", "test_reproduce.py", "test_fork_server.py", "methods/test_schedule.py"),
    *("runs/test_hostile_folder.py", "analysis/figures/test_planes.py", "analysis/status/test_status.py"),
    *("training/test_speed.py", "config/test_recipes.py", "trackers/test_trackers.py"),
    *("reliability/test_exact_resume.py", "data/test_hostile_data.py", "config/test_bad_input.py"),
    *("data/test_datasets.py", "reliability/test_reproducible.py", "training/test_loop.py"),
    *("reliability/test_sharing.py", "analysis/comparing/test_sweeps.py", "test_wheel.py"),
    *("analysis/figures/test_curvature.py", "config/test_newcomer.py", "training/test_plan.py"),
    *("reliability/test_odd_command_lines.py", "analysis/figures/test_averages.py", "models/test_vgg.py"),
    *("training/test_trunks.py", "runs/test_resume.py", "runs/test_snapshots.py", "reliability/test_repeated.py"),
    *("test_run.py", "reliability/test_full_disk.py", "launchers/test_sweeper.py", "test_gpu_check.py"),
    *("analysis/reporting/test_report.py", "reliability/test_killed.py", "reliability/test_many_writers.py"),
)
"""Files of the tests that take longest: they begin first, so that the workers of make test, each of which takes file
after file (what a file's tests share is made once), end together.
"""

LAYOUTS = {
    "cifar10": ("cifar-10-batches-py", [f"data_batch_{i}" for i in range(1, 6)], "test_batch", "labels"),
    "cifar100": ("cifar-100-python", ["train"], "test", "fine_labels"),
}


def pytest_configure(config: pytest.Config) -> None:
    """The workers of make test share one fork server, which imports what it needs while they do."""
    if config.getoption("numprocesses", None) and fork_server.takes(fork_server.environment_of_server()):
        fork_server.server()  # in the workers it is that of the process that starts them


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_collection_finish() -> None:
    """Nothing that is there by now is looked at when a run in this process has the collector go through all objects."""
    gc.collect()
    gc.freeze()


def write_cifar(
    root: Path, name: str = "cifar10", per_file: int = 4, protocol: int = 2, tested: int | None = None
) -> Path:
    """Write a small valid copy of a CIFAR data set in torchvision's layout and return its folder. `tested`: images of
    the test set, where they are not as many as of each file.
    """
    folder_name, train, test, key = LAYOUTS[name]
    folder = root / folder_name
    folder.mkdir(parents=True)
    random = np.random.RandomState(0)
    count = int(name.removeprefix("cifar"))
    for file in (*train, test):
        images = per_file if file in train else tested or per_file
        pixels = random.randint(0, 256, (images, 3072)).astype(np.uint8)
        entry = {"data": pixels, key: random.randint(0, count, images).tolist(), "filenames": ["x.png"] * images}
        entry |= {"coarse_labels": [label % 20 for label in entry[key]]} if name == "cifar100" else {}
        (folder / file).write_bytes(pickle.dumps(entry, protocol=protocol))
    meta, names_key = ("batches.meta", "label_names") if name == "cifar10" else ("meta", "fine_label_names")
    names = [f"class {i}" for i in range(count)]
    listed = {names_key: names} | ({"coarse_label_names": names[:20]} if name == "cifar100" else {})
    (folder / meta).write_bytes(pickle.dumps(listed, protocol=protocol))
    return folder


@pytest.fixture(scope="session", autouse=True)
def forks() -> Iterator[None]:
    """Commands that tests, scripts and launchers start are forked where they can be: see fork_server.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(STARTUP))
        yield


@pytest.fixture(scope="session", autouse=True)
def own_cache() -> Iterator[None]:
    """Recipes that are kept for the next command are kept away from the user's own; other users may read them."""
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        Path(folder).chmod(0o755)
        patch.setenv("XDG_CACHE_HOME", folder)
        yield


@pytest.fixture(scope="session")
def cifar_writer() -> Callable[..., Path]:
    """`write_cifar`."""
    return write_cifar


@pytest.fixture
def small_cifar(tmp_path: Path) -> Callable[..., Path]:
    """`write_cifar` into the test's own folder."""
    return partial(write_cifar, tmp_path)


@pytest.fixture(scope="session")
def five_runs(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """The five methods on the small network, in one sweep that was not disturbed."""
    cwd = tmp_path_factory.mktemp("five_runs")
    process = run("-m", *SMALL, "budget=2", "method=sgd,swa,fge,sam,asam", cwd=cwd)
    return Sweep(cwd, process, {folder.parent.name: folder for folder in folders(cwd)})
