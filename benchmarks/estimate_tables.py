"""Tables of the study of the estimate."""

from pathlib import Path


def judge(file: Path) -> str:
    return file.name
