"""The lock of a run folder on file systems that have none. flock is made to say what it says there."""

import errno
import fcntl
from pathlib import Path

import pytest

from broadopt.errors import InputError
from broadopt.runs.lock import only_writer
from broadopt.signals import Stop


def without_flock(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(descriptor: int, how: int) -> None:
        raise OSError(code, "refused")

    monkeypatch.setattr(fcntl, "flock", refused)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said_and_keeps_nobody_out(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that is there as long as the lock is held would outlive a process that was killed."""
    without_flock(code, monkeypatch)
    (tmp_path / ".lock").touch()  # as a run leaves it that was killed, or that was copied
    with only_writer(tmp_path, wait=False, stop=Stop()) as alone:
        assert alone
    assert [" ".join(line.split()[1:6]) for line in caplog.messages] == ["its file system has no"]


def test_another_refusal_is_one_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_flock(errno.EIO, monkeypatch)
    lock = only_writer(tmp_path, wait=False, stop=Stop())
    with pytest.raises(InputError, match="cannot be written"):
        lock.__enter__()
