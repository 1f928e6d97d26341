"""Files of unknown origin read within bounds, and own files that are whole or absent, whatever happens while they are
written.

A results folder, a data folder or a config.yaml may come from anyone. Whatever lies there in place of a file, a read
ends soon, takes little memory and runs no code: it gives plain values, or raises OSError or ValueError with a reason
of one line.
"""

import contextlib
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator
from functools import cache
from math import isfinite
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from broadopt.errors import AS_FOUND, printable

MEBIBYTE = 2**20

DEPTH = 32
"""Containers within each other that JSON and YAML may hold; broadopt's own files have six."""


def open_regular(path: Path) -> BinaryIO:
    """`path` opened for reading. Raises ValueError where it is no regular file, OSError where it cannot be opened."""
    # Opened before it is looked at, so that nothing can take its place in between; without waiting, since to open a
    # FIFO for reading waits for a writer, for ever if need be.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise ValueError(f"{'a folder' if stat.S_ISDIR(mode) else 'a device, a FIFO or a socket'}, not a regular file")
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path, *, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes. Raises ValueError for any other, OSError where it cannot
    be read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        # A sparse file of any size costs its maker nothing; one that grows while it is read stays within the limit too.
        content = file.read(limit + 1) if size <= limit else b""
    if size > limit or len(content) > limit:
        raise ValueError(f"{max(size, len(content)):,} bytes, expected {limit:,} at most")
    return content


LONGEST_REASON = 1000
"""Characters of a reason; the error may quote a field of a megabyte."""


def reason(error: OSError | ValueError) -> str:
    """Why a file could not be used, in printable words without the path, which the message around them names."""
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    words = printable(" ".join(words.split()))
    return words if len(words) <= LONGEST_REASON else f"{words[:LONGEST_REASON]}..."


def read_json(path: Path, *, limit: int) -> Any:
    """The plain value in a JSON file. Raises as `read_bytes` and `parse_json` do."""
    return parse_json(read_bytes(path, limit=limit))


def parse_json(content: bytes) -> Any:
    """The value in `content`. Raises ValueError for what is no JSON, is nested deeper than DEPTH, or has a number that
    is not finite.
    """
    try:
        value = json.loads(content, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError(f"nested more than {DEPTH} deep") from error
    except ValueError as error:
        raise ValueError(f"not JSON, perhaps truncated ({printable(str(error))})") from error
    _check_bounds(value)
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _check_bounds(value: Any) -> None:
    level = [value]
    for _ in range(DEPTH + 1):
        inner: list[Any] = []
        for item in level:
            kind = type(item)
            if kind is dict:
                inner += item.values()
            elif kind is list:
                inner += item
            elif kind is float and not isfinite(item):  # 1e999, which JSON allows
                raise ValueError("not JSON: it has a number that no float can hold")
        if not inner:
            return
        level = inner
    raise ValueError(f"nested more than {DEPTH} deep")


def read_yaml(path: Path, *, limit: int) -> Any:
    """The plain value in a YAML file: maps, lists, strings, booleans, null, and numbers as OmegaConf writes them.

    Raises as `read_bytes` does, and ValueError for what is no YAML, is nested deeper than DEPTH, names a key twice, or
    has tags, anchors or aliases: nine lines of aliases to aliases are a billion values.
    """
    import yaml

    content = read_bytes(path, limit=limit)
    try:
        return yaml.load(content, Loader=_plain_loader())
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(printable(f"not YAML that is read here: {line}{error.problem}")) from error
    except yaml.YAMLError as error:
        raise ValueError(printable(" ".join(str(error).split()))) from error


DIGITS = "[0-9]+(?:_[0-9]+)*"

NUMBERS = {
    "int": r"[-+]?(?:0|[1-9][0-9_]*|0[0-7_]+|0b[01_]+|0x[0-9a-fA-F_]+)",
    "float": r"[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?"
    rf"|[-+]?(?:{DIGITS}(?:\.(?:{DIGITS})?)?|\.{DIGITS})[eE][-+]?[0-9]+|[-+]?\.{DIGITS}"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
}
"""YAML 1.1's numbers but those to base 60, plus what Python takes for one, as 1e-3 without a dot, which YAML 1.1 takes
for a string. OmegaConf writes a text in quotes where either does, and no other: 9_E5 is a folder."""


@cache
def _plain_loader() -> Any:
    import yaml

    class PlainLoader(yaml.SafeLoader):
        """Values are composed one in the other: whatever is refused, is so before anything is built of it."""

        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            event: Any = self.peek_event()
            if isinstance(event, yaml.AliasEvent) or event.anchor is not None or event.tag is not None:
                raise yaml.MarkedYAMLError(
                    problem="anchors, aliases and tags are not read", problem_mark=event.start_mark
                )
            if self.depth > DEPTH:
                raise yaml.MarkedYAMLError(problem=f"nested more than {DEPTH} deep", problem_mark=event.start_mark)
            self.depth += 1
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            names: set[str] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in names:
                    raise yaml.MarkedYAMLError(problem=f"the key {key.value} twice", problem_mark=key.start_mark)
                names.update([key.value] if isinstance(key, yaml.ScalarNode) else [])
            return super().construct_mapping(node, deep=deep)

    PlainLoader.yaml_implicit_resolvers = {}
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items():
        kept = [entry for entry in resolvers if entry[0].endswith((":bool", ":null"))]
        PlainLoader.yaml_implicit_resolvers[first] = kept
    for name, pattern in NUMBERS.items():
        PlainLoader.add_implicit_resolver(
            f"tag:yaml.org,2002:{name}", re.compile(f"(?:{pattern})$"), [*"-+.0123456789"]
        )
    return PlainLoader


@contextlib.contextmanager
def replacing(path: Path, *, sync: bool = True) -> Iterator[BinaryIO]:
    """A binary file that takes the place of `path` at the end, synced to the disk unless `sync` is false; if anything
    is raised, `path` stays as it was. A link in its place is replaced, and what it leads to stays.
    """
    # Cut short, since a name as long as the file system allows leaves no room for more. Drawn, since two writers may
    # have one number of process, in containers or on hosts that share the folder, and since a link may be laid at a
    # name that can be foreseen.
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        try:
            os.replace(temporary, path)
        except OSError as error:  # a folder in its place: that is named, and not the temporary file
            raise OSError(error.errno, error.strerror, str(path)) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if not sync:
        return
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_output(path: Path, content: bytes) -> None:
    """Write `content` where a user asks for it: a regular file is replaced in one move; a device or a FIFO is written
    to, and what a link leads to is treated as if it had been named. Raises OSError.
    """
    try:
        is_regular = stat.S_ISREG(os.stat(path).st_mode)
    except FileNotFoundError:
        is_regular = True  # nothing there yet, or a link to nothing
    if not is_regular:
        with open(path, "wb") as file:
            file.write(content)
        return
    with replacing(Path(os.path.realpath(path))) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Put a file of `text` in the place of `path`, as `replacing` does: UTF-8 whatever the locale, and bytes of a path
    that are not UTF-8 as they are.
    """
    with replacing(path) as file:
        file.write(text.encode("utf-8", errors=AS_FOUND))


def cache_folder() -> Path:
    """Where what can be made anew is kept from one command to the next: below XDG_CACHE_HOME or the home folder. A user
    without a home, as in many a container, gets a place where nothing can be kept.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.devnull if cache.startswith("~") else cache, "broadopt")
