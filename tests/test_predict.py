"""Students as plain modules: pictures of any kind in, names and probabilities out."""

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import dfkd
from dfkd.cli.main import main
from dfkd.deploy.predictor import Predictor, batch_of


@pytest.fixture
def net(finished_run: Path) -> Predictor:
    return dfkd.load(finished_run)


def digits(n: int) -> torch.Tensor:
    return dfkd.read_images("digits").images[:n]


def test_it_is_the_student_with_its_normalisation(net: Predictor, finished_run: Path) -> None:
    from safetensors.torch import load_file

    bare = dfkd.build("wrn10-1", 10, 1).net
    bare.load_state_dict(load_file(finished_run / "student.safetensors"))
    (mean,), (std,) = dfkd.STATISTICS["digits"]
    images = digits(20)
    wanted = bare.eval()((images.float() / 255 - mean) / std)
    torch.testing.assert_close(net(images.float() / 255), wanted, rtol=1e-4, atol=1e-5)
    names, probabilities = net.predict(images)
    torch.testing.assert_close(probabilities, wanted.softmax(1), rtol=1e-4, atol=1e-5)
    assert names == [str(k) for k in wanted.argmax(1).tolist()]
    assert isinstance(net, torch.nn.Module)
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())


def test_all_kinds_of_pictures_give_the_same(net: Predictor, tmp_path: Path) -> None:
    images = digits(4)
    wanted = net.predict(images).probabilities
    gray = images[:, 0].numpy()
    pictures = [Image.fromarray(one) for one in gray]
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / f"{i}.png")
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    kinds: list[Any] = [
        images.float() / 255,
        images.numpy(),
        gray,
        gray[..., None],
        np.repeat(gray[..., None], 3, axis=3),
        pictures,
        [picture.convert("RGB") for picture in pictures],
        [pictures[0], paths[1], str(paths[2]), pictures[3]],
        (images.double() / 255).numpy(),
    ]
    for kind in kinds:
        torch.testing.assert_close(net.predict(kind).probabilities, wanted, rtol=1e-3, atol=1e-4)
    for single in (images[0], gray[0][None], pictures[0], paths[0]):
        torch.testing.assert_close(net.predict(single).probabilities, wanted[:1], rtol=1e-3, atol=1e-4)
    assert net.predict([]).probabilities.shape == (0, 10)


def test_pictures_of_another_size_are_fitted_like_those_of_test_folders(net: Predictor, tmp_path: Path) -> None:
    stream = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (3, 3, 20, 30), dtype=torch.uint8, generator=stream)
    for i, one in enumerate(pixels):
        (tmp_path / "set" / str(i)).mkdir(parents=True)
        Image.fromarray(one.permute(1, 2, 0).numpy()).save(tmp_path / "set" / str(i) / "x.png")
    folder = dfkd.read_images(tmp_path / "set", side=8, channels=1).images
    paths = [tmp_path / "set" / str(i) / "x.png" for i in range(3)]
    assert torch.equal((batch_of(paths, (1, 8, 8)) * 255).round().to(torch.uint8), folder)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (torch.full((2, 1, 8, 8), 3.0), r"floats in \[0, 1\], got 3 to 3"),
        (torch.full((2, 1, 8, 8), float("nan")), r"floats in \[0, 1\]"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.int64), "uint8 images, or floats"),
        (np.zeros(5, dtype=np.uint8), r"images \(n, c, h, w\)"),
        (["nothing.png"], "sound image"),
        (object(), "uint8 images, or floats|pictures, tensors"),
    ],
)
def test_what_is_no_picture_is_told(net: Predictor, given: Any, told: str) -> None:
    with pytest.raises(dfkd.UserError, match=told):
        net.predict(given)


def test_the_mode_is_put_back(net: Predictor) -> None:
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.predict(digits(3))
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_network_of_ones_own_comes_from_its_program_or_its_class(finished_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished_run, tmp_path / "run"))
    about = json.loads((folder / "student.json").read_text())
    (folder / "student.json").write_text(json.dumps({**about, "network": {"class": "__main__.Small"}}))
    wanted = dfkd.load(finished_run).predict(digits(5)).probabilities
    from_program = dfkd.load(folder, "student.pt2")
    torch.testing.assert_close(from_program.predict(digits(5)).probabilities, wanted, rtol=1e-3, atol=1e-4)
    from_program.train().eval()
    torch.testing.assert_close(dfkd.load(folder, "wrn10-1").predict(digits(5)).probabilities, wanted)
    (folder / "student.pt2").write_bytes(b"half")
    with pytest.raises(dfkd.UserError, match="whole exported program"):
        dfkd.load(folder, "student.pt2")
    with pytest.raises(dfkd.UserError, match="needs the name of the network"):
        dfkd.load(folder)


def test_predict_writes_csv_and_json(
    finished_run: Path, net: Predictor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = digits(3)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, one in enumerate(images):
        Image.fromarray(one[0].numpy()).save(folder / f"{i}.png")
    (folder / "3.png").write_bytes(b"no picture")
    best = net.predict(images).probabilities.topk(2, dim=1)
    assert main(["predict", str(finished_run), str(folder), "--top", "2"]) == 0
    told = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(told.out)))
    assert "3.png" in told.err
    assert [Path(row["file"]).name for row in rows] == ["0.png", "1.png", "2.png"]
    for row, values, labels in zip(rows, best.values.tolist(), best.indices.tolist(), strict=True):
        assert (row["class"], row["class_2"]) == (str(labels[0]), str(labels[1]))
        assert float(row["probability"]) == pytest.approx(values[0], abs=1e-4)
    out = tmp_path / "classes.json"
    files = [str(folder / f"{i}.png") for i in range(2)]
    assert main(["predict", str(finished_run), *files, "--format", "json", "--out", str(out)]) == 0
    assert [row["classes"][0]["class"] for row in json.loads(out.read_text())] == [r["class"] for r in rows[:2]]


def test_predict_refuses_what_it_cannot_do(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.png").write_bytes(b"")
    out = ["--out", str(tmp_path / "rows.csv")]
    for words in (
        ["predict"],
        ["predict", str(finished_run)],
        ["predict", str(finished_run), str(tmp_path / "empty"), *out],
        ["predict", str(finished_run), str(tmp_path / "nothing"), *out],
        ["predict", str(finished_run), str(tmp_path / "bad.png"), *out],
        ["predict", str(finished_run), str(tmp_path / "bad.png"), "--top", "11", *out],
        ["predict", str(tmp_path / "no-run"), str(tmp_path / "bad.png"), *out],
        ["predict", str(tmp_path / "empty"), str(tmp_path / "bad.png"), *out],
    ):
        assert main(words) == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "rows.csv").exists()
