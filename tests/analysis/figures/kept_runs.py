"""Short runs whose weights are kept, for figures that are measured on them."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from command import OWN, SMALL, folders, run


@contextmanager
def kept_runs(*overrides: str, cwd: Path) -> Iterator[Mapping[str, Path]]:
    """Run folders by method, with snapshots; `bare` is SGD's without any weights. Their network can be imported."""
    done = run("-m", *SMALL, "budget=2", *overrides, "keep=snapshots", cwd=cwd)
    assert done.returncode == 0, done.stderr
    found = {folder.parent.name: folder for folder in folders(cwd)}
    bare = cwd / "bare" / found["sgd"].relative_to(cwd)
    shutil.copytree(found["sgd"], bare, ignore=shutil.ignore_patterns("snapshots", "*.safetensors"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(OWN))
        yield {**found, "bare": bare}
