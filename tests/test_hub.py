"""Publishing and fetching, against a stand-in of the hub on this machine that speaks the same protocol."""

import base64
import importlib.util
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import dfkd
from dfkd.cli.main import main
from dfkd.deploy.card import card_of
from dfkd.deploy.hub import fetch
from dfkd.deploy.publish import push
from dfkd.ops.pixels import as_images

needs_hub = pytest.mark.skipif(
    importlib.util.find_spec("huggingface_hub") is None, reason="the extra hub is not installed: huggingface_hub"
)
TOKEN = "hf_standin"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Repositories in memory: name to files."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.fail_commit = False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """The few requests that pushing and fetching make."""

    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def reply(self, status: int, body: Any = None, **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body if body is not None else {}).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self.chunks()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.reply(401, {"error": "Invalid username or password."})
            return
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts == ["api", "validate-yaml"]:
            self.reply(200, {"errors": [], "warnings": []})
        elif parts[:3] == ["api", "repos", "create"]:
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.server.repositories.setdefault(name, {})
            if asked.get("private") or asked.get("visibility") == "private":
                self.server.private.add(name)
            self.reply(200, {"url": f"{self.server.address}/{name}", "name": name})
        elif parts[4] == "preupload":
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            self.reply(200, {"files": files})
        elif parts[4] == "commit":
            self.commit("/".join(parts[2:4]), body)
        else:
            self.reply(404)

    def commit(self, name: str, body: bytes) -> None:
        if self.server.fail_commit:
            self.reply(500, {"error": "Internal error"})
            return
        for line in body.decode().splitlines():
            row = json.loads(line)
            if row["key"] == "file":
                self.server.repositories[name][row["value"]["path"]] = base64.b64decode(row["value"]["content"])
        self.reply(200, {"commitUrl": f"{self.server.address}/{name}/commit/{COMMIT}", "commitOid": COMMIT})

    def chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline().strip() or b"0", 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        return b"".join(parts)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        if name == "me/gated":
            self.reply(403, {"error": "gated"}, X_Error_Code="GatedRepo", X_Error_Message="ask for access")
        elif name not in self.server.repositories:
            self.reply(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        elif parts[0] == "api" and "tree" in parts:
            files = self.server.repositories[name]
            self.reply(200, [{"type": "file", "path": f, "size": len(c), "oid": f} for f, c in files.items()])
        elif parts[0] == "api":
            siblings = [{"rfilename": f} for f in self.server.repositories[name]]
            self.reply(200, {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "private": False})
        else:
            content = self.server.repositories[name].get("/".join(parts[4:]))
            if content is None:
                self.reply(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
            else:
                tag = f'"{hash(content) & 0xFFFFFFFF:08x}"'
                self.reply(200, content, ETag=tag, X_Repo_Commit=COMMIT)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    from huggingface_hub import constants

    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.chdir(tmp_path)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def front_matter(card: str) -> dict[str, Any]:
    matter: dict[str, Any] = yaml.safe_load(card.split("---")[1])
    return matter


@needs_hub
def test_what_is_pushed_is_loaded_by_its_name(hub: Hub, finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(finished_run), "me/small-digits", "--licence", "mit", "--private"]) == 0
    assert capsys.readouterr().out.strip() == f"{hub.address}/me/small-digits"
    files = hub.repositories["me/small-digits"]
    assert set(files) == {"README.md", "student.safetensors", "student.json", "student.pt2"}
    assert hub.private == {"me/small-digits"}
    assert files["student.safetensors"] == (finished_run / "student.safetensors").read_bytes()
    images = as_images(dfkd.read_images("digits").images[:9])
    torch.testing.assert_close(dfkd.load("me/small-digits")(images), dfkd.load(finished_run)(images))
    assert front_matter(files["README.md"].decode())["license"] == "mit"


@needs_hub
def test_a_published_description_cannot_name_code_on_this_machine(hub: Hub, finished_run: Path) -> None:
    code = {"name": "os:abort", "classes": 10, "channels": 1}
    faults = {"me/a": (code, "code to be named by you"), "me/b": ({"class": "m.Small"}, "name of the network")}
    for name, (network, told) in faults.items():
        push(finished_run, name)
        about = json.loads(hub.repositories[name]["student.json"])
        hub.repositories[name]["student.json"] = json.dumps({**about, "network": network}).encode()
        with pytest.raises(dfkd.UserError, match=told):
            dfkd.load(name)
        assert dfkd.load(name, "wrn10-1").names == tuple(str(k) for k in range(10))


@needs_hub
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("me/nothing", "not there or not yours to see"),
        ("me/gated", "a gated model"),
        ("me/other", "without student.saf"),
    ],
)
def test_what_cannot_be_fetched_is_told_in_one_sentence(
    hub: Hub, name: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.repositories["me/other"] = {"README.md": b"# another model"}
    assert main(["predict", name, "x.png"]) == 2
    said = capsys.readouterr().err
    assert told in said or "not there" in said
    (Path.cwd() / "x.png").write_bytes(b"")
    assert main(["predict", name, "x.png"]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == 1


@needs_hub
def test_no_token_a_wrong_one_and_a_failing_hub(hub: Hub, finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(dfkd.UserError, match=r"needs a token of the hub.*HF_TOKEN"):
        push(finished_run, "me/x")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(dfkd.UserError, match=r"needs a token of the hub.*HF_TOKEN"):
        push(finished_run, "me/x")
    assert hub.repositories == {}
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.fail_commit = True
    with pytest.raises(dfkd.UserError, match="needs the hub, got"):
        push(finished_run, "me/x")
    assert hub.repositories == {"me/x": {}}


@needs_hub
def test_without_a_network(hub: Hub, finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for work in (lambda: fetch("me/x"), lambda: push(finished_run, "me/x")):
        with pytest.raises(dfkd.UserError, match=r"needs a connection to http://127.0.0.1:9"):
            work()


@needs_hub
def test_what_was_fetched_is_there_without_a_network(
    hub: Hub, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(finished_run, "me/x")
    first = fetch("me/x")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert fetch("me/x") == first


def test_bad_names_and_folders_are_told_before_the_package_is_asked_for(finished_run: Path, tmp_path: Path) -> None:
    with pytest.raises(dfkd.UserError, match="a name like owner/name, got 'digits'"):
        push(finished_run, "digits")
    with pytest.raises(dfkd.UserError, match=r"needs the folder of a run, got .* without run\.json"):
        push(tmp_path, "me/x")


def test_without_the_package_the_command_is_told(finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if "hub" in name else find(name, *a))
    for work in (lambda: push(finished_run, "me/x"), lambda: dfkd.load("me/x")):
        with pytest.raises(dfkd.UserError, match="huggingface_hub, got none installed; run `pip install"):
            work()


def test_the_card_says_what_the_record_says(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = json.loads((finished_run / "run.json").read_text())
    assert main(["push", str(finished_run), "me/small-digits", "--card"]) == 0
    card = capsys.readouterr().out
    assert card == card_of(finished_run, "me/small-digits")
    assert front_matter(card)["license"] == "unknown"
    assert "data-free" in front_matter(card)["tags"]
    final, first = run["result"]["final"], run["result"]["teacher_evaluation"]
    assert f"| this network | {100 * final['accuracy']:.2f} % | {100 * final['agreement']:.2f} % |" in card
    assert f"| teacher wrn16-1 | {100 * first['accuracy']:.2f} % | |" in card
    assert run["info"]["teacher"]["sha256"] in card
    for part in (
        "without training data",
        "NAYER from wrn16-1",
        "## Limits",
        "## Privacy",
        "0, 1, 2, 3",
        'load("me/small',
    ):
        assert part in card
    assert str(finished_run) not in card
    assert "\n\n\n" not in card.replace("\n\n\n```", "")


def test_the_card_names_the_program_only_where_there_is_one(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    with_program = card_of(run, "me/small-digits")
    assert 'torch.export.load("student.pt2")' in with_program
    (run / "student.pt2").unlink()
    card = card_of(run, "me/small-digits")
    assert "pt2" not in card
    assert card in with_program.replace(
        with_program[with_program.index("With PyTorch") : with_program.index("## Limits")], ""
    )


def test_the_card_of_a_quantized_student(finished_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    assert "quantized" not in card_of(folder, "me/x")
    stages = [
        {"name": name, "accuracy": accuracy, "agreement": None, "synthetic_agreement": 0.5, "bytes": size}
        for name, accuracy, size in (("fp32", 0.99, 700_000), ("calibrated", 0.7, 90_000), ("trained", 0.9, 90_000))
    ]
    (folder / "quantize.json").write_text(json.dumps({"bits": "W4A4", "stages": stages}))
    card = card_of(folder, "me/x")
    assert "It was quantized to W4A4" in card
    assert "| calibrated | 70.00 % | – | 50.00 % | 90 kB |\n| trained | 90.00 % | – | 50.00 % | 90 kB |\n" in card
    (folder / "quantize.json").write_text("{}")
    assert "quantized" not in card_of(folder, "me/x")


def test_the_card_of_a_run_that_read_real_images_or_was_not_measured(finished_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished_run, tmp_path / "run"))
    run = json.loads((folder / "run.json").read_text())
    run["info"]["inputs"]["web images"], run["result"]["final"] = "60 of 1x8x8", None
    (folder / "run.json").write_text(json.dumps(run))
    card = card_of(folder, "me/x")
    assert "it learnt from unlabelled images from elsewhere. This is **not data-free**" in card
    assert "data-free" not in front_matter(card)["tags"]
    older = {**run["info"], "method": "VanillaKD", "inputs": {}}  # from before inputs were recorded
    (folder / "run.json").write_text(json.dumps({**run, "info": older}))
    assert "it learnt from labelled training images. This is **not data-free**" in card_of(folder, "me/x")
    assert "It was not measured on real images when it was distilled.\nMeasure it on images of your own" in card
    rounds = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    held = {"agreement": 0.875, "low": 0.8, "high": 0.93, "images": 128, "calibration": 0.1, "class_agreement": []}
    rounds[-1]["estimate"] = {"sets": {"inverted": held}, "signals": {}, "seconds": 0.1}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rounds))
    run["result"]["stopped"], run["status"] = "agreement was high", "stopped"
    (folder / "run.json").write_text(json.dumps(run))
    card = card_of(folder, "me/x")
    assert (
        "It was not measured on real images when it was distilled. Without test images: the student chooses the "
        "teacher's class on 87.50 % (95 % interval 80.00 % to 93.00 %) of 128 synthetic images made from the teacher "
        "alone, by optimising pixels.\n"
        "Agreement on synthetic images is not accuracy on real ones. Measure it on images of your own"
    ) in card
    assert "Stopped after round 3 of 3: agreement was high." in card
    run["result"], run["status"] = None, "interrupted"
    (folder / "run.json").write_text(json.dumps(run))
    with pytest.raises(dfkd.UserError, match=r"finished run, got .* which is interrupted"):
        card_of(folder, "me/x")
