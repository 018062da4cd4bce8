"""Everything that changes, saved so that a killed run continues to the same student, bit for bit.

A save writes new files aside, flushes them to the disk, and renames them; the last rename commits. Whatever happens in
between, the previous save stays whole. Pools are saved incrementally, as segments of the rows added since the last
save. Files are read with ``weights_only=True``: they cannot run code.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dfkd.data.pool import Pool
from dfkd.engine.aside import write_aside
from dfkd.engine.core import Cache
from dfkd.errors import UserError
from dfkd.types import Moments

__all__ = ["COMMIT_FILE", "Checkpoint", "pack", "unpack", "write_aside"]

COMMIT_FILE = "commit.json"
FULL = "free space or permissions, then resume: earlier saves are whole"


class Checkpoint:
    """The checkpoint of a run in ``folder``, as one of ``world`` processes sees it.

    Every process writes its own files; process 0 then commits the save for all by renaming ``commit.json``.
    """

    def __init__(self, folder: Path, rank: int = 0, world: int = 1, barrier: Callable[[], None] = lambda: None) -> None:
        self.folder, self.rank, self.world, self.barrier = folder, rank, world, barrier
        self._segments: dict[str, list[tuple[int, int]]] = {}  # pool -> committed [start, end) of rows ever added

    @property
    def path(self) -> Path:
        """The file whose rename commits a save."""
        return self.folder / COMMIT_FILE

    def exists(self) -> bool:
        """Has anything been saved?"""
        return self.path.exists()

    def rounds(self) -> int:
        """Rounds that were saved; 0 where nothing was.

        Raises:
            UserError: the commit file cannot be read.
        """
        return self.committed()[0] if self.exists() else 0

    def committed(self, who: str = "resume") -> tuple[int, int]:
        """Rounds and processes of the last save; ``who`` needs them.

        Raises:
            UserError: there is none, or it cannot be read.
        """
        try:
            commit = json.loads(self.path.read_text())
            return int(commit["rounds"]), int(commit["world"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _damaged(self.path, error, who) from error

    def save(self, rounds: int, payload: Mapping[str, Any], pools: Mapping[str, Pool]) -> None:
        """Commit ``payload`` (plain values and tensors) and the new rows of every pool, after ``rounds`` rounds.

        Raises:
            UserError: the disk is full or the folder cannot be written; the previous save is still whole.
        """
        segments = {name: self._save_rows(name, pool) for name, pool in pools.items()}
        listed = {name: [list(span) for span in spans] for name, spans in segments.items()}
        whole = {**payload, "segments": listed, "world": self.world, "format": 1}
        write_aside(self._state(rounds), lambda path: torch.save(whole, path), FULL)
        self.barrier()
        if self.rank == 0:
            commit = json.dumps({"rounds": rounds, "world": self.world})
            write_aside(self.path, lambda path: path.write_text(commit), FULL)
        self.barrier()
        self._segments = segments
        self._drop_others(rounds)

    def load(self, pools: Mapping[str, Pool]) -> dict[str, Any]:
        """The last payload; ``pools`` (empty, of the same capacity) get their rows back.

        Raises:
            UserError: a checkpoint of another number of processes, or one that cannot be read.
        """
        rounds, world = self.committed()
        if world != self.world:
            raise UserError(f"resume needs the {world} processes the run began with, got {self.world}; start as many")
        payload = self._read(self._state(rounds))
        try:
            self._segments = {name: [(a, b) for a, b in spans] for name, spans in payload["segments"].items()}
            for name, pool in pools.items():
                for start, end in self._segments[name]:
                    rows = self._read(self._file(name, start, end))
                    pool.added = end - len(next(iter(rows.values())))
                    pool.add(**rows)
        except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
            raise error if isinstance(error, UserError) else _damaged(self._state(rounds), error) from error
        return payload

    def _save_rows(self, name: str, pool: Pool) -> list[tuple[int, int]]:
        """Write the rows added since the last save; returns the spans that make up the pool now."""
        spans = self._segments.get(name, [])
        done = spans[-1][1] if spans else 0
        if pool.added > done:
            rows = {key: value.cpu() for key, value in pool.since(done).items()}
            write_aside(self._file(name, done, pool.added), lambda path: torch.save(rows, path), FULL)
            spans = [*spans, (done, pool.added)]
        return [(start, end) for start, end in spans if end > pool.added - pool.capacity]

    def _state(self, rounds: int) -> Path:
        return self.folder / f"state-{self.rank}-{rounds}.pt"

    def _file(self, name: str, start: int, end: int) -> Path:
        return self.folder / f"pool-{self.rank}-{name}-{start}-{end}.pt"

    def _drop_others(self, rounds: int) -> None:
        """Remove what the committed save does not refer to: older saves, rows that left the ring, cut-off saves."""
        kept = {self._file(name, *span) for name, spans in self._segments.items() for span in spans}
        kept.add(self._state(rounds))
        for path in [*self.folder.glob(f"pool-{self.rank}-*.pt"), *self.folder.glob(f"state-{self.rank}-*.pt")]:
            if path not in kept:
                path.unlink(missing_ok=True)
        for kind in ("pool", "state"):  # what a kill in the middle of a write left behind
            for path in self.folder.glob(f".{kind}-{self.rank}-*.tmp"):
                path.unlink(missing_ok=True)

    @staticmethod
    def _read(path: Path) -> dict[str, Any]:
        try:
            content: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        except Exception as error:  # whatever a damaged file makes the reader raise
            raise _damaged(path, error) from error
        return content


def _damaged(path: Path, error: Exception, who: str = "resume") -> UserError:
    return UserError(
        f"{who} needs a readable checkpoint, got {path} ({type(error).__name__}); start again in a new folder"
    )


def pack(value: Any) -> Any:
    """``value`` as plain containers, numbers and tensors.

    Pools are left out, as they are saved in segments, and so are caches, which can be computed again.
    """
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, nn.Module | Optimizer):
        return value.state_dict()
    if isinstance(value, Pool | Cache):
        return None
    if isinstance(value, Moments):
        return {"moments": [pack(value.mean), pack(value.var)]}
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: pack(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {"dict": {key: pack(item) for key, item in value.items()}}
    if isinstance(value, list | tuple):
        return {"tuple" if isinstance(value, tuple) else "list": [pack(item) for item in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a state needs fields that can be saved, got {type(value).__name__}")


def unpack(saved: Any, into: Any, device: torch.device) -> Any:
    """The inverse of :func:`pack`: modules, optimisers and dataclasses are filled in place, the rest is returned."""
    if isinstance(into, nn.Module | Optimizer):
        into.load_state_dict(saved)
        return into
    if isinstance(into, Pool | Cache):
        return into
    if is_dataclass(into) and not isinstance(into, type):
        for item in fields(into):
            setattr(into, item.name, unpack(saved[item.name], getattr(into, item.name), device))
        return into
    if isinstance(saved, Tensor) and isinstance(into, Tensor) and into.requires_grad:
        with torch.no_grad():  # an optimiser may hold it
            return into.copy_(saved)
    if isinstance(saved, Tensor):
        return saved.to(device) if not isinstance(into, Tensor) else saved.to(into.device)
    if isinstance(saved, dict):
        return _unpack_container(saved, into, device)
    return saved


def _unpack_container(saved: dict[Any, Any], into: Any, device: torch.device) -> Any:
    if saved.keys() == {"moments"}:
        return Moments(*(unpack(part, None, device) for part in saved["moments"]))
    for kind in ("list", "tuple"):
        if saved.keys() == {kind}:
            old = list(into) if isinstance(into, list | tuple) else []
            old += [None] * (len(saved[kind]) - len(old))
            items = [unpack(part, slot, device) for part, slot in zip(saved[kind], old, strict=False)]
            return items if kind == "list" else tuple(items)
    slots = into if isinstance(into, Mapping) else {}
    return {key: unpack(part, slots.get(key), device) for key, part in saved["dict"].items()}


def pools_of(state: Any) -> dict[str, Pool]:
    """Every pool of a state, wherever it is kept, by its dotted path; one that is kept twice counts once."""
    found: dict[str, Pool] = {}
    for path, pool in _walk(state, ""):
        if not any(pool is other for other in found.values()):
            found[path] = pool
    return found


def _walk(value: Any, path: str) -> Iterator[tuple[str, Pool]]:
    """Pools in dataclasses, lists, tuples and dicts, those nearest to the top first."""
    if isinstance(value, Pool):
        yield path, value
        return
    if is_dataclass(value) and not isinstance(value, type):
        parts = {item.name: getattr(value, item.name) for item in fields(value)}
    elif isinstance(value, Mapping):
        parts = {str(key): part for key, part in value.items()}
    elif isinstance(value, list | tuple):
        parts = {str(i): part for i, part in enumerate(value)}
    else:
        return
    for key in sorted(parts, key=lambda key: not isinstance(parts[key], Pool)):
        yield from _walk(parts[key], f"{path}.{key}" if path else key)
