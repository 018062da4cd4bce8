"""The search: what it maximises, who shares it, what a stop leaves, what it refuses."""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import dfkd
from dfkd.cli.main import main
from dfkd.engine.records import Agreement, Estimate, Observer, RoundRecord, RunInfo, RunResult
from dfkd.errors import UserError
from dfkd.extras import install_extra
from dfkd.identity import settings_of
from dfkd.nets.zoo import Classifier
from dfkd.ops.intervals import wilson
from dfkd.report.files import plain, read_run
from dfkd.report.observers import JsonLines, RunFile
from dfkd.report.trials import Trial, best_first, read_trials, trial_folder
from dfkd.tune import search as room
from dfkd.tune.ranges import Range
from dfkd.tune.study import Ledger, Pruner

pytest.importorskip("optuna", reason=f"optuna is not installed: {install_extra('search')}")

METHOD = dfkd.NAYER(steps=1, synthesis_batch=12, batches=1, warmup_batches=1, width=8, channels=4, pad=1, flip=False)
PLAN = dfkd.Plan(rounds=2, warmup=0, steps=4, batch_size=12, lr=0.05)
RANGES = {"method.lr": "0.0001:0.1:log", "plan.lr": "0.01:0.5:log"}
DATA: dict[str, Any] = {"image_size": (1, 8, 8), "mean": [0.4], "std": [0.3], "classes": 3}


