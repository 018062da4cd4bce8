"""The commit file of a checkpoint: which files one save is made of, with the SHA-256 of each, and of itself."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Save", "fault_of", "parse_save", "sum_of", "format_save"]


@dataclass(frozen=True)
class Save:
    """One committed save, as its commit file names it.

    Attributes:
        rounds: finished when it was made.
        world: processes of the run.
        files: name and SHA-256 of every file of every process; None in saves of dfkd before it wrote them.
    """

    rounds: int
    world: int
    files: dict[str, str] | None


def parse_save(row: Any) -> Save:
    """A commit file's content. Raises ValueError, KeyError or TypeError where it is not as it was written."""
    if row.keys() == {"rounds", "world"}:  # dfkd before it kept sums
        return Save(int(row["rounds"]), int(row["world"]), None)
    save = Save(int(row["rounds"]), int(row["world"]), dict(row["files"]))
    if row["sha256"] != _own_sum(save):
        raise ValueError("the sum of the commit file differs")
    if any(Path(name).name != name for name in save.files or {}):
        raise ValueError("a file outside the folder")
    return save


def format_save(save: Save) -> str:
    """The content of a commit file."""
    if save.files is None:
        return json.dumps({"rounds": save.rounds, "world": save.world})
    row = {"rounds": save.rounds, "world": save.world, "files": save.files, "sha256": _own_sum(save)}
    return json.dumps(row, indent=1)


def _own_sum(save: Save) -> str:
    text = json.dumps([save.rounds, save.world, sorted((save.files or {}).items())])
    return hashlib.sha256(text.encode()).hexdigest()


def sum_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def fault_of(path: Path, digest: str) -> str:
    """Why a file is not the one that was written; empty where it is."""
    try:
        return "" if sum_of(path) == digest else "its SHA-256 is another"
    except OSError as error:
        return error.strerror or type(error).__name__
