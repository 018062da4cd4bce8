"""The notebooks: kept without outputs, and executed from the first cell to the last."""

import ast
import importlib.util
import json
from pathlib import Path

import pytest

from docs_blocks import ROOT, named

NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))
NEEDED = {"own-model": ("onnx", "onnxruntime", "onnxscript")}  # beside what executes notebooks


@pytest.mark.parametrize("path", NOTEBOOKS, ids=named)
def test_a_notebook_is_kept_without_outputs(path: Path) -> None:
    held = json.loads(path.read_text("utf-8"))
    assert held["nbformat"] == 4
    cells = [cell for cell in held["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 4
    for cell in cells:
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
        assert ast.parse("".join(cell["source"])).body


def test_there_are_two_and_the_tutorials_lead_to_them() -> None:
    pages = "".join(path.read_text("utf-8") for path in (ROOT / "docs/tutorials").glob("*.md"))
    assert [path.stem for path in NOTEBOOKS] == ["compare-methods", "own-model"]
    assert all(f"(../notebooks/{path.name})" in pages for path in NOTEBOOKS)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("default")  # of the packages that run the kernel
@pytest.mark.parametrize("path", NOTEBOOKS, ids=named)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = [name for name in ("nbclient", "nbformat", "ipykernel", *NEEDED.get(path.stem, ())) if not _there(name)]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}; the extras notebooks and onnx bring them")
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=800, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    told = [output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("%" in text for text in told)
    if path.stem == "own-model":
        assert (tmp_path / "runs/small/export/student-int8.onnx").is_file()


def _there(name: str) -> bool:
    return importlib.util.find_spec(name) is not None
