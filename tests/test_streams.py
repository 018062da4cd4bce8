"""Pipes and terminals of any encoding and width, names that would steer them, links that lead out of a run folder."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from dfkd.cli.main import main
from dfkd.cli.streams import decode_word, print_anywhere
from dfkd.errors import UserError
from dfkd.nets.zoo import build
from dfkd.report.files import plain, write_run
from dfkd.report.page import write_page
from dfkd.visible import visible
from test_cli import TINY
from test_report import an_info

STEERING = "\x1b[31mred\u202egnp\u2066\x07"


def shell(words: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    own = {key: value for key, value in os.environ.items() if key not in ("LANG", "LC_ALL", "LC_CTYPE", "COLUMNS")}
    return subprocess.run(
        [sys.executable, "-m", "dfkd.cli.main", *words],
        env={**own, "OMP_NUM_THREADS": "1", **environment},
        cwd=folder,
        capture_output=True,
        timeout=120,
        check=False,
    )


def test_a_pipe_that_is_no_utf8(tmp_path: Path) -> None:
    done = shell(["methods", "NAYER"], tmp_path, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"--method.steps" in done.stdout


@pytest.mark.parametrize(("encoding", "shown"), [("cp1252", "é – × ?"), ("ascii", "? - x ?"), ("utf-8", "é – × 日")])
def test_what_an_encoding_lacks_is_spelled_out(encoding: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    monkeypatch.setattr(sys, "stdout", pipe)
    print_anywhere()
    print("é – × 日", file=pipe, end="", flush=True)
    pipe.buffer.seek(0)
    assert pipe.buffer.read().decode(encoding) == shown


@pytest.mark.slow
def test_a_c_locale_runs_with_names_of_any_script(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(build("wrn10-1", 10, 1).net.state_dict(), tmp_path / "w.pt")
    names = "null,eins,zwei,drei,vier,fünf,sechs,sieben,acht,日本"
    tiny = [word for word in TINY if word != "--data.test"]
    tiny.remove("digits")  # the value of --data.test; that of --data stays
    words = ["distill", "--teacher", "wrn10-1", "--teacher.weights", "w.pt", *tiny, "--plan.rounds", "1"]
    words += ["--data.classes", names, "--text", "index", "--out", "x"]
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = shell(words, tmp_path, **locale)
    assert done.returncode == 0, done.stderr
    run = json.loads((tmp_path / "x/run.json").read_text("utf-8"))
    assert run["info"]["names"] == names.split(",")
    assert json.loads((tmp_path / "x/student.json").read_text("utf-8"))["names"] == names.split(",")
    assert "fünf" in (tmp_path / "x/report.html").read_text("utf-8")
    recipe = yaml.safe_load((tmp_path / "x/recipe.yaml").read_text("utf-8"))
    assert recipe["data"]["classes"] == names.split(",")


def test_words_that_the_locale_could_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    raw = "Käfer".encode().decode("ascii", "surrogateescape")
    assert decode_word(f"--data.classes={raw}") == "--data.classes=Käfer"
    assert decode_word("Käfer") == "Käfer"
    latin = os.fsdecode(b"K\xe4fer")
    assert decode_word(latin) == "K\ufffdfer"
    (tmp_path / latin).mkdir()
    assert decode_word(latin) == latin  # a folder that is there
    assert decode_word(f"folder:{latin}") == f"folder:{latin}"


@pytest.mark.parametrize("words", ["recipes", "methods", "methods KD3", "inspect", "inspect resnet18 --data cifar10"])
def test_tables_fit_a_narrow_terminal(
    words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert main(words.split()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60
    assert len(lines) > 10


def test_what_steers_a_terminal_is_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    assert visible(STEERING) == "\ufffd[31mred\ufffdgnp\ufffd\ufffd"
    assert visible("a\tb\nKäfer 日本 👍") == "a\tb\nKäfer 日本 👍"
    assert visible("\ud800") == "\ufffd"
    assert main(["embed", "--text", "index", "--classes", f"{STEERING},b,c", "--text.encoder", "index"]) == 0
    assert main(["methods", STEERING]) == 2
    told = "".join(capsys.readouterr())
    assert "red" in told
    assert visible(told) == told


def test_the_page_shows_steering_names_as_signs(tmp_path: Path) -> None:
    given = an_info(3, tuple(f"{STEERING}{k}" for k in range(3)))
    write_run(tmp_path, given, None, "running")
    (tmp_path / "metrics.jsonl").write_text("")
    page = write_page(tmp_path).read_text("utf-8")
    assert "\x1b" not in page
    assert visible(page) == page


def test_halves_of_characters_can_be_written() -> None:
    assert (
        json.dumps(plain({"names": ["caf\udce9", "é"]}), ensure_ascii=False).encode()
        == b'{"names": ["caf?", "\xc3\xa9"]}'
    )


def test_a_report_follows_no_link_out_of_the_folder(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    Image.new("L", (77, 33)).save(secret)
    run = tmp_path / "run"
    write_run(run, an_info(), None, "running")
    (run / "metrics.jsonl").write_text("")
    (run / "samples").mkdir()
    (run / "samples/round_00001.png").symlink_to(secret)
    without = write_page(run).read_bytes()
    (run / "samples/round_00001.png").unlink()
    assert write_page(run).read_bytes() == without
    (run / "figures").mkdir()
    (run / "figures/a.png").symlink_to(secret)
    row = {"name": "a", "file": "a.png", "caption": "A", "alt": "a", "numbers": {}}
    (run / "figures/index.json").write_text(json.dumps({"figures": [row], "skipped": {}}))
    with pytest.raises(UserError, match="the report needs a list of figures"):
        write_page(run)
    (run / "figures/a.png").unlink()
    Image.new("L", (77, 33)).save(run / "figures/a.png")
    assert b"figure" in write_page(run).read_bytes()
