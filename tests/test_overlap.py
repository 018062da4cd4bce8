"""Near-duplicates of evaluation images among web images: found as by imagehash, told, kept, and nothing disturbed."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import dfkd
from dfkd.cli.main import main
from dfkd.data.overlap import NearDuplicates, find_duplicates, web_overlap
from dfkd.data.readers import STATISTICS, read_images
from dfkd.data.rows import Rows, open_rows
from dfkd.errors import UserError
from dfkd.identity import weights_hash
from dfkd.nets.zoo import build
from dfkd.report.console import Progress
from dfkd.report.files import read_run
from dfkd.report.summary import overlap_sentence
from settings import tiny_plan


def pictures(n: int, seed: int, side: tuple[int, int] = (8, 9)) -> Tensor:
    return torch.randint(256, (n, 1, *side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def apart(a: Tensor, b: Tensor) -> int:
    """In how many bits imagehash's dHash differs; pictures of 8 by 9 pixels need no resizing."""
    return int(imagehash.dhash(Image.fromarray(a[0].numpy())) - imagehash.dhash(Image.fromarray(b[0].numpy())))


@pytest.mark.parametrize("block", [1, 7, 4096])
def test_pairs_and_counts_are_those_of_a_loop_over_imagehash(block: int, tmp_path: Path) -> None:
    web, images = pictures(40, 0), pictures(9, 1)
    web[3], web[11], web[12] = images[4], 255 - images[2], images[2]
    web[20] = images[4]
    web[20, 0, 0] = web[3, 0, 0].flip(0)  # some bits of the first row
    web[30], images[8] = 7, 200  # one colour: no hash
    np.save(tmp_path / "web.npy", web.numpy())
    rows = open_rows(tmp_path / "web.npy", (1, 8, 9), None)  # mapped
    table = {(i, k): apart(web[i], images[k]) for i in range(40) for k in range(8) if i != 30}
    nearest = {i: min((table[i, k], k) for k in range(8)) for i in range(40) if i != 30}
    for at_most in (0, 6, 24):
        found = web_overlap(rows, images, at_most, block)
        expected = [(i, k, bits) for i, (bits, k) in nearest.items() if bits <= at_most]
        assert [tuple(row) for row in torch.stack(found, dim=1).tolist()] == expected
        told = find_duplicates(rows, images, at_most, pairs_kept=4, block=block)
        close = [best_of(web[i], images, [k for k in range(8) if table[i, k] <= at_most]) for i, _, _ in expected]
        assert (told.web, told.images, told.found, told.at_most) == (40, 9, len(expected), at_most)
        assert told.alike == sum(r >= 0.9 for _, r in close)
        assert len(told.pairs) == 4
        assert len({pair.image for pair in told.pairs}) == 4
        for pair in told.pairs:
            assert pair.bits == table[pair.web, pair.image]
            assert pair.correlation == pytest.approx(correlation(web[pair.web], images[pair.image]), abs=1e-4)
        within = sorted({r for _, r in close}, reverse=True)
        assert told.pairs[0].correlation == pytest.approx(within[0], abs=1e-4)
    assert [pair[:3] for pair in told.pairs[:2]] == [(3, 4, 0), (12, 2, 0)]


def correlation(a: Tensor, b: Tensor) -> float:
    return float(np.corrcoef(a.flatten().numpy(), b.flatten().numpy())[0, 1])


def best_of(picture: Tensor, images: Tensor, places: list[int]) -> tuple[int, float]:
    return max(((k, correlation(picture, images[k])) for k in places), key=lambda pair: pair[1])


def test_a_chance_resemblance_does_not_hide_a_copy() -> None:
    """Two images of one hash: the web image is a copy of the second, though the first is met earlier."""
    other = pictures(1, 0)
    flat = torch.cumsum(torch.ones(8, 9, dtype=torch.int64), dim=1).to(torch.uint8)[None, None]  # rises by 1
    steep = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 250], dtype=torch.uint8).expand(1, 1, 8, 9)
    assert apart(flat[0], steep[0]) == 0
    told = find_duplicates(Rows(steep.clone()), torch.cat([flat, other, steep]))
    assert told.pairs[0] == (0, 2, 0, 1.0)
    assert told.alike == 1
    told = find_duplicates(Rows(steep.clone()), torch.cat([flat, other]))
    assert (told.found, told.alike) == (1, 0)  # one hash, other pictures


def test_many_hashes_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    web, images = Rows(pictures(100, 0)), pictures(30, 1)
    whole = web_overlap(web, images, at_most=64)
    monkeypatch.setattr("dfkd.data.overlap._CELLS", 90)
    for a, b in zip(whole, web_overlap(web, images, at_most=64, block=32), strict=True):
        assert torch.equal(a, b)
    told: list[float] = []
    find_duplicates(web, images, block=25, expect=told.append)
    assert len(told) == 1
    assert told[0] >= 0