def network(width: int) -> nn.Module:
    """The same weights at every call; no class is chosen much more often than another one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(width)
        body = [nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(2)]
        net = nn.Sequential(*body, nn.Flatten(), nn.Linear(4 * width, 3)).eval()
        with torch.no_grad():
            logits = net(torch.randn(64, 1, 8, 8))
            net[-1].bias -= logits.mean(dim=0)
    return net


@pytest.fixture(autouse=True)
def _few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "HELDOUT", 48)
    monkeypatch.setattr("dfkd.api.write_page", lambda folder: folder)  # not what is tested, and slow


def searched(out: Path, **told: Any) -> room.Searched:
    settings: dict[str, Any] = {"trials": 3, "plan": PLAN, "watch": dfkd.Watching(samples_every=0), "device": "cpu"}
    return room.search(network(8), network(4), METHOD, RANGES, out=out, **{**settings, **DATA, **told})


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[room.Searched, Tensor, Tensor]:
    """A search of three trials with test images that say nothing, and these."""
    stream = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (90, 1, 8, 8), generator=stream).to(torch.uint8)
    labels = network(8)((images / 255 - 0.4) / 0.3).argmax(dim=1)
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        patch.setattr(room, "HELDOUT", 48)
        patch.setattr("dfkd.api.write_page", lambda folder: folder)
        return searched(tmp_path_factory.mktemp("search") / "s", test=(images, labels)), images, labels


def agreement_by_hand(student: nn.Module, images: Tensor) -> float:
    """How often student and teacher choose the same class: two plain passes and a loop."""
    x = (images.float() / 255 - 0.4) / 0.3
    with torch.no_grad():
        a, b = (net(x).argmax(dim=1).tolist() for net in (network(8), student.eval()))
    return sum(one == other for one, other in zip(a, b, strict=True)) / len(a)


def test_trials_are_judged_on_one_set_that_none_of_them_made(done: tuple[room.Searched, Tensor, Tensor]) -> None:
    found, test, labels = done
    images = load_file(found.folder / "heldout.safetensors")["images"]
    assert images.shape == (48, 1, 8, 8)
    assert [trial.state for trial in found.trials] == ["complete"] * 3
    for trial in found.trials:
        student = network(4)
        student.load_state_dict(load_file(trial_folder(found.folder, trial.number) / "student.safetensors"))
        agreement = agreement_by_hand(student, images)
        assert trial.agreement == pytest.approx(agreement)
        low, high = wilson(agreement * 48, 48)
        assert trial.low == pytest.approx(low)
        assert trial.high == pytest.approx(high)
        assert (trial.images, trial.tested) == (48, 90)
        right = float((student((test / 255 - 0.4) / 0.3).argmax(dim=1) == labels).double().mean())
        assert trial.accuracy == pytest.approx(right)
    assert found.best is not None
    assert found.best.agreement == max(trial.agreement or 0 for trial in found.trials)
    assert (found.method.lr, found.plan.lr) == (found.best.values["method.lr"], found.best.values["plan.lr"])  # type: ignore[attr-defined]


def test_a_trial_is_the_run_of_distill_with_its_settings(
    done: tuple[room.Searched, Tensor, Tensor], tmp_path: Path
) -> None:
    found = done[0]
    first, other = found.trials[:2]
    assert first.default
    assert first.values == {"method.lr": METHOD.lr, "plan.lr": PLAN.lr}
    method, plan = replace(METHOD, lr=other.values["method.lr"]), replace(PLAN, lr=other.values["plan.lr"])
    single = dfkd.distill(
        network(8), network(4), method, plan=plan, out=tmp_path / "x", device="cpu", progress=False, export=False,
        figures=False, samples_every=0, **DATA
    )  # fmt: skip
    mine = load_file(trial_folder(found.folder, 1) / "student.safetensors")
    assert all(torch.equal(mine[name], value) for name, value in single.student.state_dict().items())
    assert read_run(trial_folder(found.folder, 1)).info.settings == plain(settings_of(method))


def test_test_images_are_looked_at_afterwards_only(done: tuple[room.Searched, Tensor, Tensor], tmp_path: Path) -> None:
    found = done[0]
    for trial in found.trials:
        run = read_run(trial_folder(found.folder, trial.number))
        assert all(record.evaluation is None for record in run.rounds)
    again = searched(tmp_path / "untested")
    assert [replace(t, seconds=0.0) for t in again.trials] == [
        replace(t, seconds=0.0, accuracy=None, tested=0) for t in found.trials
    ]
    page = (found.folder / "search.html").read_text()
    head, _, tail = page.partition("Afterwards: on test images")
    assert "accuracy on test images" not in head
    assert tail.count('<tr role="row"><th role="rowheader"') == 3


@pytest.mark.usefixtures("_no_page")
def test_what_is_finished_is_passed_over_and_more_trials_may_be_asked_for(tmp_path: Path) -> None:
    before = searched(tmp_path / "s", trials=1)
    stamp = (trial_folder(tmp_path / "s", 0) / "metrics.jsonl").stat().st_mtime_ns
    heard: list[Trial] = []
    after = searched(tmp_path / "s", trials=2, tell=heard.append)
    assert [trial.number for trial in heard] == [1]
    assert after.trials[0] == before.trials[0]
    assert (trial_folder(tmp_path / "s", 0) / "metrics.jsonl").stat().st_mtime_ns == stamp
    assert read_trials(tmp_path / "s") == list(after.trials)


@pytest.mark.usefixtures("_no_page")
def test_a_killed_trial_is_taken_up_where_it_stopped(
    done: tuple[room.Searched, Tensor, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killing(Pruner):
        """Ends the process, as it were, after the first round of trial 1."""

        def rounded(self, record: RoundRecord) -> str | None:
            if self.trial.number == 1 and record.round == 1:
                raise KeyboardInterrupt
            return super().rounded(record)

    with monkeypatch.context() as patch:
        patch.setattr("dfkd.tune.search.Pruner", Killing)
        with pytest.raises(KeyboardInterrupt):
            searched(tmp_path / "s")
    assert read_run(trial_folder(tmp_path / "s", 1)).status == "interrupted"
    after = searched(tmp_path / "s")
    assert [replace(t, seconds=0.0) for t in after.trials] == [
        replace(t, seconds=0.0, accuracy=None, tested=0) for t in done[0].trials
    ]
    for number in range(3):
        mine, whole = (
            load_file(trial_folder(folder, number) / "student.safetensors")
            for folder in (tmp_path / "s", done[0].folder)
        )
        assert all(torch.equal(mine[name], whole[name]) for name in whole)


# ---- without training: trials whose agreement is a function of their settings ---------------------------------------


@pytest.fixture
def _no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "write_search_page", lambda folder: folder)


class Fake:
    """Writes run folders whose agreement over ten rounds is given."""

    def __init__(self, curve: Callable[[dict[str, Any], int], float]) -> None:
        self.curve = curve
        self.rounds: list[int] = []

    def pair(self, method: Any, plan: Any) -> tuple[Classifier, Classifier]:
        return Classifier(network(8)), Classifier(network(4))

    def run(self, method: Any, plan: Any, folder: Path, resume: bool, images: Tensor, observer: Observer) -> None:
        info = RunInfo("NAYER", settings_of(method), settings_of(plan), {}, {}, (1, 8, 8), 3)
        watchers = [RunFile(folder), JsonLines(folder / "metrics.jsonl")]
        for watcher in watchers:
            watcher.started(info)
        records, stopped = [], None
        for k in range(10):
            hits = self.curve({"lr": method.lr}, k)
            sets = {"inverted": Agreement(hits, hits, hits, 100, 0.0)}
            records.append(RoundRecord(k, 10, False, 1.0, {}, None, None, Estimate(sets, {}, 0.0)))
            for watcher in watchers:
                watcher.rounded(records[-1])
            stopped = observer.rounded(records[-1])
            if stopped:
                break
        self.rounds.append(len(records))
        for watcher in watchers:
            watcher.finished(RunResult(info, records, None, None, 1.0, {}, stopped))


def what(trials: int = 12, prune: bool = True, ranges: Mapping[str, Range] | None = None) -> room.Search:
    ranges = ranges or {"method.lr": Range(0.001, 1.0, log=True)}
    data = dfkd.Images(**DATA)
    return room.Search(METHOD, PLAN, ranges, data, dfkd.Runtime("cpu"), trials=trials, prune=prune)


@pytest.mark.usefixtures("_no_page")
def test_bad_trials_are_pruned_and_a_search_costs_no_more_than_its_runs(tmp_path: Path) -> None:
    def curve(values: dict[str, Any], k: int) -> float:
        return 0.1 + (0.08 * k if values["lr"] > 0.05 else 0.0)

    fake = Fake(curve)
    found = room.conduct(what(), fake, tmp_path / "s")
    states = [trial.state for trial in found.trials]
    assert "pruned" in states
    assert set(states[:4]) == {"complete"}  # nothing to compare with
    for trial, rounds in zip(found.trials, fake.rounds, strict=True):
        assert (trial.done, trial.rounds) == (rounds, 10)
        assert (rounds < 10) == (trial.state == "pruned")
        if trial.state == "pruned":
            assert trial.values["method.lr"] <= 0.05
            assert rounds >= 3
    assert sum(fake.rounds) < 10 * len(fake.rounds)
    assert found.best is not None
    assert found.best.values["method.lr"] > 0.05
    unpruned = Fake(curve)
    room.conduct(what(prune=False), unpruned, tmp_path / "t")
    assert unpruned.rounds == [10] * 12


@pytest.mark.usefixtures("_no_page")
def test_the_search_finds_what_is_better(tmp_path: Path) -> None:
    """A hill over the logarithm of one setting, far from the default: the model beats the grid's coarse half."""
    import math

    fake = Fake(lambda values, k: max(0.0, 1 - 0.3 * abs(math.log10(values["lr"]) + 0.5)))
    found = room.conduct(what(trials=20, prune=False), fake, tmp_path / "s")
    assert found.best is not None
    assert abs(math.log10(found.best.values["method.lr"]) + 0.5) < 0.3
    assert found.best.agreement > (found.trials[0].agreement or 0)  # type: ignore[operator]


