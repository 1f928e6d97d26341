"""The CIFAR files on disk: found or downloaded once, checked, and read without trusting their pickles."""

import hashlib
import http.client
import io
import logging
import os
import pickle
import shutil
import socket
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

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


def md5(blob: bytes) -> str:
    """MD5 of `blob` in hexadecimal."""
    return hashlib.md5(blob, usedforsecurity=False).hexdigest()


def read_bytes(path: Path) -> bytes:
    """The content of `path`; raises InputError where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def unpickle(path: Path, blob: bytes) -> dict[str, Any]:
    """The dictionary pickled in `blob`, its keys as str, its arrays as read-only uint8; `path` is for messages only.

    Nothing but dicts, lists, numbers, strings, bytes and uint8 arrays is ever built: a pickle that asks for
    anything else is refused. Raises InputError for those, and for truncated or malformed ones.
    """
    try:
        # The unpickler reads one operation at a time and is slow on a stream without a buffer to peek into.
        content = _Unpickler(io.BufferedReader(io.BytesIO(blob)), encoding="bytes").load()
    except _UNPICKLING_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: truncated, or not a file of the CIFAR layout ({reason})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a pickled dictionary, found {type(content).__name__}")
    entries = {text(key): value for key, value in content.items() if isinstance(key, str | bytes)}
    return {key: value.values if isinstance(value, _Array) else value for key, value in entries.items()}


def text(value: str | bytes) -> str:
    """`value` as str: Python 2's pickles hold bytes where Python 3's hold str."""
    return value.decode("latin1") if isinstance(value, bytes) else value


# What the unpickler raises on bytes that are no pickle, beside the UnpicklingError of a refusal.
_UNPICKLING_ERRORS = (
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    IndexError,
    TypeError,
    ValueError,
    OverflowError,
    MemoryError,
)


class _Uint8:
    """Stands for numpy.dtype in a pickle and can be nothing but uint8."""

    def __init__(self, code: Any, *flags: Any) -> None:
        if code not in (b"u1", "u1"):
            raise pickle.UnpicklingError("refused: its pickle asks for an array that is not of uint8")

    def __setstate__(self, state: Any) -> None:
        """A pickled dtype's state is its byte order, of which single bytes have none."""


class _Array:
    """Stands for numpy.ndarray in a pickle: one uint8 array, a read-only view of the pickled bytes."""

    values: np.ndarray

    def __setstate__(self, state: Any) -> None:
        _version, shape, dtype, fortran_order, raw = state
        self.fill(raw, dtype, shape, "F" if fortran_order else "C")

    def fill(self, raw: Any, dtype: Any, shape: Any, order: str) -> None:
        if not isinstance(dtype, _Uint8) or not isinstance(raw, bytes | bytearray):
            raise pickle.UnpicklingError("refused: its pickle asks for an array that is not of uint8")
        self.values = np.frombuffer(raw, dtype=np.uint8).reshape(shape, order="F" if order == "F" else "C")


def _empty_array(kind: Any, shape: Any, code: Any) -> _Array:
    """Stands for numpy's _reconstruct, whose arguments are placeholders for the state that follows."""
    return _Array()


def _array_from_buffer(raw: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    """Stands for numpy's _frombuffer, which pickles of protocol 5 use."""
    array = _Array()
    array.fill(raw, dtype, shape, order)
    return array


def _bytes_from_text(characters: Any, encoding: Any) -> bytes:
    """Stands for _codecs.encode, the way in which Python 3 writes bytes into pickles of protocol 2."""
    if encoding not in (b"latin1", "latin1"):
        raise pickle.UnpicklingError("refused: its pickle asks for another encoding than latin1")
    return characters if isinstance(characters, bytes) else str(characters).encode("latin1")


# numpy 2 moved numpy.core to numpy._core; copies of the data exist that were written by either.
_STAND_INS = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Uint8,
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy._core.multiarray", "_reconstruct"): _empty_array,
    ("numpy.core.numeric", "_frombuffer"): _array_from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _array_from_buffer,
    ("_codecs", "encode"): _bytes_from_text,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"refused: its pickle asks for {module}.{name}")
        return _STAND_INS[module, name]


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
    from torchvision.datasets.utils import download_url

    patience_before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        # An archive left whole by an earlier attempt is used, one left in part is fetched anew.
        download_url(publisher.url, str(data_dir), publisher.filename, publisher.tgz_md5)
        _extract(data_dir / publisher.filename, data_dir / publisher.base_folder, missing)
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
            with partial.open("wb") as out:
                shutil.copyfileobj(content, out, 1 << 20)
            os.replace(partial, folder / name)
