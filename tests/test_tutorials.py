"""The tutorials from their first line to their last: files, Python and commands in order, commands with less to do."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from dfkd.cli.main import main
from docs_blocks import ROOT, blocks, console_commands, execute, named

PAGES = sorted((ROOT / "docs/tutorials").glob("*.md"))

_PLAN = "--plan.rounds 1 --plan.warmup 1 --plan.steps 1 --plan.batch_size 8"
_RUN = f"{_PLAN} --runtime.device cpu --watch.quiet --watch.figures false --watch.export false"
_NAYER = "--method.steps 1 --method.synthesis_batch 40 --method.batches 2 --method.width 8 --method.channels 4"
LESS = {  # what is put after a command so that it takes a second
    "teach": "--plan.epochs 3 --plan.batch_size 32 --plan.lr 0.05 --quiet --runtime.device cpu",
    "distill": f"{_RUN} {_NAYER}",
    "repeat": _RUN,
    "quantize": f"{_RUN} {_NAYER}",
    "evaluate": "--runtime.device cpu",
}


def shortened(words: tuple[str, ...]) -> list[str]:
    """The command with less to do."""
    more = LESS.get(words[0], "")
    return [*words, *more.split(), *(_NAYER.split() if words[0] == "repeat" and "NAYER" in words else ())]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("path", PAGES, ids=named)
def test_a_tutorial_runs_from_start_to_end(path: Path, empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks(path, "python", "yaml", "console"):
        if block.language != "console":
            execute(path, block, names)
            continue
        for words in console_commands(path, block):
            if words[0] == "quantize" and importlib.util.find_spec("brevitas") is None:
                continue  # the extra quant is not installed
            code = main(shortened(words))
            assert code == 0, f"{' '.join(words)}\n{capsys.readouterr().err}"
