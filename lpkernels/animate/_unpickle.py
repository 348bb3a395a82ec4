"""Reads pickles of plain data and NumPy arrays, and cannot run anything.

The standard library's disassembler decodes the pickle; the small stack machine here rebuilds constants, lists, tuples,
dicts with text keys, and numeric NumPy arrays, dtypes and scalars from it. No name in a pickle is ever imported or
called: names outside the table below are refused, and those in it only choose a branch of this file.
"""

from __future__ import annotations

import math
import pickletools
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from lpkernels.errors import InputError

MAX_BYTES = 256 * 2**20
# A clip takes 100 to 200 operations a frame. A hostile file of this many one-byte containers stays below 1 GB.
MAX_OPERATIONS = 5_000_000
MAX_DIMENSIONS = 8

# NumPy 2 renamed numpy.core to numpy._core; files hold either.
_KNOWN_NAMES = {
    "numpy.ndarray": "ndarray",
    "numpy.dtype": "dtype",
    **{f"numpy.{core}.multiarray._reconstruct": "reconstruct" for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": "scalar" for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": "frombuffer" for core in ("core", "_core")},
}
_CONSTANTS = (
    *("INT", "LONG", "LONG1", "LONG4", "BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
)
_NUMERIC = re.compile(r"b1|[iu][1248]|f[248]")
_MARK = object()


class _Name:
    """A global of the table, on the stack until a REDUCE uses it."""

    __slots__ = ("role",)

    def __init__(self, role: str) -> None:
        self.role = role


class _Arguments(tuple):
    """A tuple with a name in it, as NumPy's rebuilders take."""

    __slots__ = ()


class _Unfinished:
    """An array (dtype None) or a dtype between its REDUCE and the BUILD that completes it."""

    __slots__ = ("dtype", "memo_keys")

    def __init__(self, dtype: np.dtype | None = None) -> None:
        self.dtype = dtype
        self.memo_keys: list[int] = []


def loads(data: bytes) -> Any:
    """The object in a pickle made of None, bool, int, float, str, bytes, list, tuple, dict and NumPy arrays or scalars.

    Arrays are numeric; they share memory with the bytes they were read from and may be read-only.

    Raises:
        InputError: the pickle is damaged or too large, or holds anything else; the message names it.
    """
    if len(data) > MAX_BYTES:
        raise InputError(f"the pickle must have at most {MAX_BYTES} bytes, got {len(data)}")
    try:
        return _Machine().run(data)
    except InputError:
        raise
    except Exception as error:
        # pickletools and NumPy answer damaged bytes with ValueError, IndexError, TypeError, UnicodeError and others.
        raise InputError(
            f"the pickle is damaged or truncated: {_quoted(str(error) or type(error).__name__)}"
        ) from error


class _Machine:
    """The stack, the memo, and what each opcode of plain data and arrays does to them."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        push = self.stack.append
        self.handlers: dict[str, Callable[[Any], object]] = {
            **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda _: None),
            **dict.fromkeys(_CONSTANTS, push),
            "NONE": lambda _: push(None),
            "NEWTRUE": lambda _: push(True),
            "NEWFALSE": lambda _: push(False),
            "MARK": lambda _: push(_MARK),
            "POP": lambda _: self.stack.pop(),
            "POP_MARK": lambda _: self._pop_to_mark(),
            "DUP": lambda _: push(self.stack[-1]),
            **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda key: push(self.memo[int(key)])),
            **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda key: self._put(int(key))),
            "MEMOIZE": lambda _: self._put(len(self.memo)),
            "EMPTY_LIST": lambda _: push([]),
            "LIST": lambda _: push(_plain(self._pop_to_mark())),
            "APPEND": lambda _: self._extend(self._pop(1)),
            "APPENDS": lambda _: self._extend(self._pop_to_mark()),
            "EMPTY_TUPLE": lambda _: push(()),
            "TUPLE": lambda _: push(_tuple(self._pop_to_mark())),
            "TUPLE1": lambda _: push(_tuple(self._pop(1))),
            "TUPLE2": lambda _: push(_tuple(self._pop(2))),
            "TUPLE3": lambda _: push(_tuple(self._pop(3))),
            "EMPTY_DICT": lambda _: push({}),
            "DICT": lambda _: push(_add_items({}, self._pop_to_mark())),
            "SETITEM": lambda _: self._update(self._pop(2)),
            "SETITEMS": lambda _: self._update(self._pop_to_mark()),
            "GLOBAL": lambda names: push(_known_name(*names.split(" ", 1))),
            "STACK_GLOBAL": lambda _: push(_known_name(*self._pop(2))),
            "REDUCE": lambda _: push(_reduced(*self._pop(2))),
            "BUILD": lambda _: self._build(*self._pop(1)),
        }

    def run(self, data: bytes) -> Any:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if count >= MAX_OPERATIONS:
                raise InputError(f"the pickle must have at most {MAX_OPERATIONS} operations, got more")
            handler = self.handlers.get(opcode.name)
            if handler is None:
                what = opcode.name if argument is None else f"{opcode.name} {argument}"
                raise InputError(
                    f"the pickle asks for {_quoted(what)}: refused, only arrays and plain containers are read"
                )
            handler(argument)
        (result,) = _plain(self._pop(1))
        if self.stack:
            raise ValueError(f"{len(self.stack)} more objects are on the stack")
        return result

    def _pop(self, count: int) -> list[Any]:
        return _complete([self.stack.pop() for _ in range(count)][::-1])

    def _pop_to_mark(self) -> list[Any]:
        items = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return _complete(items[::-1])

    def _put(self, key: int) -> None:
        value = self.memo[key] = self.stack[-1]
        if isinstance(value, _Unfinished):
            value.memo_keys.append(key)

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise ValueError(f"items are appended to {type(target).__name__}")
        target.extend(_plain(items))

    def _update(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict:
            raise ValueError(f"items are set in {type(target).__name__}")
        _add_items(target, items)

    def _build(self, state: Any) -> None:
        unfinished = self.stack.pop()
        if not isinstance(unfinished, _Unfinished):
            raise InputError(f"the pickle sets the state of {type(unfinished).__name__}: refused, only arrays have one")
        if unfinished.dtype is None:
            _, shape, dtype, fortran, content = state
            value: Any = _array(content, dtype, shape, "F" if fortran else "C")
        else:
            value = _ordered(unfinished.dtype, state)
        for key in unfinished.memo_keys:
            self.memo[key] = value
        self.stack.append(value)


def _complete(items: list[Any]) -> list[Any]:
    """``items``, unless one is a mark or an array whose content never came."""
    for item in items:
        if item is _MARK or isinstance(item, _Unfinished):
            raise ValueError("an object is used before it is complete")
    return items


def _plain(items: list[Any]) -> list[Any]:
    """``items``, unless one is a name: nothing that was read may hold one."""
    for item in items:
        if isinstance(item, _Name | _Arguments):
            raise InputError("the pickle holds a class or function: refused, only arrays and plain containers are read")
    return items


def _tuple(items: list[Any]) -> tuple[Any, ...]:
    if any(isinstance(item, _Name) for item in items):
        return _Arguments(items)
    return tuple(_plain(items))


def _add_items(target: dict[str, Any], items: list[Any]) -> dict[str, Any]:
    for key, value in zip(items[::2], _plain(items[1::2]), strict=True):
        # Text hashes are salted: other keys could be chosen to collide and make this take hours.
        if not isinstance(key, str):
            raise InputError(f"the pickle must have text as dict keys, got {type(key).__name__}")
        target[key] = value
    return target


def _known_name(module: object, name: object) -> _Name:
    full = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else "a name that is not text"
    role = _KNOWN_NAMES.get(full)
    if role is None:
        raise InputError(f"the pickle asks for {_quoted(full)}: refused, only arrays and plain containers are read")
    return _Name(role)


def _reduced(function: object, arguments: object) -> Any:
    """What NumPy's function of this role would answer, built here."""
    role = function.role if isinstance(function, _Name) else None
    if not isinstance(arguments, tuple) or role in (None, "ndarray"):
        raise InputError(
            f"the pickle calls {role or type(function).__name__}: refused, only NumPy's rebuilders are known"
        )
    if role == "dtype":
        return _Unfinished(_numeric(arguments[0]))
    if role == "reconstruct":
        if not isinstance(arguments[0], _Name) or arguments[0].role != "ndarray":
            raise InputError("the pickle rebuilds an array subclass: refused, only plain arrays are read")
        return _Unfinished()
    if role == "scalar":
        dtype, content = arguments
        return _array(content, dtype, (), "C")[()]
    content, dtype, shape, order = arguments
    return _array(content, dtype, shape, order)


def _numeric(code: object) -> np.dtype:
    if not isinstance(code, str) or not _NUMERIC.fullmatch(code):
        raise InputError(f"the pickle must hold numeric arrays, got dtype {_quoted(str(code))}")
    return np.dtype(code)


def _ordered(dtype: np.dtype, state: Any) -> np.dtype:
    """``dtype`` with the byte order that its state names; the state of a structured dtype is refused."""
    _, order, *rest = state
    if order not in ("<", ">", "|", "=") or rest[:3] != [None, None, None]:
        raise InputError("the pickle must hold numeric arrays, got a structured dtype")
    return dtype.newbyteorder(order)


def _array(content: object, dtype: object, shape: object, order: object) -> np.ndarray:
    """An array over ``content``, without a copy, if the sizes fit exactly."""
    if not isinstance(dtype, np.dtype) or not isinstance(content, bytes | bytearray):
        raise InputError(f"the pickle must hold numeric arrays as bytes, got {type(content).__name__}")
    if not isinstance(shape, tuple) or len(shape) > MAX_DIMENSIONS or order not in ("C", "F"):
        raise ValueError(f"an array's shape must be a tuple of at most {MAX_DIMENSIONS}")
    if not all(type(size) is int and 0 <= size <= MAX_BYTES for size in shape):
        raise ValueError(f"an array's sizes must be from 0 to {MAX_BYTES}")
    if math.prod(shape) * dtype.itemsize != len(content):
        raise ValueError(f"an array of shape {shape} and {dtype} cannot have {len(content)} bytes")
    return np.ndarray(shape, dtype, content, order=order)


def _quoted(text: str) -> str:
    """Text of the file as one short printable line."""
    return ascii(text[:200])[1:-1]