def test_pictures_of_one_colour_resemble_nothing() -> None:
    for side in (8, 28):  # of 28 pixels rounding makes bits
        blank, other = torch.full((3, 1, side, side), 9, dtype=torch.uint8), pictures(4, 0, (side, side))
        assert find_duplicates(Rows(blank), other) == NearDuplicates(3, 4, 0, 0, 4)
        assert find_duplicates(Rows(other), blank) == NearDuplicates(4, 3, 0, 0, 4)
        assert find_duplicates(Rows(blank), blank) == NearDuplicates(3, 3, 0, 0, 4)


@pytest.mark.parametrize("side", [(8, 9), (28, 28), (32, 32)])
def test_a_picture_that_darkens_to_the_right_has_edges(side: tuple[int, int]) -> None:
    """All bits of its hash are 0; its copy is found all the same, and it resembles no picture of one colour."""
    ramp = torch.linspace(200, 20, side[1]).round().to(torch.uint8).expand(1, 1, *side).clone()
    blank = torch.full((1, 1, *side), 77, dtype=torch.uint8)
    told = find_duplicates(Rows(torch.cat([blank, ramp])), torch.cat([pictures(3, 0, side), blank, ramp]))
    assert (told.found, told.alike, told.pairs[0]) == (1, 1, (1, 4, 0, 1.0))
    assert [part.tolist() for part in web_overlap(Rows(ramp), torch.cat([blank, ramp]))] == [[0], [1], [0]]


def test_the_sentence() -> None:
    end = "within 4 bits of 64 (difference hash) of one of 10,000 evaluation images"
    same = "of them alike pixel by pixel (correlation 0.9 or more)"
    told = overlap_sentence(NearDuplicates(50_000, 10_000, 1_234, 56, 4))
    assert told == f"1,234 of 50,000 web images are {end}, 56 {same}"
    assert overlap_sentence(NearDuplicates(50_000, 10_000, 1, 0, 4)) == f"1 of 50,000 web images is {end}, none {same}"
    assert overlap_sentence(NearDuplicates(50_000, 10_000, 0, 0, 4)) == f"none of 50,000 web images are {end}"


# ---- in a run -------------------------------------------------------------------------------------------------------


def web_with_tests() -> tuple[Tensor, Tensor, Tensor]:
    """Noise in which three of thirty test images are hidden, the test images, and their labels."""
    held = read_images("digits")
    web = torch.cat([pictures(60, 2, (8, 8)), held.images[[5, 17, 28]]])
    return web, held.images[:30], held.labels[:30]


def distilled(teacher: nn.Module, web: Any, **more: Any) -> dfkd.Distilled:
    torch.manual_seed(3)
    mean, std = STATISTICS["digits"]
    given: dict[str, Any] = {
        "image_size": (1, 8, 8),
        "mean": mean,
        "std": std,
        "progress": False,
        "export": False,
        "figures": False,
    }
    method = dfkd.KD3(v_th=0.1, pad=1, flip=False, share_head=False)
    given |= {"web": web, "test": web_with_tests()[1:], "plan": tiny_plan(rounds=2), **more}
    return dfkd.distill(teacher, build("wrn10-1", 10, 1).net, method, **given)


def test_a_run_with_and_without_a_look_is_bit_identical(digits_teacher: nn.Module) -> None:
    web = web_with_tests()[0]
    runs = [distilled(digits_teacher, web, overlap=on) for on in (True, False)]
    looked, not_looked = (done.record.info.overlap for done in runs)
    assert looked is not None
    assert looked.found == 3
    assert not_looked is None
    assert weights_hash(runs[0].student) == weights_hash(runs[1].student)
    for a, b in zip(runs[0].record.rounds, runs[1].record.rounds, strict=True):
        assert a.evaluation == b.evaluation
        assert {k: v for k, v in a.metrics.items() if "second" not in k} == {
            k: v for k, v in b.metrics.items() if "second" not in k
        }
    assert distilled(digits_teacher, web, test=None).record.info.overlap is None


