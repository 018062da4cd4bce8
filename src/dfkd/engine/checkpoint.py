"""Everything that changes, saved so that a killed run continues to the same student, bit for bit.

A save writes new files aside, flushes them to the disk, and renames them; the last rename commits. Whatever happens in
between, the previous save stays whole. Pools are saved incrementally, as segments of the rows added since the last
save. Files are read with ``weights_only=True``: they cannot run code.

The last two saves are kept. A commit file holds the SHA-256 of every file of its save, and of itself: where the newest
save is damaged, the one before is taken.
"""

import json
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from dfkd.data.pool import Pool
from dfkd.engine.aside import write_aside
from dfkd.engine.commits import Save, fault_of, format_save, parse_save, sum_of
from dfkd.engine.states import pack, pools_of, unpack
from dfkd.errors import UserError

__all__ = ["COMMIT_FILE", "Checkpoint", "Save", "pack", "pools_of", "unpack", "write_aside"]

COMMIT_FILE = "commit.json"
EARLIER_FILE = "commit-before.json"
FULL = "free space or permissions, then resume: earlier saves are whole"


class Checkpoint:
    """The checkpoint of a run in ``folder``, as one of ``world`` processes sees it.

    Every process writes its own files; process 0 then commits the save for all by renaming ``commit.json``.
    """

    def __init__(self, folder: Path, rank: int = 0, world: int = 1, barrier: Callable[[], None] = lambda: None) -> None:
        self.folder, self.rank, self.world, self.barrier = folder, rank, world, barrier
        self._segments: dict[str, list[tuple[int, int]]] = {}  # pool -> committed [start, end) of rows ever added
        self._last: Save | None = None  # the newest whole save
        self.notes: list[str] = []  # what was wrong with the saves that were found

    @property
    def path(self) -> Path:
        """The file whose rename commits a save."""
        return self.folder / COMMIT_FILE

    def exists(self) -> bool:
        """Has anything been saved?"""
        return self.path.exists() or (self.folder / EARLIER_FILE).exists()

    def rounds(self) -> int:
        """Rounds of the newest whole save; 0 where nothing was saved.

        Raises:
            UserError: no save is whole.
        """
        return self.newest().rounds if self.exists() else 0

    def newest(self, who: str = "resume") -> Save:
        """The newest save whose files are all as they were written; ``who`` needs it.

        Where that is the one before the last, process 0 warns, and ``notes`` says so.

        Raises:
            UserError: there is none.
        """
        if self._last is not None:
            return self._last
        save, fault = self._check_save(self.path)
        if save is None:
            save, earlier = self._check_save(self.folder / EARLIER_FILE)
            if save is None:
                either = "" if earlier == "missing" else f", and the save before it is damaged too: {earlier}"
                raise _damage_error(self.path, f"{fault}{either}", who)
            self.notes = [f"the newest save is damaged ({fault}); the one before, of {save.rounds} rounds, is used"]
            if self.rank == 0:
                warnings.warn(f"{self.folder}: {self.notes[0]}", stacklevel=2)
        self._last = save
        return save

    def save(self, rounds: int, payload: Mapping[str, Any], pools: Mapping[str, Pool]) -> None:
        """Commit ``payload`` (plain values and tensors) and the new rows of every pool, after ``rounds`` rounds.

        Raises:
            UserError: the disk is full or the folder cannot be written; the previous save is still whole.
        """
        sums: dict[str, str] = {}  # of this process's files
        segments = {name: self._save_rows(name, pool, sums) for name, pool in pools.items()}
        spans_by_name = {name: [list(span) for span in spans] for name, spans in segments.items()}
        content = {**payload, "segments": spans_by_name, "world": self.world, "format": 2}
        self._write(self._state(rounds), content, sums)
        if self.rank > 0:
            text = json.dumps(sums)
            write_aside(self._sums(self.rank, rounds), lambda path: path.write_text(text), FULL)
        self.barrier()
        everything = self._gather_sums(rounds, sums)
        save = Save(rounds, self.world, everything)
        if self.rank == 0:
            self._commit(save)
        self.barrier()
        self._segments, before, self._last = segments, self._last, save
        self._drop_others(save, before)

    def load(self, pools: Mapping[str, Pool]) -> dict[str, Any]:
        """The payload of the newest whole save; ``pools`` (empty, of the same capacity) get their rows back.

        Raises:
            UserError: a checkpoint of another number of processes, or none that can be read.
        """
        save = self.newest()
        if save.world != self.world:
            raise UserError(
                f"resume needs the {save.world} processes the run began with, got {self.world}; start as many"
            )
        payload = self._read_file(self._state(save.rounds))
        try:
            self._segments = {name: [(a, b) for a, b in spans] for name, spans in payload["segments"].items()}
            for name, pool in pools.items():
                for start, end in self._segments[name]:
                    rows = self._read_file(self._file(name, start, end))
                    pool.added = end - len(next(iter(rows.values())))
                    pool.add(**rows)
        except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
            raise error if isinstance(error, UserError) else _unreadable(self._state(save.rounds), error) from error
        return payload

    def pool_files(self, name: str, who: str = "resume") -> list[Path]:
        """The segments of every process's pool ``name`` in the newest whole save, oldest rows first.

        Raises:
            UserError: no save is whole.
        """
        save = self.newest(who)
        spans: list[tuple[int, int, Path]] = []
        for path in self.folder.glob("pool-*.pt"):
            match = re.fullmatch(rf"pool-(\d+)-{re.escape(name)}-\d+-(\d+)\.pt", path.name)
            if match and (save.files is None or path.name in save.files):
                spans.append((int(match[1]), int(match[2]), path))
        return [path for _, _, path in sorted(spans)]

    def _check_save(self, file: Path) -> tuple[Save | None, str]:
        """The save that a commit file names, and what is wrong with it or its files."""
        try:
            save = parse_save(json.loads(file.read_text()))
        except FileNotFoundError:
            return None, "missing"
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            return None, f"{file.name}: {type(error).__name__}"
        for name, digest in (save.files or {}).items():
            fault = fault_of(self.folder / name, digest)
            if fault:
                return None, f"{name}: {fault}"
        return save, ""

    def _commit(self, save: Save) -> None:
        """Keep the commit file of the save before, then replace ``commit.json``."""
        if self._last is not None:
            earlier = format_save(self._last)
            write_aside(self.folder / EARLIER_FILE, lambda path: path.write_text(earlier), FULL)
        text = format_save(save)
        write_aside(self.path, lambda path: path.write_text(text), FULL)
        if self._last is None:  # of another run, that began in this folder before
            (self.folder / EARLIER_FILE).unlink(missing_ok=True)

    def _gather_sums(self, rounds: int, own_sums: Mapping[str, str]) -> dict[str, str]:
        """The files of all processes: their names and sums, as each process left them in the folder."""
        everything = dict(own_sums)
        for rank in range(1, self.world if self.rank == 0 else 1):
            file = self._sums(rank, rounds)
            try:
                everything |= json.loads(file.read_text())
            except (OSError, ValueError) as error:
                raise UserError(
                    f"a save needs one folder that all processes share, got {self.folder} without {file.name} of "
                    f"process {rank}; choose an out on a file system that every machine sees"
                ) from error
        return everything

    def _save_rows(self, name: str, pool: Pool, sums: dict[str, str]) -> list[tuple[int, int]]:
        """Write the rows added since the last save; returns the spans that make up the pool now."""
        spans = self._segments.get(name, [])
        saved_rows = spans[-1][1] if spans else 0
        if pool.added > saved_rows:
            rows = {key: value.cpu() for key, value in pool.since(saved_rows).items()}
            self._write(self._file(name, saved_rows, pool.added), rows, sums)
            spans = [*spans, (saved_rows, pool.added)]
        spans = [(start, end) for start, end in spans if end > pool.added - pool.capacity]
        before = (self._last.files if self._last is not None else None) or {}
        for span in spans:
            path = self._file(name, *span)
            if path.name not in sums:
                sums[path.name] = before.get(path.name) or sum_of(path)
        return spans

    @staticmethod
    def _write(path: Path, content: Mapping[str, Any], sums: dict[str, str]) -> None:
        """Write a file aside and note its SHA-256."""

        def write(aside: Path) -> None:
            torch.save(content, aside)
            sums[path.name] = sum_of(aside)

        write_aside(path, write, FULL)

    def _state(self, rounds: int) -> Path:
        return self.folder / f"state-{self.rank}-{rounds}.pt"

    def _file(self, name: str, start: int, end: int) -> Path:
        return self.folder / f"pool-{self.rank}-{name}-{start}-{end}.pt"

    def _sums(self, rank: int, rounds: int) -> Path:
        return self.folder / f"sums-{rank}-{rounds}.json"

    def _drop_others(self, save: Save, before: Save | None) -> None:
        """Remove what neither of the last two saves refers to: older saves, rows that left the ring, cut-off saves."""
        keep = {*(save.files or {}), self._sums(self.rank, save.rounds).name}
        if before is not None:
            keep |= {*(before.files or {}), self._state(before.rounds).name}
        prefixes = [f"{kind}-{self.rank}-" for kind in ("pool", "state", "sums")]
        for start in prefixes:
            for path in self.folder.glob(f"{start}*"):
                if path.name not in keep:
                    path.unlink(missing_ok=True)
        for start in [*prefixes, *(["commit"] if self.rank == 0 else [])]:
            for path in self.folder.glob(f".{start}*.tmp"):  # left by a kill in the middle of a write
                path.unlink(missing_ok=True)

    @staticmethod
    def _read_file(path: Path) -> dict[str, Any]:
        try:
            content: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        except Exception as error:  # whatever a damaged file makes the reader raise
            raise _unreadable(path, error) from error
        return content


def _unreadable(path: Path, error: Exception) -> UserError:
    return _damage_error(path, type(error).__name__, "resume")


def _damage_error(path: Path, why: str, who: str) -> UserError:
    return UserError(f"{who} needs a readable checkpoint, got {path} ({why}); start again in a new folder")
