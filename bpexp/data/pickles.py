"""Pickles of nothing but numbers, texts, bytes, lists, tuples, dicts and numpy arrays of integers.

A pickle is a program, and Python's own reader calls whatever it names. This one calls nothing and imports nothing: it
follows the opcodes that such data needs, knows by name how numpy writes an array, and refuses all else. It holds no
more than a pickle's own bytes stand for: no opcode makes room for what does not follow it.
"""

from __future__ import annotations

import math
import pickletools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class RefusedPickleError(ValueError):
    """A pickle that is not whole, or that holds something else."""


@dataclass(eq=False)
class Array:
    """A numpy array; before its numbers follow it has none."""

    values: NDArray[np.integer] | None = None


def loads(content: bytes) -> object:
    """Return what a pickle holds; bytes for a text of Python 2, an `Array` for a numpy array.

    Raises:  RefusedPickleError: not a whole pickle; anything else in it
    """
    machine, end = _Machine(len(content)), 0
    try:
        with warnings.catch_warnings(action="ignore"):  # of escapes in texts that nobody wrote
            for opcode, argument, place in pickletools.genops(content):
                end = (place or 0) + 1
                if opcode.name != "STOP":
                    machine.follow(opcode.name, argument)
        (result,) = machine.stack
    except RefusedPickleError:
        raise
    # What no opcode expects: an empty stack, an unknown place of the memo, an argument of another type.
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise RefusedPickleError("is not a whole pickle") from error
    if end != len(content) or machine.below:
        raise RefusedPickleError("is not a pickle to its end")
    return result


class _Name(NamedTuple):
    """What a pickle names by its module; it is never imported."""

    module: str
    name: str

    @property
    def known(self) -> str:
        """Return its name where an array, or bytes in the form that Python 2 reads, needs it; "" elsewhere."""
        return _KNOWN.get(tuple(self), "")


_NUMPY = ("numpy.core", "numpy._core")
_KNOWN: dict[tuple[str, ...], str] = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("_codecs", "encode"): "encode",
    ("__builtin__", "bytes"): "bytes",
    **{(f"{core}.multiarray", "_reconstruct"): "reconstruct" for core in _NUMPY},
    **{(f"{core}.numeric", "_frombuffer"): "frombuffer" for core in _NUMPY},
}


@dataclass
class _Type:
    """The type of an array's numbers: a kind and a size such as u1, and the order of the bytes."""

    code: str
    order: str = "|"


