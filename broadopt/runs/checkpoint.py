"""Checkpoints: whole or absent, checked before they are believed, free of code.

A file is one line of JSON (format, identity, step, length and SHA-256 of what follows) and then a torch archive of
tensors and plain values.
"""

import errno
import hashlib
import io
import json
import logging
import os
import pickle
import struct
from pathlib import Path
from typing import Any

from broadopt.errors import RunFailed, is_lack_of_memory, printable
from broadopt.files import open_regular, parse_json, reason, replacing

log = logging.getLogger("broadopt")

FORMAT = 2
KEPT = 2

UNREADABLE = (
    *(OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError),
    *(LookupError, TypeError, AttributeError, ArithmeticError, MemoryError, AssertionError, struct.error),
)
"""What torch raises on bytes that are no archive of tensors: whoever can compute a SHA-256 can give it any."""

NONE_THERE = (errno.ENOENT, errno.ELOOP, errno.ENXIO, errno.ENODEV)
"""What a file system says of what is no file, or is there no more."""


def save(folder: Path, state: dict[str, Any], *, identity: str, step: int) -> None:
    """Write `state` (tensors and plain values) as the checkpoint of `folder` at `step`, and keep one of before. Raises
    OSError (disk full, ...).
    """
    import torch

    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getbuffer()
    header = {
        "format": FORMAT,
        "identity": identity,
        "step": step,
        "length": len(payload),
        "sha256": hashlib.sha256(payload).hexdigest(),
    }
    new = folder / f"checkpoint-{step:010d}.ckpt"
    with replacing(new) as file:
        file.write(json.dumps(header).encode() + b"\n")
        file.write(payload)
    # A file that was passed over, of a later step or of another run, counts for none: it would push a good one out.
    for old in [path for path in files(folder) if path <= new and _belongs(path, identity)][KEPT:]:
        old.unlink(missing_ok=True)


def load(folder: Path, *, identity: str, device: Any) -> dict[str, Any] | None:
    """As `newest`, without the path; what is found is reported in a line as well."""
    found = newest(folder, identity=identity, device=device)
    if found is None:
        return None
    log.warning("going on from %s", printable(str(found[0])))
    return found[1]


def newest(folder: Path, *, identity: str, device: Any) -> tuple[Path, dict[str, Any]] | None:
    """The newest valid state of `folder` with its tensors on `device`, and its file; None where there is none. What is
    passed over is reported, one line each. Raises RunFailed where memory or the file system keeps one from being read,
    which says nothing of what is in it.
    """
    for path in files(folder):
        place = printable(str(path))
        try:
            payload = _payload(path, identity)
            state = _state(payload, "cpu")
        except UNREADABLE as error:
            if is_lack_of_memory(error) or (isinstance(error, OSError) and error.errno not in NONE_THERE):
                raise RunFailed(f"checkpoint {place} could not be read: {_words(error)}; it is kept") from error
            log.warning("checkpoint %s is passed over: %s", place, _words(error))
            continue
        try:
            return path, state if str(device) == "cpu" else _state(payload, device)
        except RuntimeError as error:
            raise RunFailed(f"checkpoint {place} could not be loaded: {_words(error)}; it is kept") from error
    return None


def _words(error: BaseException) -> str:
    """Why a checkpoint could not be used, on one line."""
    first = next(iter(str(error).splitlines()), type(error).__name__)
    return reason(error) if isinstance(error, OSError | ValueError) else printable(first)


def files(folder: Path) -> list[Path]:
    """The checkpoints of `folder`, the newest first."""
    return sorted(folder.glob("checkpoint-*.ckpt"), reverse=True)


def _belongs(path: Path, identity: str) -> bool:
    """Whether a checkpoint says that it is of this run; what it holds is not looked at."""
    try:
        with open_regular(path) as file:
            header = parse_json(file.readline(4096))
    except (OSError, ValueError):
        return False
    return isinstance(header, dict) and header.get("identity") == identity


def _payload(path: Path, identity: str) -> bytes:
    """The archive in a checkpoint of this run, whole."""
    with open_regular(path) as file:
        header = parse_json(file.readline(4096))
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise ValueError(f"not of format {FORMAT}")
        if header.get("identity") != identity:
            raise ValueError("it belongs to another run")
        # The size comes before the content: a foreign file may have more bytes than there is memory.
        length = os.fstat(file.fileno()).st_size - file.tell()
        if header.get("length") != length:
            raise ValueError("truncated or damaged")
        payload = file.read(length)
    if header.get("sha256") != hashlib.sha256(payload).hexdigest():
        raise ValueError("truncated or damaged")
    return payload


def _state(payload: bytes, device: Any) -> dict[str, Any]:
    import torch

    state = torch.load(io.BytesIO(payload), map_location=device, weights_only=True)
    if not isinstance(state, dict):
        raise ValueError("it holds no state of a training")
    return state
