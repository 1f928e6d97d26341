"""The pickles of the CIFAR files, read without trusting them."""

import io
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np

from broadopt.errors import InputError, printable


def unpickle(path: Path, blob: bytes) -> dict[str, Any]:
    """The dictionary pickled in `blob`, its keys as str, its arrays as read-only uint8; `path` is for messages only.

    Nothing but dicts, lists, numbers, strings, bytes and uint8 arrays is ever built, in memory and time proportional
    to the blob: a pickle that asks for anything else is refused. Raises InputError for those, and for truncated or
    malformed ones.
    """
    try:
        content = _Unpickler(io.BytesIO(blob), encoding="bytes").load()
    except _UNPICKLING_ERRORS as error:
        reason = printable(" ".join(str(error).split())) or type(error).__name__
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
    AssertionError,
    NotImplementedError,
    struct.error,
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
        if not isinstance(shape, tuple) or not all(type(length) is int for length in shape):
            raise pickle.UnpicklingError("refused: its pickle asks for an array of no shape")
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
    if not isinstance(characters, str | bytes):  # str() of a list of lists of lists, each twice, has no end
        raise pickle.UnpicklingError("refused: its pickle asks for bytes of something else than a string")
    return characters if isinstance(characters, bytes) else characters.encode("latin1")


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


MOST = 5_000_000
"""Operations of a pickle; the largest of the published ones has 300,000. Each may take a hundred bytes of memory."""

# Sets hash what is in them, and the hash of a tuple of tuples, each twice, takes for ever; the others lead elsewhere.
_REFUSED = (
    *(pickle.EMPTY_SET, pickle.FROZENSET, pickle.ADDITEMS, pickle.PERSID, pickle.BINPERSID, pickle.EXT1, pickle.EXT2),
    *(pickle.EXT4, pickle.INST, pickle.OBJ, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),
)


class _Operations(dict[int, Any]):
    """The unpickler's operations by their codes, counted as they are looked up."""

    left = MOST

    def __getitem__(self, code: int) -> Any:
        self.left -= 1
        if self.left < 0:
            raise pickle.UnpicklingError(f"refused: its pickle has more than {MOST:,} operations")
        if code not in self:
            raise pickle.UnpicklingError(f"refused: its pickle asks for the operation {bytes([code])!r}")
        return super().__getitem__(code)


_InPython: Any = pickle._Unpickler  # what pickle itself falls back on where there is none in C
"""Not the unpickler in C, which sets aside as much memory as a length or a number in the pickle asks for."""


class _Unpickler(_InPython):
    def __init__(self, file: io.BytesIO, *, encoding: str) -> None:
        super().__init__(file, encoding=encoding)
        self.size = len(file.getbuffer())
        operations = {code: call for code, call in super().dispatch.items() if bytes([code]) not in _REFUSED}
        for code, call in ((pickle.SETITEM, "setitem"), (pickle.SETITEMS, "setitems"), (pickle.DICT, "dict")):
            operations[code[0]] = getattr(type(self), f"load_{call}")
        operations[pickle.BYTEARRAY8[0]], operations[pickle.BUILD[0]] = (
            type(self).load_bytearray8,
            type(self).load_build,
        )
        self.dispatch = _Operations(operations)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"refused: its pickle asks for {module}.{name}")
        return _STAND_INS[module, name]

    def load_setitem(self) -> None:
        _check_keys(self.stack[-2:-1])
        super().load_setitem()

    def load_setitems(self) -> None:
        _check_keys(self.stack[::2])  # what was put there since the mark
        super().load_setitems()

    def load_dict(self) -> None:
        _check_keys(self.stack[::2])
        super().load_dict()

    def load_build(self) -> None:
        if not isinstance(self.stack[-2], _Array | _Uint8):
            raise pickle.UnpicklingError("refused: its pickle asks to alter what is no array")
        super().load_build()

    def load_bytearray8(self) -> None:
        (length,) = struct.unpack("<Q", self.read(8))
        if length > self.size:
            raise pickle.UnpicklingError("pickle data was truncated")
        self.append(bytearray(self.read(length)))


def _check_keys(keys: list[Any]) -> None:
    if not all(isinstance(key, str | bytes | int) for key in keys):
        raise pickle.UnpicklingError("refused: its pickle asks for a dictionary with keys that are no strings")