@pytest.mark.usefixtures("_no_page")
def test_a_trial_whose_settings_do_not_go_together_fails_alone(tmp_path: Path) -> None:
    ranges = {"plan.turns": Range(choices=(1, 3)), "method.lr": Range(0.001, 1.0)}
    heard: list[Trial] = []
    found = room.conduct(what(8, ranges=ranges), Fake(lambda values, k: 0.5), tmp_path / "s", heard.append)
    failed = [trial for trial in found.trials if trial.values["plan.turns"] == 3]
    assert failed
    assert all(trial.state == "failed" and "multiple of turns=3" in str(trial.reason) for trial in failed)
    assert len(found.trials) == len(heard) == 8
    assert found.best is not None
    assert found.best.values["plan.turns"] == 1


def test_a_trial_whose_method_does_not_fit_the_pair_fails_alone(tmp_path: Path) -> None:
    """The deep generator makes no images of 8 pixels; the search, and a second call of it, go on without it."""
    ranges = {"method.generator": Range(choices=("conv", "deep")), "method.lr": Range(0.001, 0.1)}
    search: dict[str, Any] = {
        "ranges": ranges,
        "plan": replace(PLAN, rounds=1),
        "watch": dfkd.Watching(samples_every=0),
    }
    with pytest.warns(UserWarning, match=r"method.generator = auto is outside its range"):
        first = room.search(
            network(8), network(4), METHOD, out=tmp_path / "s", trials=4, device="cpu", **search, **DATA
        )
    states = {trial.values["method.generator"]: trial.state for trial in first.trials}
    assert states == {"conv": "complete", "deep": "failed"}
    assert all("multiple of 16" in str(trial.reason) for trial in first.trials if trial.state == "failed")
    again = room.search(network(8), network(4), METHOD, out=tmp_path / "s", trials=5, device="cpu", **search, **DATA)
    assert len(again.trials) == 5