def test_a_resumed_run_does_not_look_again(
    digits_teacher: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    web = web_with_tests()[0]
    first = distilled(digits_teacher, web, out=tmp_path / "r").record.info.overlap
    assert first is not None
    assert read_run(tmp_path / "r").info.overlap == first
    calls: list[int] = []

    def counted(*_: object, **__: object) -> NearDuplicates:
        calls.append(1)
        return NearDuplicates(64, 30, 0, 0, 4)

    monkeypatch.setattr("dfkd.watchers.find_duplicates", counted)
    for more in ({}, {"overlap": False}):
        again = distilled(digits_teacher, web, out=tmp_path / "r", resume=True, **more)
        assert again.record.info.overlap == first
    assert calls == []
    with pytest.raises(UserError, match=r"got web images = '64 of 1x8x8"):  # others than were looked at
        distilled(digits_teacher, torch.cat([web, web[:1]]), out=tmp_path / "r", resume=True)
    row = json.loads((tmp_path / "r/run.json").read_text())
    del row["info"]["overlap"]  # a folder of an earlier version
    (tmp_path / "r/run.json").write_text(json.dumps(row))
    assert read_run(tmp_path / "r").info.overlap is None


def test_a_long_look_is_announced(
    digits_teacher: nn.Module, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def slow(web: Rows, images: Tensor, expect: Any) -> NearDuplicates:
        expect(9.0)
        expect(95.0)
        return NearDuplicates(len(web), len(images), 0, 0, 4)

    monkeypatch.setattr("dfkd.watchers.find_duplicates", slow)
    distilled(digits_teacher, web_with_tests()[0], progress=True)
    lines = capsys.readouterr().out.splitlines()
    said = [line for line in lines if "looking for" in line]
    assert said == [
        "looking for test images among 63 web images: about 1 min 35 s; to leave that out, --watch.overlap false "
        "(overlap=False)"
    ]
    assert "none of 63 web images are within 4 bits of 64" in "\n".join(lines)
    Progress(quiet=True).note("nothing")
    assert capsys.readouterr().out == ""


TINY = shlex.split(
    """
    distill --teacher wrn16-1 --teacher.weights teacher.pt --student wrn10-1 --data digits --data.test test.npz
    --data.web web.npy --method KD3 --method.v_th 0.1 --method.pad 1 --method.flip false --plan.rounds 1
    --plan.steps 2 --plan.batch_size 16 --watch.export false --runtime.device cpu --runtime.threads 1
    """
)


@pytest.mark.slow
def test_the_command_line_tells_keeps_and_draws_it(
    tmp_path: Path, digits_weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DFKD_CACHE", str(tmp_path / "cache"))
    shutil.copy(digits_weights, "teacher.pt")
    web, images, labels = web_with_tests()
    np.save("web.npy", web[:, 0].numpy())
    np.savez("test.npz", images=images[:, 0].numpy(), labels=labels.numpy())
    assert main([*TINY, "--out", "k"]) == 0
    said = "3 of 63 web images are within 4 bits of 64 (difference hash) of one of 30 evaluation images, "
    said += "3 of them alike pixel by pixel (correlation 0.9 or more)"
    assert capsys.readouterr().out.splitlines().count(said) == 1
    kept = json.loads(Path("k/run.json").read_text())["info"]["overlap"]
    assert [kept["found"], kept["at_most"], kept["pairs"][:3]] == [
        3,
        4,
        [[60, 5, 0, 1.0], [61, 17, 0, 1.0], [62, 28, 0, 1.0]],
    ]
    assert f"Near-duplicates: {said}. They were counted, not removed." in Path("k/report.html").read_text()
    rows = {row["name"]: row for row in json.loads(Path("k/figures/index.json").read_text())["figures"]}
    assert rows["near-duplicates"]["numbers"] == {
        "found": 3.0,
        "alike": 3.0,
        "fewest bits": 0.0,
        "highest correlation": 1.0,
    }
    assert 'id="figure-near-duplicates"' in Path("k/report.html").read_text()
    sheet = np.asarray(Image.open("k/figures/near-duplicates.png").convert("RGB"))
    tiles = sheet[-2 * 66 :, -8 * 66 :][1:]  # 8 pairs of 64 pixels and their borders, names above and beside
    above, below = tiles[:64, 1:65], tiles[66:130, 1:65]
    assert np.array_equal(above[::8, ::8, 0], images[5, 0].numpy())
    assert np.array_equal(above, below)
    assert main(["plot", "k", "--out", "again"]) == 0
    assert Path("again/near-duplicates.png").read_bytes() == Path("k/figures/near-duplicates.png").read_bytes()
    np.savez("test.npz", images=images[:20, 0].numpy(), labels=labels[:20].numpy())
    assert main(["plot", "k", "--out", "other"]) == 0
    assert "near-duplicates" in json.loads(Path("other/index.json").read_text())["skipped"]
    capsys.readouterr()
    assert main([*TINY, "--watch.overlap", "false", "--out", "off"]) == 0
    assert "within 4 bits" not in capsys.readouterr().out
    assert json.loads(Path("off/run.json").read_text())["info"]["overlap"] is None
    assert "near-duplicates" not in Path("off/figures/index.json").read_text()
