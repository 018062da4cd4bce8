"""Kill a run at random moments, resume it each time, compare the student: ``python -m benchmarks.kills --kills 20``.

One run of the digits recipe is left alone. Another, with the same settings and seed, is ended by SIGKILL after random
times and continued with ``dfkd distill --resume`` until it has been killed as often as asked, then left to finish.
Both students have to be equal, byte for byte.
"""

import argparse
import hashlib
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.records import write_record
from benchmarks.rows import DIGITS
from benchmarks.run import TEACHERS, teacher_of

FLAGS = [
    "--plan.rounds", "10", "--plan.warmup", "2", "--plan.steps", "20", "--method.steps", "10",
    "--watch.save_every", "0", "--watch.quiet", "true", "--runtime.threads", "1", "--runtime.device", "cpu",
]  # fmt: skip


def command(*words: str) -> list[str]:
    """The command line of this very environment."""
    return [sys.executable, "-m", "dfkd.cli.main", "distill", *words]


def digest(folder: Path) -> str:
    """SHA-256 of the student's weights file."""
    return hashlib.sha256((folder / "student.safetensors").read_bytes()).hexdigest()


def start(folder: Path) -> list[str]:
    """The first command, or the one that continues what is there."""
    if (folder / "recipe.yaml").exists() and (folder / "run.json").exists():
        return command("--resume", str(folder), "--watch.quiet", "true")
    if folder.exists():
        shutil.rmtree(folder)  # killed before the run began
    weights = str(TEACHERS / f"{DIGITS.name}-{DIGITS.shape[1]}px-wrn16-2.safetensors")
    return command("nayer/digits-wrn16-2-wrn16-1", "--teacher.weights", weights, "--out", str(folder), *FLAGS)


def kill_after(folder: Path, after: float) -> bool:
    """Run for ``after`` seconds, then SIGKILL; False if it had ended by itself."""
    process = subprocess.Popen(start(folder), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True
    if process.returncode:
        raise SystemExit(f"a resumed run failed: {process.stderr.read().decode() if process.stderr else ''}")
    return False


def main() -> None:
    """Run both, compare, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("runs/kills"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    teacher_of(DIGITS, "wrn16-2")
    shutil.rmtree(options.folder, ignore_errors=True)
    whole = options.folder / "whole"
    began = time.monotonic()
    subprocess.run(start(whole), check=True, stdout=subprocess.DEVNULL)
    length = time.monotonic() - began
    dice = random.Random(options.seed)
    moments: list[float] = []
    attempt = 0
    students = []
    while len(moments) < options.kills:
        folder = options.folder / f"killed-{attempt}"
        after = dice.uniform(0.05, 1.1) * length
        if kill_after(folder, after):
            moments.append(round(after, 2))
            continue
        students.append(digest(folder))
        attempt += 1
    last = options.folder / f"killed-{attempt}"
    subprocess.run(start(last), check=True, stdout=subprocess.DEVNULL)
    students.append(digest(last))
    same = all(student == digest(whole) for student in students)
    content = {
        "kills": len(moments),
        "after_seconds": moments,
        "whole_run_seconds": length,
        "finished_runs": len(students),
        "identical": same,
        "sha256": digest(whole),
    }
    write_record("kills", content)
    print(content)
    if not same:
        raise SystemExit("the students differ")


if __name__ == "__main__":
    main()