@pytest.mark.usefixtures("_no_page")
def test_a_search_of_which_no_trial_can_begin_ends(tmp_path: Path) -> None:
    class Refusing(Fake):
        def run(self, *arguments: Any) -> None:
            raise UserError("NAYER needs what is not there, got nothing; change it")

    with pytest.raises(UserError, match="what is not there"):
        room.conduct(what(trials=9), Refusing(lambda values, k: 0.5), tmp_path / "s")
    assert [trial.state for trial in read_trials(tmp_path / "s")] == ["running"] * 3
    mended = room.conduct(what(trials=4), Fake(lambda values, k: 0.5), tmp_path / "s")  # it was not the settings
    assert [trial.state for trial in mended.trials] == ["complete"] * 4


@pytest.mark.usefixtures("_no_page")
def test_trials_that_are_refused_twice_fail_and_others_are_tried(tmp_path: Path) -> None:
    class Refusing(Fake):
        def run(self, *arguments: Any) -> None:
            raise UserError("NAYER needs what is not there, got nothing; change it")

    for _ in range(2):
        with pytest.raises(UserError, match="what is not there"):
            room.conduct(what(trials=9), Refusing(lambda values, k: 0.5), tmp_path / "s")
    assert [trial.state for trial in read_trials(tmp_path / "s")] == ["failed"] * 3
    found = room.conduct(what(trials=5), Fake(lambda values, k: 0.5), tmp_path / "s")
    assert [trial.state for trial in found.trials] == ["failed"] * 3 + ["complete"] * 2


def test_repeats_count_for_nothing(tmp_path: Path) -> None:
    """Neither for the pruner nor for the model; one that was killed before it was told is no trial."""
    ledger = Ledger(tmp_path, {"method.lr": Range(choices=(1, 2, 3))}, {"method.lr": 9}, 0, True)
    for _ in range(3):
        claim = ledger.take(9)
        assert claim is not None
        ledger.tell(claim[0].number, 0.5, "complete")
        claim[1].close()
    states = [trial.state.name for trial in ledger.study.get_trials()]
    assert states.count("COMPLETE") == 3
    ledger.study.ask().set_user_attr("repeats", 0)
    assert ledger.take(9) is None
    assert len(ledger.trials()) == 3


@pytest.mark.usefixtures("_no_page")
def test_no_settings_are_tried_twice(tmp_path: Path) -> None:
    ranges = {"method.lr": Range(choices=(0.004, 0.01)), "plan.batch_size": Range(12, 36, step=12)}
    found = room.conduct(what(trials=20, ranges=ranges), Fake(lambda values, k: values["lr"]), tmp_path / "s")
    settings = [tuple(sorted(trial.values.items())) for trial in found.trials]
    assert len(settings) == len(set(settings)) == 6
    assert found.best is not None
    assert found.best.values["method.lr"] == 0.01


