"""A real Slurm for the tests of this folder, started for them and stopped after them."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_tasks import SCRIPT


@pytest.fixture(scope="session")
def slurm() -> Iterator[Path]:
    """The folder of a cluster of one node; its commands find it through SLURM_CONF."""
    if os.geteuid() != 0:
        pytest.skip("a Slurm of its own needs root")
    if shutil.which("slurmctld") is None and shutil.which("apt-get") is None:
        pytest.skip("no Slurm here, and no apt-get to install it")
    home = Path(tempfile.mkdtemp(prefix="broadopt-slurm-"))  # munge wants a path that everyone may enter
    started = subprocess.run([SCRIPT, "start", home], capture_output=True, text=True)
    if shutil.which("slurmctld") is None:
        pytest.skip("Slurm cannot be installed here: " + (home / "apt.log").read_text().strip().splitlines()[-1])
    assert started.returncode == 0, started.stderr
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURM_CONF", str(home / "slurm.conf"))
            patch.setenv("FORK_SERVER", "no")  # what Slurm cancels is what it has started
            yield home
    finally:
        subprocess.run([SCRIPT, "stop", home], check=True)
        shutil.rmtree(home)


@pytest.fixture(autouse=True)
def _nothing_in_the_queue(slurm: Path) -> Iterator[None]:
    """What a test has left in the queue is cancelled after it."""
    yield
    subprocess.run(["scancel", "--me"], check=True)
