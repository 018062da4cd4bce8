"""What synthetic images show of private ones: distances against loops, copies found, strangers cleared."""

import base64
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from dfkd.cli.main import main
from dfkd.data.readers import STATISTICS, read_images
from dfkd.data.rows import Rows
from dfkd.engine.audit import Audit, attack_of, audit_images
from dfkd.engine.probe import Probe
from dfkd.errors import UserError
from dfkd.ops.intervals import auc_interval, wilson
from dfkd.ops.nearest import nearest_rows
from dfkd.report.privacy import audit_verdict, nearness_of, write_audit


def blocks_of(rows: Tensor, size: int) -> Iterator[tuple[int, Tensor]]:
    yield from ((start, rows[start : start + size]) for start in range(0, len(rows), size))


@pytest.mark.parametrize("size", [1, 4, 100])
def test_nearest_rows_are_those_of_a_loop(size: int) -> None:
    rows, queries = torch.randn(23, 5), torch.randn(7, 5)
    found = nearest_rows(queries, blocks_of(rows, size), 3)
    for query, distances, places in zip(queries, found.distances, found.rows, strict=True):
        slow = sorted((math.dist(query.tolist(), row.tolist()), i) for i, row in enumerate(rows))[:3]
        assert places.tolist() == [i for _, i in slow]
        assert distances.tolist() == pytest.approx([distance for distance, _ in slow], abs=1e-9)


def test_a_row_is_not_its_own_neighbour() -> None:
    rows = torch.randn(10, 4)
    own = torch.tensor([3, 7])
    found = nearest_rows(rows[own], blocks_of(rows, 4), 9, own)
    assert not (found.rows == own[:, None]).any()
    assert nearest_rows(rows[own], blocks_of(rows, 4), 1).distances.max() < 1e-6


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (10, 10), (3, 17), (495, 500)])
def test_wilson_is_scipys(successes: int, trials: int) -> None:
    theirs = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    assert wilson(successes, trials) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    assert wilson(0, 0) == (0, 1)


def test_the_interval_of_the_auc_holds_the_truth_as_often_as_it_says() -> None:
    stream = np.random.default_rng(0)
    truth = stats.norm.cdf(1 / math.sqrt(2))  # of two normal distributions one apart
    hits = 0
    for _ in range(300):
        scores = np.concatenate([stream.normal(1, 1, 60), stream.normal(0, 1, 40)])
        low, high = auc_interval(roc_auc_score([1] * 60 + [0] * 40, scores), 60, 40)
        hits += low <= truth <= high
    assert 0.90 <= hits / 300 <= 0.99


def test_an_attack_in_numbers() -> None:
    attack = attack_of(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([0.5, 1.5]))
    wins = [3 > 0.5, 3 > 1.5, 2 > 0.5, 2 > 1.5, 1 > 0.5, 1 > 1.5]
    assert attack.auc == pytest.approx(sum(wins) / 6)
    assert attack.caught == pytest.approx(2 / 3)  # above 1.5 there is no false alarm
    assert attack_of(torch.rand(400), torch.rand(400)).low < 0.5


@pytest.fixture
def teacher(digits_teacher: nn.Module) -> Probe:
    mean, std = STATISTICS["digits"]
    return Probe(digits_teacher, mean=mean, std=std, head="linear" if hasattr(digits_teacher, "linear") else None)


def looked_at(teacher: Probe, images: Tensor, held: bool = True) -> Audit:
    private, heldout = read_images("digits", "train").images, read_images("digits", "test").images
    stream = torch.Generator().manual_seed(0)
    rows = Rows(heldout) if held else None
    return audit_images(teacher.freeze(), images, Rows(private), rows, 200, stream, teacher)


def test_copies_are_found_in_pixels_and_features(teacher: Probe) -> None:
    private = read_images("digits", "train").images
    noise = torch.randint(-3, 4, private[:100].shape)
    audit = looked_at(teacher, (private[:100].long() + noise).clamp(0, 255).to(torch.uint8))
    assert audit.spaces["pixels"].row.tolist() == list(range(100))
    assert all(nearness_of(space).suspicious for space in audit.spaces.values())
    assert audit_verdict(audit).level == "poor"
    assert "near to one private image, in pixels and in the teacher's features" in audit_verdict(audit).text


def test_a_release_of_all_private_images_tells_who_they_are(teacher: Probe) -> None:
    private = read_images("digits", "train").images
    stream = torch.Generator().manual_seed(0)
    held = Rows(read_images("digits", "test").images)
    audit = audit_images(teacher.freeze(), private, Rows(private), held, len(private), stream)
    assert audit.attacks["pixels"].auc == pytest.approx(1.0)
    assert audit.attacks["pixels"].caught == 1
    assert "tell private images from held-out ones" in audit_verdict(audit).text