@pytest.mark.parametrize(
    ("span", "size"),
    [
        (Range(choices=("a", "b", "c")), 3),
        (Range(2, 5), 4),
        (Range(16, 64, step=16), 4),
        (Range(0.0, 1.0, step=0.1), 11),
        (Range(0.0, 1.0), None),
        (Range(0.001, 1.0, log=True), None),
    ],
)
def test_the_number_of_values_in_a_range(span: Range, size: int | None) -> None:
    assert span.size == size


def test_two_processes_never_have_the_same_trial(tmp_path: Path) -> None:
    told: Any = ({"method.lr": Range(0.001, 1.0)}, {"method.lr": 0.5}, 0, True)
    one, other = Ledger(tmp_path, *told), Ledger(tmp_path, *told)
    taken = [ledger.take(3) for ledger in (one, other, one)]
    numbers = [trial.number for trial, _ in filter(None, taken)]
    assert numbers == [0, 1, 2]
    assert other.take(3) is None  # all are held
    first, second, _ = (held for held in taken if held is not None)
    assert len({trial.params["method.lr"] for trial, _ in filter(None, taken)}) == 3
    first[1].close()  # its process is gone
    again = other.take(3, last=True)
    assert again is not None
    assert again[0].number == 0
    assert again[0].params == first[0].params
    other.tell(0, 0.5, "complete")
    again[1].close()
    second[1].close()
    one.tell(1, None, "failed", "lost")
    assert [trial.state.name for trial in one.trials()] == ["COMPLETE", "FAIL", "RUNNING"]
    assert one.trials()[1].user_attrs["reason"] == "lost"


def test_a_journal_that_a_power_cut_tore_goes_on(tmp_path: Path) -> None:
    told: Any = ({"method.lr": Range(0.001, 1.0)}, {"method.lr": 0.5}, 0, True)
    ledger = Ledger(tmp_path, *told)
    taken = ledger.take(5)
    assert taken is not None
    ledger.tell(0, 0.25, "complete")
    with (tmp_path / "study.journal").open("ab") as file:
        file.write(b'{"op_code":6,"trial')
    again = Ledger(tmp_path, *told)
    assert again.take(5) is not None
    assert [trial.value for trial in Ledger(tmp_path, *told).trials()] == [0.25, None]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"ranges": {"method.lr": "0.0001:0.2:log", "plan.lr": "0.01:0.5:log"}}, "method.lr = '0.0001:0.2:log'"),
        ({"plan": replace(PLAN, steps=5)}, "plan.steps = 5 instead of 4"),
        ({"seed": 1}, "seed = 1 instead of 0"),
        ({"mean": [0.5]}, r"mean = \[0.5\]"),
        ({"prune": False}, "prune = False instead of True"),
    ],
)
def test_a_search_with_other_settings_is_refused(
    done: tuple[room.Searched, Tensor, Tensor], changed: dict[str, Any], said: str
) -> None:
    ranges = changed.pop("ranges", RANGES)
    before = (done[0].folder / "trials.json").read_bytes()
    with pytest.raises(UserError, match=f"search needs the settings the one in .* began with, got {said}"):
        room.search(
            network(8),
            network(4),
            METHOD,
            ranges,
            out=done[0].folder,
            **{"plan": PLAN, "device": "cpu", **DATA, **changed},
        )
    assert (done[0].folder / "trials.json").read_bytes() == before


