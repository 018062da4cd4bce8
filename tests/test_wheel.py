"""What is published: wheel and sdist are built, and the main job runs from the wheel in an empty environment."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import dfkd
from docs_blocks import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
CLEAN = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}


def run(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Away from the checkout: neither its sources nor its packages are found."""
    return subprocess.run([*map(str, words)], cwd=cwd, env=CLEAN, capture_output=True, text=True)


def environment(folder: Path, *wanted: str | Path) -> Path:
    """The folder of programs of a new, empty environment with these packages, or a skipped test."""
    venv.create(folder, with_pip=True)
    programs = folder / ("Scripts" if sys.platform == "win32" else "bin")
    done = run(programs / "python", "-m", "pip", "install", "--quiet", *wanted, cwd=folder)
    if done.returncode and "No matching distribution" in done.stderr:
        pytest.skip(f"pip finds no packages here: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return programs


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with wheel and sdist."""
    folder = tmp_path_factory.mktemp("built")
    programs = environment(folder / "builder", "hatchling")
    done = run(programs / "python", "-m", "hatchling", "build", "-d", folder / "dist", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return folder / "dist"


def test_both_hold_what_belongs_to_the_package(built: Path) -> None:
    (wheel,), (source,) = built.glob("*.whl"), built.glob("*.tar.gz")
    assert wheel.name == f"dfkd-{dfkd.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
        about = archive.read(f"dfkd-{dfkd.__version__}.dist-info/METADATA").decode()
    here = {path.relative_to(ROOT / "src") for path in (ROOT / "src/dfkd").rglob("*") if path.is_file()}
    assert {str(path) for path in here if "__pycache__" not in path.parts} == {n for n in inside if n[:5] == "dfkd/"}
    assert all(f"Provides-Extra: {extra}\n" in about for extra in ("onnx", "quant", "hub", "wandb", "mlflow"))
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "src/dfkd/__init__.py", "constraints/torch-2.13.txt"} <= names
    assert source.stat().st_size < 5_000_000


def test_the_main_job_runs_from_the_wheel_in_an_empty_environment(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    constraints = ROOT / "constraints/torch-2.13.txt"
    programs = environment(tmp_path / "empty", "-c", constraints, wheel)
    where = run(programs / "python", "-c", "import dfkd; print(dfkd.__file__)", cwd=tmp_path).stdout.strip()
    assert Path(where).is_relative_to(tmp_path / "empty")
    one = ("--runtime.threads", "1", "--runtime.device", "cpu")
    lines = (
        ("demo", "--help"),
        ("doctor",),
        ("teach", "wrn16-2", "--data", "digits", "--plan.epochs", "4", "--out", "teacher", "--quiet", *one),
        (
            *("distill", "nayer/digits-wrn16-2-wrn16-1", "--teacher.weights", "teacher", "--out", "run", *one),
            *("--plan.rounds", "2", "--plan.steps", "10", "--method.steps", "4", "--watch.quiet"),
        ),
        ("predict", "run", ROOT / "docs/assets/report.png"),
    )
    for line in lines:
        done = run(programs / "dfkd", *line, cwd=tmp_path)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    record = json.loads((tmp_path / "run/run.json").read_text("utf-8"))
    assert record["status"] == "finished"
    assert (tmp_path / "run/report.html").is_file()
    assert (tmp_path / "run/student.pt2").is_file()
    shutil.rmtree(tmp_path / "empty")  # more than a gigabyte
