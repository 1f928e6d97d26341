"""Checkpoints: whole or absent, checked before they are believed, free of code.

A file is one line of JSON (format, identity, step, length and SHA-256 of what follows) and then a torch archive of
tensors and plain values.
"""

import hashlib
import io
import json
import logging
import pickle
from pathlib import Path
from typing import Any

from broadopt.files import replacing

log = logging.getLogger("broadopt")

FORMAT = 2
KEPT = 2


def save(folder: Path, state: dict[str, Any], *, identity: str, step: int) -> None:
    """Write `state` (tensors and plain values) as the newest checkpoint of `folder` and keep one older. Raises OSError
    (disk full, ...).
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
    with replacing(folder / f"checkpoint-{step:010d}.ckpt") as file:
        file.write(json.dumps(header).encode() + b"\n")
        file.write(payload)
    for old in files(folder)[KEPT:]:
        old.unlink(missing_ok=True)


def load(folder: Path, *, identity: str, device: Any) -> dict[str, Any] | None:
    """The newest valid state of `folder` with its tensors on `device`, or None. What is found and what is passed over
    is said, a line each.
    """
    for path in files(folder):
        try:
            state = _read(path, identity, device)
        except (OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            log.warning(
                "checkpoint %s is passed over: %s",
                path,
                str(error).splitlines()[0] if str(error) else type(error).__name__,
            )
            continue
        log.warning("going on from %s", path)
        return state
    return None


def files(folder: Path) -> list[Path]:
    """The checkpoints of `folder`, the newest first."""
    return sorted(folder.glob("checkpoint-*.ckpt"), reverse=True)


def _read(path: Path, identity: str, device: Any) -> dict[str, Any]:
    import torch

    with open(path, "rb") as file:
        header = json.loads(file.readline(4096))
        payload = file.read()
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"not of format {FORMAT}")
    if header.get("identity") != identity:
        raise ValueError("it belongs to another run")
    if header.get("length") != len(payload) or header.get("sha256") != hashlib.sha256(payload).hexdigest():
        raise ValueError("truncated or damaged")
    state: dict[str, Any] = torch.load(io.BytesIO(payload), map_location=device, weights_only=True)
    return state