@pytest.mark.parametrize("held", [True, False])
def test_strangers_are_cleared(teacher: Probe, held: bool) -> None:
    """Images that were held out themselves are no nearer than they should be."""
    strangers = read_images("digits", "test").images[::2]
    audit = looked_at(teacher, strangers, held)
    assert not any(nearness_of(space).suspicious for space in audit.spaces.values())
    assert held or audit.attacks == {}


def test_a_smooth_image_is_near_but_no_copy(teacher: Probe) -> None:
    """The mean image is nearer to private images than these are to each other; its ratio shows that it copies none."""
    private = read_images("digits", "train").images
    mean = private.double().mean(dim=0, keepdim=True).round().to(torch.uint8).expand(50, -1, -1, -1).contiguous()
    space = looked_at(teacher, mean).spaces["pixels"]
    assert float(space.ratio.max()) > float(space.reference_ratio.quantile(0.25))
    assert not nearness_of(space).suspicious


def test_held_out_copies_are_left_out_and_all_of_them_refused(teacher: Probe) -> None:
    private = read_images("digits", "train").images
    stream = torch.Generator().manual_seed(0)
    mixed = torch.cat([private[:5], read_images("digits", "test").images[:20]])
    audit = audit_images(teacher.freeze(), private[:9], Rows(private), Rows(mixed), 100, stream)
    assert (audit.copies, audit.heldout) == (5, 20)
    with pytest.raises(UserError, match="audit needs held-out images that are not among the private ones, got 5 "):
        audit_images(teacher, private[:9], Rows(private), Rows(private[:5]), 100, stream)
    with pytest.raises(UserError, match="two private ones at least"):
        audit_images(teacher, private[:9], Rows(private[:1]), None, 100, stream)


def test_few_private_images_are_compared_all_the_same(teacher: Probe) -> None:
    private = read_images("digits", "train").images[:3]
    audit = audit_images(teacher.freeze(), private[:1], Rows(private), None, 100, torch.Generator().manual_seed(0))
    assert audit.spaces["pixels"].reference_ratio.isfinite().all()


def test_the_page_shows_pairs_and_numbers(teacher: Probe, tmp_path: Path) -> None:
    images = read_images("digits", "test").images[:30]
    audit = looked_at(teacher, images)
    private = Rows(read_images("digits", "train").images)
    page = write_audit(tmp_path / "out", audit, images, private, {"run": "<b>x</b>"}).read_text()
    assert page.count("data:image/png") == 2
    assert page.count("data:image/svg+xml") == 4
    assert "&lt;b&gt;x" in page
    assert "<b>x" not in page
    numbers = json.loads((tmp_path / "out/audit.json").read_text())
    assert numbers["images"] == 30
    assert len(numbers["spaces"]["pixels"]["closest_private_rows"]) == 12
    assert set(numbers["attacks"]) == {"pixels", "features", "teacher", "student"}


@pytest.mark.parametrize(("held", "name"), [(True, "held-out"), (False, "other private")])
def test_the_page_names_what_it_compares_with(teacher: Probe, held: bool, name: str, tmp_path: Path) -> None:
    private = Rows(read_images("digits", "train").images)
    images = read_images("digits", "test").images[:30]
    page = write_audit(tmp_path, looked_at(teacher, images, held), images, private, {"run": "x"}).read_text()
    assert f"<th>synthetic</th><th>{name}</th>" in page
    assert page.count(f'alt="Shares of synthetic and {name} images below a ') == 4
    end = "" if held else ", each of them held out in turn"
    assert f"the {name} images are{end}. By chance" in page
    for chart in re.findall(r"svg\+xml;base64,([^\"]+)", page):
        assert name in base64.b64decode(chart).decode()


def test_the_command(
    digits_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    line = f"""distill --teacher wrn16-1 --teacher.weights {digits_weights} --student wrn10-1 --data digits
        --data.test digits --method.steps 2 --method.synthesis_batch 30 --method.batches 2 --method.width 8
        --method.channels 4 --plan.rounds 1 --plan.warmup 0 --plan.steps 1 --plan.batch_size 8 --watch.quiet
        --watch.export false --watch.figures false --runtime.device cpu --out runs/x"""
    assert main(line.split()) == 0
    capsys.readouterr()
    assert main(["audit", "runs/x", "--private", "digits", "--count", "50", "--json"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert (numbers["private"], numbers["heldout"], numbers["copies"]) == (1438, 50, 0)
    assert numbers == json.loads(Path("runs/x-audit/audit.json").read_text())
    assert "shows private images" in Path("runs/x-audit/audit.html").read_text()
    assert main(["audit", "runs/x", "--private", "digits", "--heldout", "none", "--out", "elsewhere"]) == 0
    assert "Without held-out images" in capsys.readouterr().out
    for told, said in (
        (["--private", "digits", "--out", "runs/x/audit"], "audit needs a folder outside the run"),
        ([], "audit needs the private images, got none"),
        (["--private", "nowhere"], "got 'nowhere'"),
        (["--private", "digits", "--count", "1"], "--count of at least 2"),
    ):
        assert main(["audit", "runs/x", *told]) == 2
        assert said in capsys.readouterr().err
