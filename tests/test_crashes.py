"""SIGKILL at file operations and at random moments: every run resumes, or starts again, to the same student."""

import random
from collections import Counter
from pathlib import Path

import pytest

from crashes import finished
from settings import SETTINGS

TRAINED = "student.safetensors"


def killed_and_resumed(name: str, folder: Path, moments: list[int], half: bool = False) -> tuple[int, int]:
    """Kills that came, and starts it took, in a run that is killed at these file operations of its starts."""
    kills = starts = 0
    for moment in [*moments, None, None]:
        starts += 1
        done, _ = finished(name, folder, kill_at=moment, half=half)
        if done:
            break
        kills += 1
    assert not list(folder.rglob("*.tmp"))
    return kills, starts


@pytest.mark.slow
def test_five_kills(tmp_path: Path) -> None:
    """In the first moments, between the files of the start, and inside the writes of saves."""
    done, operations = finished("NAYER", tmp_path / "whole")
    assert done
    assert operations > 40
    kills, _ = killed_and_resumed("NAYER", tmp_path / "cut", [1, 5, 8, operations // 2, 12])
    assert kills == 5
    assert (tmp_path / "cut" / TRAINED).read_bytes() == (tmp_path / "whole" / TRAINED).read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_kills_of_every_method(name: str, tmp_path: Path) -> None:
    """Twelve kills of each: by operation, in the middle of writes, and by the clock, some in the first second."""
    _, operations = finished(name, tmp_path / "whole")
    wanted = (tmp_path / "whole" / TRAINED).read_bytes()
    dice = random.Random(name)
    counts: Counter[str] = Counter()
    for attempt, half in enumerate((False, True, True)):
        folder = tmp_path / f"cut-{attempt}"
        moments = [dice.randint(1, operations), dice.randint(1, 15), dice.randint(1, 30)]
        kills, starts = killed_and_resumed(name, folder, moments, half)
        counts += Counter(kills=kills, starts=starts)
        assert (folder / TRAINED).read_bytes() == wanted
    folder = tmp_path / "clock"
    for after in (0.3, 0.6, 0.9, dice.uniform(0.5, 2)):
        done, _ = finished(name, folder, after=after)
        counts += Counter(kills=not done, starts=1)
    finished(name, folder)
    assert (folder / TRAINED).read_bytes() == wanted
    assert counts["kills"] >= 8
    print(f"{name}: {counts['kills']} kills in {counts['starts']} starts")
