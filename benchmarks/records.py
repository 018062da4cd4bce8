"""Records: one JSON file per measurement, with where, when and with what it was taken."""

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import dfkd

RESULTS = Path(__file__).parent / "results"


def write_record(name: str, content: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Write ``results/NAME.json`` with provenance."""
    path = folder / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"name": name, **content, "provenance": provenance()}
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return path


def provenance() -> dict[str, Any]:
    """Versions, machine, the commit that the process began with, time."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **CODE,
        "dfkd": dfkd.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "hardware": f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
    }


def scheduler() -> str:
    """How this process gets its processor time: under "real-time", other load waits and slows nothing down."""
    return "normal" if os.sched_getscheduler(0) == os.SCHED_OTHER else "real-time"


def _git(*words: str) -> str:
    done = subprocess.run(["git", "-C", str(RESULTS.parent), *words], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _code() -> dict[str, Any]:
    """The commit, and whether a file of the library or of the benchmarks differs from it."""
    paths = (":/src", ":/benchmarks", ":(top,exclude)benchmarks/results")
    return {
        "commit": _git("rev-parse", "--short=12", "HEAD"),
        "changed": bool(_git("status", "--porcelain", "--untracked-files=no", "--", *paths)),
    }


# Read when the process begins: a run takes hours, in which others may commit, and it goes on with what was imported.
CODE = _code()
