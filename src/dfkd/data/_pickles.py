"""What a pickle names and builds, read from its opcodes: nothing in it is imported, called or built.

A pickle of a few hundred bytes can ask for a tuple that holds another twice, which holds another twice, and so on:
to hash it, as a key is hashed, takes longer than anyone waits. And a tuple within a tuple, many thousand times,
overflows the interpreter's stack. Both are seen here, before an unpickler is given the bytes.
"""

import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from typing import IO, Any, NamedTuple

__all__ = ["names_in_pickle"]

MOST_OPCODES = 500_000  # a checkpoint of 1,000 tensors has about 50,000, a batch of CIFAR 50,000
MOST_DEPTH = 100  # of tuples within tuples; checkpoints have 4
MOST_LEAVES = 10_000_000  # that all tuples hold, counted each time they are used; 20 for a tensor

_TUPLES = frozenset({"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET", "REDUCE", "NEWOBJ", "NEWOBJ_EX"})
_PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
_GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})


class _Item(NamedTuple):
    """What lies on the unpickler's stack: how many leaves a tuple has, how deep it is, and the text of a text."""

    leaves: int = 1
    depth: int = 0
    text: str = ""


_MARK = _Item(0)
_LEAF = _Item()


def names_in_pickle(stream: IO[bytes]) -> frozenset[str]:
    """The names (``module.attribute``) that the next pickle of ``stream`` would import; it is read to its end.

    Raises:
        ValueError: no whole pickle, or one that would take unreasonable time, memory or stack to build.
    """
    machine = _Machine()
    for number, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if number > MOST_OPCODES:
            raise ValueError(f"more than {MOST_OPCODES} opcodes")
        machine.do(opcode, argument)
    return frozenset(map(_python3_name, machine.names))


def _python3_name(name: str) -> str:
    """The name that Python 3 has for one of Python 2."""
    module, _, attribute = name.rpartition(".")
    module, attribute = NAME_MAPPING.get((module, attribute), (IMPORT_MAPPING.get(module, module), attribute))
    return f"{module}.{attribute}"


class _Machine:
    """The stack of an unpickler, with sizes in place of values."""

    def __init__(self) -> None:
        self.stack: list[_Item] = []
        self.memo: dict[int, _Item] = {}
        self.names: set[str] = set()
        self.leaves = 0

    def do(self, opcode: Any, argument: Any) -> None:
        name = opcode.name
        if name in _PUTS or name == "MEMOIZE":
            self.memo[len(self.memo) if argument is None else int(argument)] = self._top()
            return
        if name in _GETS:
            item = self.memo.get(int(argument))
            if item is None:
                raise ValueError("an object before it was made")
            self._push(item)
            return
        if name == "DUP":
            self._push(self._top())
            return
        parts = self._take(opcode)
        self._name(name, argument, parts)
        text = argument if isinstance(argument, str) else ""
        for _ in opcode.stack_after:
            result = _join_parts(parts) if name in _TUPLES else parts[0] if name == "BUILD" else _Item(text=text)
            self._push(_MARK if name == "MARK" else result)

    def _top(self) -> _Item:
        if not self.stack:
            raise ValueError("an empty stack")
        return self.stack[-1]

    def _push(self, item: _Item) -> None:
        self.leaves += item.leaves
        if item.depth > MOST_DEPTH or self.leaves > MOST_LEAVES:
            raise ValueError("tuples within tuples without measure")
        self.stack.append(item)

    def _take(self, opcode: Any) -> list[_Item]:
        """What the opcode takes from the stack; the container that it fills is put back unchanged by its size."""
        before = opcode.stack_before
        mark = next((place for place, kind in enumerate(before) if kind is pickletools.markobject), None)
        items: list[_Item] = []
        if mark is not None:
            while self._top() is not _MARK:
                items.append(self.stack.pop())
            self.stack.pop()
        for _ in before if mark is None else before[:mark]:
            items.append(self._top())
            self.stack.pop()
        return items[::-1]

    def _name(self, name: str, argument: Any, parts: list[_Item]) -> None:
        if name in ("GLOBAL", "INST"):
            self.names.add(str(argument).replace(" ", ".", 1))
        elif name == "STACK_GLOBAL":
            self.names.add(".".join(part.text for part in parts))
        elif name.startswith("EXT"):
            raise ValueError("a name of copyreg's registry")


def _join_parts(parts: list[_Item]) -> _Item:
    return _Item(1 + sum(part.leaves for part in parts), 1 + max((part.depth for part in parts), default=0))