def test_folders_of_something_else_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "search.json").write_text("{")
    for name, said in (("file", "got the file"), ("other", "with other files in it"), ("broken", "its description")):
        with pytest.raises(UserError, match=said):
            searched(tmp_path / name)
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"trials": 0}, "at least one trial, got 0"),
        ({"minutes": -1.0}, "minutes above 0"),
        ({"std": [0.3, 0.3]}, "one mean and std per channel"),
        ({"trails": 3}, "did you mean"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(
    tmp_path: Path, told: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        searched(tmp_path / "s", **told)
    assert not (tmp_path / "s").exists()


def test_no_trial_begins_when_the_minutes_are_over(tmp_path: Path) -> None:
    found = searched(tmp_path / "s", minutes=1e-9)
    assert found.trials == ()
    assert found.best is None
    assert "No trial is complete yet" in (tmp_path / "s" / "search.html").read_text()


def test_the_best_come_first() -> None:
    trials = [
        Trial(0, "complete", {}, agreement=0.5),
        Trial(1, "pruned", {}, agreement=0.9),
        Trial(2, "complete", {}, agreement=0.7),
        Trial(3, "complete", {}, agreement=0.7),
        Trial(4, "failed", {}),
    ]
    assert [trial.number for trial in best_first(trials)] == [2, 3, 0, 1, 4]


# ---- from the shell -------------------------------------------------------------------------------------------------

SHELL = shlex.split(
    """
    --student wrn10-1 --data digits --method.steps 1 --method.synthesis_batch 20 --method.batches 1
    --method.warmup_batches 1 --method.width 8 --method.channels 4 --method.pad 1 --method.flip false
    --plan.rounds 1 --plan.warmup 0 --plan.steps 2 --plan.batch_size 16 --watch.samples_every 0
    --runtime.device cpu --runtime.threads 1
    """
)


@pytest.fixture
def words(digits_weights: Path) -> list[str]:
    return ["search", "--teacher", "wrn16-1", "--teacher.weights", str(digits_weights), *SHELL]


@pytest.mark.slow
def test_the_shell_searches_and_its_recipe_runs(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s"
    own = tmp_path / "mine.yaml"
    own.write_text("search: {method.lr: '0.001:0.1:log', plan: {batch_size: [16, 32]}}\n")
    assert main([*words[:1], str(own), *words[1:], "--trials", "2", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "trial 0: agreement" in shown
    assert f"next  dfkd distill {out}/best.yaml --out {out}-best" in shown
    assert f"dfkd distill {out}/best.yaml" in (out / "search.html").read_text()
    quick = ["--watch.figures", "false", "--watch.export", "false"]
    assert main(["distill", str(out / "best.yaml"), "--out", f"{out}-best", *quick]) == 0
    best = best_first(read_trials(out))[0]
    trial = load_file(trial_folder(out, best.number) / "student.safetensors")
    again = load_file(Path(f"{out}-best") / "student.safetensors")
    assert all(torch.equal(trial[name], again[name]) for name in trial)
    ranges = json.loads((out / "search.json").read_text())["ranges"]
    assert ranges == {"method.lr": "0.001:0.1:log", "plan.batch_size": "16,32"}
    capsys.readouterr()
    assert main(["report", str(out), "--out", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_text() == (out / "search.html").read_text()


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (["--search.method.lr", "0.001:0.1"], "give --out"),
        (["--out", "s"], "at least one setting to vary"),
        (["--out", "s", "--search.method.lrr", "1:2"], "did you mean method.lr"),
        (["--out", "s", "--search.method.lr", "1:2", "--hours", "2"], "stop.hours = 2"),
        (["--out", "s", "--search", "3"], "ranges by the names of settings"),
        (["--out", "s", "--search.method.lr", "1:2", "--trials", "many"], "trials needs a whole number"),
    ],
)
def test_the_shell_refuses_in_one_sentence(
    words: list[str], told: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main([*words, *told]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_two_processes_share_the_trials_of_one_folder(words: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dfkd.cli.main", *words, "--trials", "5", "--out", str(tmp_path / "s")]
    command += ["--search.method.lr", "0.001:0.1:log"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    carried = [sorted(line.split()[1] for line in text.splitlines() if line.startswith("trial ")) for text in outputs]
    assert sorted([*carried[0], *carried[1]]) == ["0:", "1:", "2:", "3:", "4:"]
    assert all(carried)
    assert [trial.state for trial in read_trials(tmp_path / "s")] == ["complete"] * 5
