"""Pickles of plain values, read without running anything that they ask for."""

import io
import pickle
from collections.abc import Callable, Iterable, Sized
from typing import Any, NoReturn

import numpy as np

_NUMBER_CODES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
_PLAIN_TYPES = str | bytes | int | float | complex | None
_MAX_KEY_LENGTH = 16


def _check_keys(keys: Iterable[Any]) -> Iterable[Any]:
    """Return keys of a dictionary or a set unchanged; raise where one is not plain.

    Nested tuples may take for ever to be hashed, so flat ones alone are allowed.
    """
    for key in keys:
        is_flat = isinstance(key, tuple) and len(key) <= _MAX_KEY_LENGTH
        if not all(isinstance(part, _PLAIN_TYPES) for part in (key if is_flat else (key,))):
            raise pickle.UnpicklingError(f"it has a {type(key).__name__} as a key")
    return keys


def _set(items: Any = ()) -> set:
    if not isinstance(items, list | tuple | set | frozenset):
        raise pickle.UnpicklingError(f"it makes a set of a {type(items).__name__}")
    return set(_check_keys(items))


def _frozenset(items: Any = ()) -> frozenset:
    return frozenset(_set(items))


def _complex(real: Any, imaginary: Any) -> complex:
    return complex(float(real), float(imaginary))


def _encode_bytes(text: Any, encoding: Any = "latin1") -> bytes:
    """Encode text as Latin-1: Python 3 writes bytes so for Python 2."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("it asks for an encoding")
    return text.encode("latin-1")


def _empty_bytes() -> bytes:
    return b""


class _NumberType:
    """In place of `numpy.dtype`, which crashes where a pickle hands it the wrong values."""

    def __init__(self, code: Any, *_: Any):
        if code not in _NUMBER_CODES:
            raise pickle.UnpicklingError("it asks for an array's type that is no number")
        self.code, self.order = code, "<"

    def set_order(self, state: Any) -> None:
        """By the state that NumPy writes: (version, order of bytes, None three times, …)."""
        is_state = isinstance(state, tuple) and state[2:5] == (None, None, None)
        order = state[1] if is_state else None
        if order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError("it asks for an array's type that is no number")
        self.order = "<" if order == "|" else order


def _numpy_scalar(kind: Any, stored: Any = b"") -> Any:
    """Convert a NumPy scalar, which some writers left among plain numbers, to a plain number."""
    if isinstance(stored, str):  # Python 2 wrote bytes as text
        stored = stored.encode("utf-8", "surrogateescape")
    if not isinstance(kind, _NumberType) or not isinstance(stored, bytes):
        raise pickle.UnpicklingError("it asks for a number of NumPy that is none")
    if len(stored) != int(kind.code[1]):
        raise pickle.UnpicklingError(f"it has {len(stored)} bytes for a number of {kind.code}")
    return np.frombuffer(stored, np.dtype(kind.order + kind.code))[0].item()


_ALLOWED_CALLABLES: dict[tuple[str, str], Callable[..., Any]] = {
    ("builtins", "set"): _set,
    ("builtins", "frozenset"): _frozenset,
    ("builtins", "complex"): _complex,
    ("__builtin__", "set"): _set,
    ("__builtin__", "frozenset"): _frozenset,
    ("__builtin__", "complex"): _complex,
    ("_codecs", "encode"): _encode_bytes,
    ("builtins", "bytes"): _empty_bytes,  # as protocols before 3 write empty ones
    ("__builtin__", "bytes"): _empty_bytes,
    ("numpy", "dtype"): _NumberType,
    ("numpy.core.multiarray", "scalar"): _numpy_scalar,
    ("numpy._core.multiarray", "scalar"): _numpy_scalar,
}
_REFUSED_OPCODES = (
    *(pickle.INST, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX),
    *(pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.PERSID, pickle.BINPERSID),
    *(pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),
)
_KEY_POSITIONS = {  # where the keys lie on the stack when one of these is read
    pickle.SETITEM: slice(-2, -1),
    pickle.SETITEMS: slice(0, None, 2),
    pickle.DICT: slice(0, None, 2),
    pickle.ADDITEMS: slice(0, None),
    pickle.FROZENSET: slice(0, None),
}
_Unpickler: Any = pickle._Unpickler


def _with_key_check(code: bytes) -> Callable[[Any], None]:
    """Wrap the reader of an opcode that makes keys, so that the keys are checked first."""
    read, keys = _Unpickler.dispatch[code[0]], _KEY_POSITIONS[code]

    def read_checked(reader: Any) -> None:
        _check_keys(reader.stack[keys])
        read(reader)

    return read_checked


class PlainUnpickler(_Unpickler):
    """Reads lists, dictionaries, sets, texts and numbers; raises for anything else.

    Python's own unpickler in Python, not the one in C: that one sets aside as much memory as a
    pickle of a few bytes asks for. Bytes of Python 2's texts that are no UTF-8 are kept as
    `surrogateescape` does.
    """

    def __init__(self, stored: bytes):
        super().__init__(io.BytesIO(stored), encoding="utf-8", errors="surrogateescape")
        # a value that is written once may be referred to again: without a budget, a few bytes would
        # build a thousand copies of it
        self._budget = len(stored)

    def find_class(self, module: str, name: str) -> Any:
        """The callable that stands for a name; raises for any that is not plain."""
        if (module, name) not in _ALLOWED_CALLABLES:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _ALLOWED_CALLABLES[module, name]

    def _refuse(self) -> NoReturn:
        raise pickle.UnpicklingError("it holds more than plain values")

    def _reduce(self) -> None:
        arguments, maker = self.stack.pop(), self.stack.pop()
        if not any(maker is known for known in _ALLOWED_CALLABLES.values()):
            self._refuse()
        self._budget -= sum(len(value) for value in arguments if isinstance(value, Sized))
        if self._budget < 0:
            raise pickle.UnpicklingError("it makes more than it holds")
        self.stack.append(maker(*arguments))

    def _build(self) -> None:
        state, built = self.stack.pop(), self.stack[-1]
        if not isinstance(built, _NumberType):
            self._refuse()
        built.set_order(state)

    dispatch = (
        _Unpickler.dispatch
        | dict.fromkeys((code[0] for code in _REFUSED_OPCODES), _refuse)
        | {code[0]: _with_key_check(code) for code in _KEY_POSITIONS}
        | {pickle.REDUCE[0]: _reduce, pickle.BUILD[0]: _build}
    )
