"""A sweep that torchrun has given to several processes: one run after the other, each carried out by all of them."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from broadopt.errors import InputError, LeftToAnother, RunFailed


@contextmanager
def in_step(*, sweep: bool) -> Iterator[None]:
    """Within the block a run is carried out. Where it fails in one process alone, a sweep ends in all of them, with 1:
    the others wait for that one in the midst of the run, and would meet it in the next.
    """
    if not sweep or "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    try:
        yield
    except (InputError, RunFailed):
        _end(failed=True)
        raise
    except LeftToAnother:  # as the first process has told the others
        _end(failed=False)
        raise
    _end(failed=False)


def _end(*, failed: bool) -> None:
    from broadopt.devices.processes import have_all_ended  # imports torch

    with suppress(InputError):  # of variables that are not torchrun's, as the run has said
        if have_all_ended(failed=failed):
            return
        line = "one of the processes has failed alone: the sweep ends here; the same command goes on with it"
        print(f"broadopt-run: {line}", file=sys.stderr, flush=True)
        sys.exit(1)