class _Machine:
    """The stack, the stacks below the last marks, and the memo."""

    def __init__(self, size: int) -> None:
        self.size = size  # bytes of texts that are still to be encoded, at most: each once
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def follow(self, name: str, argument: Any) -> None:
        """Do what an opcode says.

        Raises:  RefusedPickleError: an opcode that plain data does not need
        """
        if name in _PUSHED:
            self.stack.append(argument)
        elif name in _OPCODES:
            _OPCODES[name](self, argument)
        elif name not in _IGNORED:
            raise RefusedPickleError(f"has the opcode {name}")

    def marked(self) -> list[Any]:
        """Return what stands above the last mark, and take it away."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def name(self, module: str, name: str) -> None:
        found = _Name(module, name)
        if not found.known:
            shown = f"{module}.{name}"[:80]
            raise RefusedPickleError(f"holds {shown if shown.isprintable() else ascii(shown)}")
        self.stack.append(found)

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise TypeError("append to another")
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict:
            raise TypeError("a pair for another")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # A hash of tuples within tuples can take for ever.
            if type(key) not in (str, bytes, int):
                raise RefusedPickleError("has a key that is neither a text nor a number")
            target[key] = value

    def reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(function) is not _Name or type(arguments) is not tuple:
            raise TypeError("a call of another")
        match function.known, arguments:
            case "reconstruct", (_Name(known="ndarray"), (0,), _):
                self.stack.append(Array())
            case "dtype", (str() | bytes() as code, *_):
                self.stack.append(_Type(_text(code)))
            case "frombuffer", (bytes() | bytearray() as raw, _Type() as dtype, tuple() as shape, order):
                self.stack.append(Array(_numbers(raw, dtype, shape, by_columns=order == "F")))
            case "encode", (str() as text, "latin1") if len(text) <= self.size:
                self.size -= len(text)
                self.stack.append(text.encode("latin1"))
            case "bytes", ():
                self.stack.append(b"")
            case _:
                raise RefusedPickleError(f"calls {function.module}.{function.name} as numpy does not")

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        match target, state:
            case _Type(), (_, str() | bytes() as order, *_):
                target.order = _text(order)
            case Array(values=None), (_, tuple() as shape, _Type() as dtype, by_columns, bytes() | bytearray() as raw):
                target.values = _numbers(raw, dtype, shape, by_columns=bool(by_columns))
            case _:
                raise RefusedPickleError("holds an array that is not of integers")


def _text(value: str | bytes) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else value


def _numbers(raw: bytes | bytearray, dtype: _Type, shape: tuple[Any, ...], *, by_columns: bool) -> NDArray[np.integer]:
    """Return the array of some bytes.

    Raises:  RefusedPickleError: other numbers than integers; a shape of another size
    """
    import numpy as np

    code = dtype.code
    if len(code) != 2 or code[0] not in "iu" or code[1] not in "1248" or dtype.order not in ("|", "<", ">", "="):
        raise RefusedPickleError(f"holds an array of type {code!r}"[:100])
    if not _is_shape(shape) or math.prod(shape) * int(code[1]) != len(raw):
        raise RefusedPickleError("holds an array whose shape is not that of its bytes")
    return np.frombuffer(raw, np.dtype(dtype.order + code)).reshape(shape, order="F" if by_columns else "C")


def _is_shape(shape: tuple[Any, ...]) -> TypeGuard[tuple[int, ...]]:
    return 1 <= len(shape) <= 8 and all(type(length) is int and length >= 0 for length in shape)


def _latin(machine: _Machine, text: str) -> None:
    machine.stack.append(text.encode("latin1"))


def _mark(machine: _Machine) -> None:
    machine.below.append(machine.stack)
    machine.stack = []


def _tuple_of(count: int) -> Callable[[_Machine, Any], None]:
    def make(machine: _Machine, _: Any) -> None:
        if count > len(machine.stack):
            raise IndexError(count)
        items = tuple(machine.stack[len(machine.stack) - count :])
        del machine.stack[len(machine.stack) - count :]
        machine.stack.append(items)

    return make


def _from_mark(kind: Callable[[list[Any]], Any]) -> Callable[[_Machine, Any], None]:
    def make(machine: _Machine, _: Any) -> None:
        items = machine.marked()
        machine.stack.append(kind(items))

    return make


def _memoize(machine: _Machine, place: int | None) -> None:
    machine.memo[len(machine.memo) if place is None else place] = machine.stack[-1]


def _pairs(machine: _Machine, _: Any) -> None:
    items = machine.marked()
    machine.stack.append({})
    machine.set_items(items)


def _one_pair(machine: _Machine, _: Any) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    machine.set_items([key, value])


def _stack_global(machine: _Machine, _: Any) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    if type(name) is not str or type(module) is not str:
        raise TypeError("a name that is no text")
    machine.name(module, name)


_IGNORED = {"PROTO", "FRAME"}
_PUSHED = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_OPCODES: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING"), _latin),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _memoize),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda machine, place: machine.stack.append(machine.memo[place])),
    "NONE": lambda machine, _: machine.stack.append(None),
    "NEWTRUE": lambda machine, _: machine.stack.append(True),
    "NEWFALSE": lambda machine, _: machine.stack.append(False),
    "MARK": lambda machine, _: _mark(machine),
    "EMPTY_TUPLE": lambda machine, _: machine.stack.append(()),
    **{f"TUPLE{count}": _tuple_of(count) for count in (1, 2, 3)},
    "TUPLE": _from_mark(tuple),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "LIST": _from_mark(list),
    "APPEND": lambda machine, _: machine.append([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.marked()),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "DICT": _pairs,
    "SETITEM": _one_pair,
    "SETITEMS": lambda machine, _: machine.set_items(machine.marked()),
    "GLOBAL": lambda machine, names: machine.name(*names.split(" ", 1)),
    "STACK_GLOBAL": _stack_global,
    "REDUCE": lambda machine, _: machine.reduce(),
    "BUILD": lambda machine, _: machine.build(),
}
