"""Processes that die, never start, or are told to stop while they wait: bounded, one sentence, nothing left running."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dfkd.engine.runtime import Runtime
from dfkd.errors import UserError
from test_distributed import free_port

WAIT = 90.0  # seconds for a loaded machine to import torch


def command(teacher: Path, rounds: int) -> list[str]:
    words = f"""
    distill --method NoiseInput --teacher wrn16-1 --teacher.weights {teacher} --student wrn10-1 --data digits --out run
    --plan.rounds {rounds} --plan.steps 1 --plan.batch_size 8 --watch.quiet --watch.export false --watch.figures false
    --watch.save_every 0 --runtime.device cpu --runtime.threads 1 --runtime.devices 2
    """
    return [sys.executable, "-m", "dfkd.cli.main", *words.split()]


def start(rank: int, folder: Path, port: int, words: list[str], timeout: float = 60) -> "subprocess.Popen[str]":
    """One of two processes, as ``torchrun`` would start it."""
    told = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "x"}
    told |= {"GLOO_SOCKET_IFNAME": "lo", "DFKD_TIMEOUT": str(timeout)}
    return subprocess.Popen(
        words, cwd=folder, env={**os.environ, **told}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def waited_for(path: Path, lines: int) -> None:
    limit = time.monotonic() + WAIT
    while not (path.exists() and len(path.read_text().splitlines()) >= lines):
        assert time.monotonic() < limit
        time.sleep(0.05)


def status(folder: Path) -> str:
    return str(json.loads((folder / "run" / "run.json").read_text())["status"])


@pytest.mark.slow
@pytest.mark.parametrize("dead", [0, 1])
def test_a_dead_process_ends_the_other_in_one_sentence(dead: int, digits_weights: Path, tmp_path: Path) -> None:
    port = free_port()
    both = [start(rank, tmp_path, port, command(digits_weights, 100_000)) for rank in range(2)]
    waited_for(tmp_path / "run" / "metrics.jsonl", 3)
    both[dead].kill()
    began = time.monotonic()
    _, said = both[1 - dead].communicate(timeout=WAIT)
    both[dead].communicate()
    assert time.monotonic() - began < 30  # seconds, of a loaded machine
    assert both[1 - dead].returncode == 2, said
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, said
    assert "error: the run needs all of its 2 processes, got no answer from another one" in lines[0]
    assert "go on with `dfkd distill --resume run` in as many processes" in lines[0]
    assert status(tmp_path) == "failed"


@pytest.mark.slow
def test_a_process_whose_peer_never_starts(digits_weights: Path, tmp_path: Path) -> None:
    """It gives up after the time-out; SIGTERM ends it before."""
    alone = start(0, tmp_path, free_port(), command(digits_weights, 2), timeout=5)
    _, said = alone.communicate(timeout=WAIT)
    assert alone.returncode == 2, said
    assert "error: runtime needs 2 processes to meet within 5 seconds, got " in said
    assert not (tmp_path / "run").exists()
    alone = start(0, tmp_path, free_port(), command(digits_weights, 2), timeout=600)
    time.sleep(20)
    assert alone.poll() is None
    alone.send_signal(signal.SIGTERM)
    began = time.monotonic()
    _, said = alone.communicate(timeout=WAIT)
    assert time.monotonic() - began < 10
    assert alone.returncode in (143, -signal.SIGTERM), said


@pytest.mark.slow
def test_a_signal_reaches_a_process_that_waits_for_a_stopped_one(digits_weights: Path, tmp_path: Path) -> None:
    port = free_port()
    both = [start(rank, tmp_path, port, command(digits_weights, 100_000), 600) for rank in range(2)]
    waited_for(tmp_path / "run" / "metrics.jsonl", 3)
    both[1].send_signal(signal.SIGSTOP)
    time.sleep(1)
    both[0].send_signal(signal.SIGTERM)
    began = time.monotonic()
    _, said = both[0].communicate(timeout=WAIT)
    assert time.monotonic() - began < 10
    assert both[0].returncode == 143, said
    assert "go on with: dfkd distill --resume run" in said
    assert status(tmp_path) == "interrupted"
    both[1].kill()
    both[1].communicate()


@pytest.mark.parametrize("value", ["0", "-1", "soon", "inf", "nan"])
def test_a_timeout_that_cannot_be(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DFKD_TIMEOUT", value)
    with pytest.raises(UserError, match="runtime needs a timeout of more than 0 seconds, got"):
        Runtime(device="cpu")


SURE = """
import sys, time
from dfkd.cli.stop import Stopped, ending_for_sure, stoppable
with stoppable():
    try:
        with ending_for_sure(lambda: print("last words", flush=True), grace=0.5):
            words = ["in"]
            while words or sys.argv[1] == "stuck":
                try:
                    while words:
                        print(words.pop(), flush=True)  # within the try: the signal comes as soon as this is read
                    time.sleep(60)
                except BaseException:
                    if sys.argv[1] == "free":
                        raise
    except Stopped:
        print("in order", flush=True)
"""


@pytest.mark.parametrize(("how", "says", "code"), [("stuck", "last words", 143), ("free", "in order", 0)])
def test_a_signal_ends_a_process_that_does_not_listen(how: str, says: str, code: int) -> None:
    child = subprocess.Popen([sys.executable, "-c", SURE, how], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "in\n"
    child.send_signal(signal.SIGTERM)
    assert child.communicate(timeout=30)[0] == f"{says}\n"
    assert child.returncode == code


def test_a_second_signal_is_ignored_and_a_third_is_not() -> None:
    code = """
import os, signal, time
from dfkd.cli.stop import Stopped, stoppable
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
with stoppable():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except Stopped:
        os.kill(os.getpid(), signal.SIGINT)
        print("second", flush=True)
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            print("third", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "second\nthird\n"
