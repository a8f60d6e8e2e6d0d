"""Looking through a pickle before anything of it is built.

PyTorch's restricted unpickler runs no code, but it builds whatever it is told to: tuples so deep
or so often inside of themselves that hashing one ends or hangs the process, arrays as large as the
memory, messages that print all of that.  Checkpoints need none of it.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable
from pickle import UnpicklingError
from typing import IO, NamedTuple

MOST_OF_A_TUPLE = 10_000
"""Bound of what a tuple holds, with all that its tuples hold."""

KNOWN = re.compile(
    r"collections (OrderedDict|Counter)"
    r"|torch\._utils _rebuild_(tensor|tensor_v2|tensor_v3|parameter)"
    r"|torch(\.storage)? \w+Storage"
    r"|torch (device|Size|u?int\d+|b?float\w+|complex\d+|half|double|long|short|bool)",
    re.ASCII,
)
"""What is asked for by name: the parts of tensors, and what optimizers keep beside them."""

CALLED = re.compile(r"collections \w+|torch\._utils \w+|torch (device|Size)", re.ASCII)


class _Value(NamedTuple):
    """What is known of a value: its kind and, of a tuple, how much it holds."""

    kind: str
    size: int = 1


_PLAIN, _MARK, _DICT, _RESULT = (_Value(kind) for kind in ("plain", "mark", "dict", "result"))
_ORDERED = "collections OrderedDict"


def check_pickle(stream: IO[bytes]) -> None:
    """Read one pickle to its end and raise `UnpicklingError` if no checkpoint has the like."""
    scan = _Scan()
    for opcode, argument, _ in pickletools.genops(stream):
        step = _STEPS.get(opcode.name)
        if step is None:
            raise UnpicklingError(f"{opcode.name} is not used in checkpoints")
        step(scan, argument)


class _Scan:
    """The unpickler's stack and memo, without the values."""

    def __init__(self) -> None:
        self.stack: list[_Value] = []
        self.memo: dict[object, _Value] = {}

    def nothing(self, _: object) -> None:
        """Neither take nor leave a value."""

    def push(self, value: _Value) -> None:
        self.stack.append(value)

    def ask(self, name: object) -> None:
        """Push what has a name."""
        if not isinstance(name, str) or not KNOWN.fullmatch(name):
            raise UnpicklingError(f"{name} is no part of a checkpoint")
        self.push(_Value(name))

    def keep(self, number: object) -> None:
        self.memo[number] = self.stack[-1]

    def recall(self, number: object) -> None:
        self.push(self.memo[number])

    def pop(self, count: int = 1) -> list[_Value]:
        taken = self.stack[len(self.stack) - count :]
        if len(taken) < count or _MARK in taken:
            raise UnpicklingError("there are too few values")
        del self.stack[len(self.stack) - count :]
        return taken

    def pop_to_mark(self) -> list[_Value]:
        start = len(self.stack) - self.stack[::-1].index(_MARK)
        items = self.pop(len(self.stack) - start)
        self.stack.pop()
        return items

    def join(self, items: list[_Value]) -> None:
        """Push a tuple."""
        size = 1 + sum(item.size for item in items)
        if size > MOST_OF_A_TUPLE:
            raise UnpicklingError("a tuple holds too much")
        self.push(_Value("tuple", size))

    def call(self, _: object) -> None:
        function, _arguments = self.pop(2)
        if not CALLED.fullmatch(function.kind):
            raise UnpicklingError(f"{function.kind} is called")
        self.push(_Value("ordered") if function.kind == _ORDERED else _RESULT)

    def build(self, _: object) -> None:
        """Give a dictionary its attributes; state dicts have some."""
        instance, state = self.pop(2)
        if (instance.kind, state) != ("ordered", _DICT):
            raise UnpicklingError(f"{instance.kind} has attributes")
        self.push(instance)

    def load(self, _: object) -> None:
        """Push a storage for its key, which is a tuple."""
        self.pop()
        self.push(_RESULT)


_Step = Callable[[_Scan, object], object]
_NUMBERS = ("BININT", "BININT1", "BININT2", "BINFLOAT", "LONG1", "NONE", "NEWTRUE", "NEWFALSE")

_STEPS: dict[str, _Step] = {
    **dict.fromkeys(
        (*_NUMBERS, "BINUNICODE", "SHORT_BINSTRING"), lambda scan, _: scan.push(_PLAIN)
    ),
    **dict.fromkeys(("EMPTY_LIST", "EMPTY_SET"), lambda scan, _: scan.push(_RESULT)),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Scan.keep),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Scan.recall),
    "PROTO": _Scan.nothing,
    "STOP": lambda scan, _: scan.pop(1),
    "MARK": lambda scan, _: scan.push(_MARK),
    "EMPTY_DICT": lambda scan, _: scan.push(_DICT),
    "EMPTY_TUPLE": lambda scan, _: scan.join([]),
    "TUPLE1": lambda scan, _: scan.join(scan.pop(1)),
    "TUPLE2": lambda scan, _: scan.join(scan.pop(2)),
    "TUPLE3": lambda scan, _: scan.join(scan.pop(3)),
    "TUPLE": lambda scan, _: scan.join(scan.pop_to_mark()),
    "APPEND": lambda scan, _: scan.pop(1),
    "SETITEM": lambda scan, _: scan.pop(2),
    "APPENDS": lambda scan, _: scan.pop_to_mark(),
    "SETITEMS": lambda scan, _: scan.pop_to_mark(),
    "GLOBAL": _Scan.ask,
    "REDUCE": _Scan.call,
    "BUILD": _Scan.build,
    "BINPERSID": _Scan.load,
}
