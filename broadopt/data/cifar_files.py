"""The CIFAR files on disk: found or downloaded once, and checked."""

import hashlib
import http.client
import logging
import os
import shutil
import socket
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from broadopt import files
from broadopt.errors import InputError

log = logging.getLogger("broadopt")

# The server's silence, in seconds, after which a download is given up: other processes wait for its lock.
PATIENCE = 60.0


def published_md5(publisher: Any) -> dict[str, str]:
    """File name -> published MD5, of every file of a data set; `publisher`: torchvision's class CIFAR10 or CIFAR100."""
    return dict([*publisher.train_list, *publisher.test_list, (publisher.meta["filename"], publisher.meta["md5"])])


def obtain(publisher: Any, data_dir: Path) -> Path:
    """The folder of the data set under `data_dir`; what is missing there is downloaded first, by one process at a time.

    Raises InputError where `data_dir` cannot be written or the download fails.
    """
    folder = data_dir / publisher.base_folder
    if _missing(publisher, folder):
        with _only_writer(data_dir, publisher.filename):
            missing = _missing(publisher, folder)  # once more: the process we waited for may have put them there
            if missing:
                _download(publisher, data_dir, missing)
    return folder


def is_there(publisher: Any, data_dir: Path) -> bool:
    """Whether all files of the data set are under `data_dir`, so that reading them downloads nothing."""
    return not _missing(publisher, data_dir / publisher.base_folder)


def md5(blob: bytes) -> str:
    """MD5 of `blob` in hexadecimal."""
    return hashlib.md5(blob, usedforsecurity=False).hexdigest()


LARGEST = 1 << 30
"""Bytes of a file of images; the largest of the published ones has 155 million."""


def read_bytes(path: Path) -> bytes:
    """The content of `path`; raises InputError where it cannot be read, is no regular file or larger than LARGEST."""
    try:
        return files.read_bytes(path, limit=LARGEST)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {files.reason(error)}") from error


# RuntimeError is torchvision's, for an archive of another MD5; KeyError is tarfile's, for one that lacks a file.
_DOWNLOAD_ERRORS = (
    OSError,
    RuntimeError,
    KeyError,
    EOFError,
    http.client.HTTPException,
    tarfile.TarError,
    zlib.error,
)


def _missing(publisher: Any, folder: Path) -> list[str]:
    return [name for name in published_md5(publisher) if not (folder / name).exists()]


@contextmanager
def _only_writer(data_dir: Path, archive: str) -> Iterator[None]:
    lock = FileLock(data_dir / f".{archive}.lock")
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.warning("another process is downloading to %s; waiting for it", data_dir)
            lock.acquire()
    except OSError as error:
        reason = error.strerror or error
        raise InputError(
            f"data_dir={data_dir}: cannot be created or written ({reason}); expected a folder that holds CIFAR or can"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _download(publisher: Any, data_dir: Path, missing: list[str]) -> None:
    from torchvision.datasets.utils import check_integrity, download_url

    patience_before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        # An archive left whole by an earlier attempt is used, one left in part is fetched anew: not into the same file,
        # which could be a link to another, or a FIFO that waits for a reader.
        archive = data_dir / publisher.filename
        if os.path.lexists(archive) and not check_integrity(str(archive), publisher.tgz_md5):
            archive.unlink()
        download_url(publisher.url, str(data_dir), publisher.filename, publisher.tgz_md5)
        _extract(archive, data_dir / publisher.base_folder, missing)
    except _DOWNLOAD_ERRORS as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"no {', '.join(missing)} in {data_dir / publisher.base_folder}, and the download of {publisher.url} failed"
            f" ({reason}); put that file, or the folder it unpacks to, in data_dir={data_dir},"
            " or name the folder that has it by data_dir=... or BROADOPT_DATA"
        ) from error
    finally:
        socket.setdefaulttimeout(patience_before)


def _extract(archive: Path, folder: Path, names: list[str]) -> None:
    """Write the members `folder`/name of `archive`, each whole or not at all.

    No member's own path is ever used for writing, so none can climb out of `folder` or lead away by a link.
    """
    folder.mkdir(exist_ok=True)
    with tarfile.open(archive) as tar:
        for name in names:
            member = tar.getmember(f"{folder.name}/{name}")
            content = tar.extractfile(member) if member.isfile() else None
            if content is None:
                raise tarfile.TarError(f"{archive}: {member.name} is not a file")
            partial = folder / f".{name}.part"
            partial.unlink(missing_ok=True)  # not written to: it could be a link that leads elsewhere
            with partial.open("xb") as out:
                shutil.copyfileobj(content, out, 1 << 20)
            os.replace(partial, folder / name)
