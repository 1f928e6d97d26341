"""The images of a results folder, put into the page where they are small."""

import base64
import os
import re
from collections.abc import Sequence
from pathlib import Path

from broadopt.analysis.reporting.parts import Figure
from broadopt.files import read_bytes, reason

LIMIT = 256 * 1024
"""Bytes of one image."""

TOGETHER = 1024 * 1024
"""Bytes of all of them: a report is below 5 MB."""

MOST = 50
"""Files that are looked at."""

KINDS = {".png": "image/png", ".svg": "image/svg+xml"}


def collect(folders: Sequence[Path]) -> tuple[list[Figure], list[str]]:
    """The images in figures/ of some folders, those of the folders below it last, and a line on each that is left out;
    the PNG of a figure that is there as SVG too.
    """
    found: list[Figure] = []
    left_out: list[str] = []
    room = TOGETHER
    paths = _paths(folders)
    for path, name in paths[:MOST]:
        try:
            content = read_bytes(path, limit=LIMIT)
            _check(path, content)
            if len(content) > room:
                raise ValueError(f"all images together are limited to {TOGETHER:,} bytes")
        except (OSError, ValueError) as error:
            left_out.append(f"{path}: {reason(error)}")
            continue
        room -= len(content)
        # An image of a data URI is never run: what a stranger's SVG says to do is not done.
        data = base64.b64encode(content).decode("ascii")
        found.append(Figure(name, f"data:{KINDS[path.suffix.lower()]};base64,{data}"))
    more = len(paths) - MOST
    return found, left_out + ([f"{more} more images: at most {MOST} are looked at"] if more > 0 else [])


def _paths(folders: Sequence[Path]) -> list[tuple[Path, str]]:
    """Files, and what they are called below figures/."""
    paths: list[tuple[Path, str]] = []
    for folder in dict.fromkeys(folders):
        root = folder / "figures"  # which most results folders have not
        inside = [Path(place, name).relative_to(root) for place, _, names in os.walk(root) for name in names]
        images = [path for path in inside if path.suffix.lower() in KINDS]
        drawn = {path.with_suffix("") for path in images if path.suffix.lower() == ".png"}
        kept = [path for path in images if path.suffix.lower() == ".png" or path.with_suffix("") not in drawn]
        paths += [(root / path, path.as_posix()) for path in sorted(kept, key=lambda path: (len(path.parts) > 1, path))]
    return paths


def _check(path: Path, content: bytes) -> None:
    """Raise ValueError where a file is not what its name says."""
    if path.suffix.lower() == ".png":
        if not content.startswith(b"\x89PNG\r\n\x1a\n"):
            raise ValueError("not a PNG image")
    elif not re.search(rb"<svg[\s>]", content):
        raise ValueError("not an SVG image")
