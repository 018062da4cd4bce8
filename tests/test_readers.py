"""Readers against files made by hand, the published sets where they are at hand, and hostile files."""

import gzip
import hashlib
import os
import pickle
import struct
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from dfkd.data import _formats, _pixels
from dfkd.data._kinds import kind_of
from dfkd.data.classes import in_order
from dfkd.data.readers import STATISTICS, ImageSet, read_images
from dfkd.errors import UserError


def real(*parts: str) -> Path:
    """A folder of published data, or skip."""
    given = os.environ.get("DFKD_DATA")
    roots = ([Path(given)] if given else []) + [Path(".data"), Path("../shared/datasets")]
    for root in roots:
        if root.joinpath(*parts).exists():
            return root
    pytest.skip(f"{'/'.join(parts)} is not in $DFKD_DATA, .data or ../shared/datasets")


def pixels(seed: int, *shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def one_sentence(caught: pytest.ExceptionInfo[UserError]) -> str:
    text = str(caught.value)
    assert "\n" not in text
    assert " needs " in text
    assert ", got " in text
    return text


# -- digits ---------------------------------------------------------------------------------------------------


def test_digits_are_the_published_ones_split_by_class() -> None:
    from sklearn.datasets import load_digits

    held = load_digits()
    train, test = read_images("digits", "train"), read_images("digits")
    assert train.images.shape == (1438, 1, 8, 8)
    assert test.images.shape == (359, 1, 8, 8)
    assert test.labels.dtype == torch.int64
    assert test.names == tuple("0123456789")
    mine = Counter(
        (image.numpy().tobytes(), int(label))
        for part in (train, test)
        for image, label in zip(part.images, part.labels, strict=True)
    )
    scaled = [
        (np.floor(i / 16 * 255 + 0.5).astype(np.uint8).tobytes(), int(t))
        for i, t in zip(held.images, held.target, strict=True)
    ]
    assert mine == Counter(scaled)
    counts = Counter(held.target.tolist())
    assert test.labels.bincount().tolist() == [round(counts[k] / 5) for k in range(10)]
    assert torch.equal(test.images, read_images("digits").images)


def test_digits_statistics_are_measured() -> None:
    images = torch.cat([read_images("digits", split).images for split in ("train", "test")]).double() / 255
    (mean,), (std,) = STATISTICS["digits"]
    assert float(images.mean()) == pytest.approx(mean, abs=5e-5)
    assert float(images.std(correction=0)) == pytest.approx(std, abs=5e-5)


def test_digits_grow_bilinearly() -> None:
    small, large = read_images("digits").images, read_images("digits", side=16).images
    padded = np.pad(small[0, 0].numpy().astype(float), 1, mode="edge")
    for row, column in ((0, 0), (5, 7), (8, 3), (15, 15)):
        y, x = (row + 0.5) / 2 + 0.5, (column + 0.5) / 2 + 0.5  # half-pixel centres, in the padded grid
        top, left = int(y), int(x)
        dy, dx = y - top, x - left
        square = padded[top : top + 2, left : left + 2]
        expected = np.array([1 - dy, dy]) @ square @ np.array([1 - dx, dx])
        assert abs(int(large[0, 0, row, column]) - expected) <= 0.5


# -- mnist ----------------------------------------------------------------------------------------------------


def write_idx(file: Path, array: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], magic: int | None = None) -> None:
    magic = 0x0800 + array.ndim if magic is None else magic
    body = struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.tobytes()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(body) if file.suffix == ".gz" else body)


@pytest.mark.parametrize("inner", ["", "raw", "MNIST/raw"])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_mnist_in_each_place(tmp_path: Path, inner: str, ending: str) -> None:
    images, labels = pixels(1, 4, 28, 28), np.array([3, 1, 9, 0], dtype=np.uint8)
    write_idx(tmp_path / inner / f"t10k-images-idx3-ubyte{ending}", images)
    write_idx(tmp_path / inner / f"t10k-labels-idx1-ubyte{ending}", labels)
    held = read_images(f"mnist:{tmp_path}")
    assert np.array_equal(held.images[:, 0].numpy(), images)
    assert held.labels.tolist() == [3, 1, 9, 0]
    wide = read_images(f"mnist:{tmp_path}", side=32)
    assert np.array_equal(wide.images[:, 0].numpy(), np.pad(images, ((0, 0), (2, 2), (2, 2))))
    assert read_images(f"mnist:{tmp_path}", channels=3).images.shape == (4, 3, 28, 28)


@pytest.mark.parametrize("harm", ["magic", "short", "long", "empty", "huge", "gzip", "labels"])
def test_damaged_idx(tmp_path: Path, harm: str) -> None:
    pictures, answers = tmp_path / "t10k-images-idx3-ubyte", tmp_path / "t10k-labels-idx1-ubyte"
    write_idx(pictures, pixels(1, 4, 28, 28), magic=0x0D03 if harm == "magic" else None)
    write_idx(answers, np.zeros(3 if harm == "labels" else 4, dtype=np.uint8))
    whole = pictures.read_bytes()
    if harm == "gzip":
        pictures.unlink()
        (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(whole)[:-9])
    body = {"short": whole[:-1], "long": whole + b"x", "empty": b"", "huge": struct.pack(">4I", 0x803, *[2**31] * 3)}
    if harm in body:
        pictures.write_bytes(body[harm])
    with pytest.raises(UserError) as caught:
        read_images(f"mnist:{tmp_path}")
    one_sentence(caught)


def test_missing_sets_say_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DFKD_DATA", "elsewhere")
    for name, file in (("mnist", "t10k-images-idx3-ubyte"), ("cifar10", "test_batch"), ("cifar100", "test")):
        with pytest.raises(UserError) as caught:
            read_images(name)
        text = one_sentence(caught)
        assert file in text
        assert "elsewhere or data" in text


def test_bare_name_finds_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DFKD_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    write_idx(tmp_path / "data/MNIST/raw/t10k-images-idx3-ubyte", pixels(1, 2, 28, 28))
    write_idx(tmp_path / "data/MNIST/raw/t10k-labels-idx1-ubyte", np.zeros(2, dtype=np.uint8))
    assert len(read_images("mnist").images) == 2
    monkeypatch.setenv("DFKD_DATA", str(tmp_path / "data"))
    monkeypatch.chdir("/")
    assert len(read_images("mnist").images) == 2


def test_published_mnist() -> None:
    held = read_images(f"mnist:{real('MNIST/raw')}")
    assert held.images.shape == (10000, 1, 28, 28)
    assert held.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


# -- cifar ----------------------------------------------------------------------------------------------------


def write_cifar(file: Path, images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], **lists: list[int]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    plain = {"data": images.reshape(len(images), -1), **lists}
    file.write_bytes(pickle.dumps(plain, protocol=3))


def test_cifar10_and_cifar100(tmp_path: Path) -> None:
    images = pixels(2, 3, 3, 32, 32)
    write_cifar(tmp_path / "cifar-10-batches-py/test_batch", images, labels=[1, 9, 0])
    write_cifar(tmp_path / "test", images, fine_labels=[99, 0, 5], coarse_labels=[1, 2, 3])
    ten, hundred = read_images(f"cifar10:{tmp_path}"), read_images(f"cifar100:{tmp_path}")
    assert np.array_equal(ten.images.numpy(), images)
    assert np.array_equal(hundred.images.numpy(), images)
    assert ten.labels.tolist() == [1, 9, 0]
    assert hundred.labels.tolist() == [99, 0, 5]
    assert ten.names[3] == "cat"
    assert hundred.names[0] == "apple"
    assert ten.title == "cifar10 test"
    with pytest.raises(UserError, match="data_batch_1"):
        read_images(f"cifar10:{tmp_path}", "train")
    with pytest.raises(UserError, match="train"):
        read_images(f"cifar100:{tmp_path}", "train")


def test_cifar10_training_batches_are_joined(tmp_path: Path) -> None:
    images = pixels(2, 5, 3, 32, 32)
    for batch in range(5):
        write_cifar(tmp_path / f"data_batch_{batch + 1}", images[batch : batch + 1], labels=[batch])
    (tmp_path / "batches.meta").write_bytes(
        pickle.dumps({b"label_names": [f"kind {k}".encode() for k in range(10)]}, 3)
    )
    held = read_images(f"cifar10:{tmp_path}", "train")
    assert np.array_equal(held.images.numpy(), images)
    assert held.labels.tolist() == [0, 1, 2, 3, 4]
    assert held.names[9] == "kind 9"


class Bomb:
    """Creates a file when it is unpickled the ordinary way."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


def test_pickles_run_nothing(tmp_path: Path) -> None:
    target = tmp_path / "owned"
    images = pixels(2, 1, 3, 32, 32).reshape(1, -1)
    for payload in (
        Bomb(target),
        {"data": images, "labels": [Bomb(target)]},
        {"data": images, "labels": [0], "x": Bomb(target)},
    ):
        (tmp_path / "test_batch").write_bytes(pickle.dumps(payload, protocol=3))
        with pytest.raises(UserError) as caught:
            read_images(f"cifar10:{tmp_path}")
        assert "mkdir" in one_sentence(caught)
        assert not target.exists()
    pickle.loads(pickle.dumps(Bomb(target)))
    assert target.exists()  # the bomb itself works


def test_stand_ins_do_not_leak_from_one_file_to_the_next(tmp_path: Path) -> None:
    # BUILD can set attributes on what lies on the stack: here it is aimed at the stand-in class itself.
    planted = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nN}U\x0c__setstate__K\x05s\x86b."
    (tmp_path / "bad").write_bytes(planted)
    with pytest.raises(UserError):
        _formats.read_cifar(tmp_path / "bad")
    images = pixels(2, 1, 3, 32, 32)
    write_cifar(tmp_path / "test_batch", images, labels=[4])
    assert np.array_equal(read_images(f"cifar10:{tmp_path}").images.numpy(), images)


def test_flipped_bytes_raise_user_errors_only(tmp_path: Path) -> None:
    file, draw = tmp_path / "test_batch", np.random.default_rng(0)
    write_cifar(file, pixels(2, 1, 3, 32, 32), labels=[4])
    whole = bytearray(file.read_bytes())
    frame = [place for place in range(len(whole)) if not 200 <= place < len(whole) - 60]  # all but the pixels
    refused = 0
    for _ in range(300):
        bent = bytearray(whole)
        bent[int(draw.choice(frame))] = int(draw.integers(256))
        file.write_bytes(bent)
        try:
            assert read_images(f"cifar10:{tmp_path}").images.shape == (1, 3, 32, 32)
        except UserError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize(
    "held",
    [
        {"data": np.zeros((1, 3072), dtype=np.float32), "labels": [0]},
        {"data": np.zeros((1, 100), dtype=np.uint8), "labels": [0]},
        {"data": np.zeros(3072, dtype=np.uint8), "labels": [0]},
        {"data": np.zeros((1, 3072), dtype=np.uint8), "labels": [True]},
        {"data": np.zeros((1, 3072), dtype=np.uint8), "labels": [10]},
        {"data": np.zeros((1, 3072), dtype=np.uint8), "labels": [-1]},
        {"data": np.zeros((1, 3072), dtype=np.uint8), "labels": [0, 1]},
        {"data": np.zeros((1, 3072), dtype=np.uint8), "labels": [10**30]},
        {"data": np.zeros((0, 3072), dtype=np.uint8), "labels": []},
        {"labels": [0]},
        [1, 2],
    ],
)
def test_unfit_cifar_pickles(tmp_path: Path, held: object) -> None:
    (tmp_path / "test_batch").write_bytes(pickle.dumps(held, protocol=3))
    with pytest.raises(UserError) as caught:
        read_images(f"cifar10:{tmp_path}")
    one_sentence(caught)


def test_truncated_cifar(tmp_path: Path) -> None:
    write_cifar(tmp_path / "test_batch", pixels(2, 1, 3, 32, 32), labels=[4])
    whole = (tmp_path / "test_batch").read_bytes()
    for cut in (0, 1, 20, len(whole) // 2, len(whole) - 1):
        (tmp_path / "test_batch").write_bytes(whole[:cut])
        with pytest.raises(UserError) as caught:
            read_images(f"cifar10:{tmp_path}")
        one_sentence(caught)


def test_published_cifar10() -> None:
    held = read_images(f"cifar10:{real('cifar-10-batches-py', 'test_batch')}")
    assert held.labels.bincount().tolist() == [1000] * 10
    assert held.names == ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    root = real("cifar-10-batches-py", "test_batch")
    plain = pickle.loads((root / "cifar-10-batches-py" / "test_batch").read_bytes(), encoding="bytes")
    assert hashlib.sha256(held.images.numpy().tobytes()).digest() == hashlib.sha256(plain[b"data"].tobytes()).digest()
    assert held.labels.tolist() == plain[b"labels"]


def test_published_cifar100() -> None:
    held = read_images(f"cifar100:{real('cifar-100-python', 'test')}")
    assert held.labels.bincount().tolist() == [100] * 100
    assert len(held.names) == 100


# -- arrays ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "layout"), [(("images", "labels"), "last"), (("x", "y"), "first"), (("x", "y"), "gray")]
)
def test_npz_layouts(tmp_path: Path, keys: tuple[str, str], layout: str) -> None:
    images = pixels(3, 5, 1 if layout == "gray" else 3, 6, 7)
    stored = {"last": images.transpose(0, 2, 3, 1), "first": images, "gray": images[:, 0]}[layout]
    arrays: dict[str, Any] = {keys[0]: stored, keys[1]: np.arange(5, dtype=np.int32)}
    np.savez(tmp_path / "a.npz", **arrays)
    held = read_images(str(tmp_path / "a.npz"))
    assert np.array_equal(held.images.numpy(), images)
    assert held.images.is_contiguous()
    assert held.labels.tolist() == [0, 1, 2, 3, 4]
    assert held.names == ()


def test_npz_never_unpickles(tmp_path: Path) -> None:
    target = tmp_path / "owned"
    hostile = np.empty(1, dtype=object)
    hostile[0] = Bomb(target)
    np.savez(tmp_path / "a.npz", images=pixels(1, 1, 3, 4, 4), labels=hostile)
    with pytest.raises(UserError) as caught:
        read_images(str(tmp_path / "a.npz"))
    one_sentence(caught)
    assert not target.exists()


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (np.zeros((2, 3, 4, 4)), np.zeros(2, dtype=int)),
        (np.zeros((2, 4), dtype=np.uint8), np.zeros(2, dtype=int)),
        (np.zeros((2, 3, 5, 3), dtype=np.uint8), np.zeros(2, dtype=int)),
        (np.zeros((2, 3, 4, 4), dtype=np.uint8), np.zeros(3, dtype=int)),
        (np.zeros((2, 3, 4, 4), dtype=np.uint8), np.zeros(2)),
        (np.zeros((2, 3, 4, 4), dtype=np.uint8), np.array([0, -1])),
        (np.zeros((0, 3, 4, 4), dtype=np.uint8), np.zeros(0, dtype=int)),
    ],
)
def test_unfit_npz(
    tmp_path: Path,
    images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]],
    labels: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
) -> None:
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    with pytest.raises(UserError) as caught:
        read_images(str(tmp_path / "a.npz"))
    one_sentence(caught)


def test_broken_or_unlabelled_files(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", images=pixels(1, 4, 3, 8, 8), labels=np.zeros(4, dtype=int))
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "bent.npz").write_bytes(whole[:200] + bytes(50) + whole[250:])
    np.savez(tmp_path / "keys.npz", pictures=pixels(1, 4, 3, 8, 8))
    np.save(tmp_path / "only.npy", pixels(1, 4, 3, 8, 8))
    for name in ("cut.npz", "bent.npz", "keys.npz", "only.npy", "absent.npz", "nonsense", "digits:3"):
        with pytest.raises(UserError) as caught:
            read_images(str(tmp_path / name))
        one_sentence(caught)
    with pytest.raises(UserError, match="labels"):
        read_images(str(tmp_path / "only.npy"))


# -- folders --------------------------------------------------------------------------------------------------


def fill(folder: Path, seed: int, side: int = 6, mode: str = "RGB", suffix: str = ".png") -> Image.Image:
    folder.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels(seed, side, side, 3)).convert(mode)
    image.save(folder / f"{seed}{suffix}")
    return image


def test_folder_of_classes(tmp_path: Path) -> None:
    dog, cat, other = fill(tmp_path / "dog", 1), fill(tmp_path / "cat", 2), fill(tmp_path / "cat", 1)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    held = read_images(f"folder:{tmp_path}")
    assert held.names == ("cat", "dog")
    assert held.labels.tolist() == [0, 0, 1]
    for mine, image in zip(held.images, (other, cat, dog), strict=True):
        assert np.array_equal(mine.permute(1, 2, 0).numpy(), np.asarray(image))
    small = read_images(str(tmp_path), side=4, channels=1)
    expected = np.asarray(other.convert("L").resize((4, 4), Image.Resampling.LANCZOS))
    assert np.array_equal(small.images[0, 0].numpy(), expected)


def test_folder_with_parts_and_a_class_called_train(tmp_path: Path) -> None:
    fill(tmp_path / "parts/train/a", 1)
    fill(tmp_path / "parts/val/a", 2)
    fill(tmp_path / "parts/val/b", 3)
    assert len(read_images(str(tmp_path / "parts"), "train").labels) == 1
    assert read_images(str(tmp_path / "parts")).labels.tolist() == [0, 1]
    fill(tmp_path / "plain/train", 1)
    fill(tmp_path / "plain/tram", 2)
    assert read_images(str(tmp_path / "plain"), "train").names == ("train", "tram")


def test_folder_modes(tmp_path: Path) -> None:
    fill(tmp_path / "a", 1, mode="L")
    assert read_images(str(tmp_path)).images.shape == (1, 1, 6, 6)
    assert read_images(str(tmp_path), channels=3).images.shape == (1, 3, 6, 6)
    deep = np.array([[0, 257, 65535, 300]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert _pixels.decode(tmp_path / "deep.png", None, None).tolist() == [[[0, 1, 255, 1]]]
    for mode, suffix in (
        ("RGBA", ".png"),
        ("P", ".png"),
        ("CMYK", ".jpg"),
        ("RGB", ".webp"),
        ("RGB", ".bmp"),
        ("1", ".png"),
    ):
        fill(tmp_path / mode, 5, mode=mode, suffix=suffix)
        assert _pixels.decode(tmp_path / mode / f"5{suffix}", 3, None).shape == (3, 6, 6)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_pictures_of_cameras_are_turned(orientation: int, suffix: str, tmp_path: Path) -> None:
    """What Pillow makes of the file is independent: EXIF's eight ways to hold a camera, written out as moves."""
    upright = pixels(1, 2, 3, 3)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / f"x{suffix}", exif=exif, lossless=True)
    assert np.array_equal(_pixels.decode(tmp_path / f"x{suffix}", 3, None), upright.transpose(2, 0, 1))


def test_a_picture_with_damaged_exif_is_read_as_it_is(tmp_path: Path) -> None:
    image = pixels(1, 8, 8, 3)
    Image.fromarray(image).save(tmp_path / "x.jpg", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff")
    assert _pixels.decode(tmp_path / "x.jpg", 3, None).shape == (3, 8, 8)


def test_a_damaged_png_is_no_picture(tmp_path: Path) -> None:
    """To read EXIF data of a PNG decodes its pixels; an error there is no matter of EXIF data."""
    Image.fromarray(pixels(1, 64, 64, 3)).save(tmp_path / "x.png")
    body = bytearray((tmp_path / "x.png").read_bytes())
    body[len(body) // 2] ^= 0xFF
    (tmp_path / "x.png").write_bytes(bytes(body))
    with pytest.raises(UserError, match="needs a sound image"):
        _pixels.decode(tmp_path / "x.png", 3, None)


def test_folders_with_pictures_of_other_kinds_are_told(tmp_path: Path) -> None:
    fill(tmp_path / "a", 1)
    fill(tmp_path / "b", 2, suffix=".tiff")
    with pytest.warns(UserWarning, match=r"1 \.tiff are left out; convert them to png or jpg"):
        assert read_images(str(tmp_path)).labels.tolist() == [0]


def test_centre_crop_of_other_shapes(tmp_path: Path) -> None:
    wide = np.zeros((4, 8, 3), dtype=np.uint8)
    wide[:, 2:6] = 200  # the middle square
    (tmp_path / "a").mkdir()
    Image.fromarray(wide).save(tmp_path / "a" / "1.png")
    assert read_images(str(tmp_path), side=4).images.unique().tolist() == [200]


@pytest.mark.parametrize("kind", ["empty", "no class", "unreadable", "truncated", "sizes"])
def test_unfit_folders(tmp_path: Path, kind: str) -> None:
    if kind == "no class":
        fill(tmp_path, 1)
    elif kind != "empty":
        fill(tmp_path / "a", 1, side=16)
    if kind == "unreadable":
        (tmp_path / "a" / "2.jpg").write_bytes(b"not an image")
    if kind == "truncated":
        whole = (tmp_path / "a" / "1.png").read_bytes()
        (tmp_path / "a" / "1.png").write_bytes(whole[: len(whole) // 2])
    if kind == "sizes":
        fill(tmp_path / "a", 2, side=7)
    with pytest.raises(UserError) as caught:
        read_images(str(tmp_path))
    one_sentence(caught)


# -- arguments and pixels -------------------------------------------------------------------------------------


def test_unfit_arguments() -> None:
    with pytest.raises(UserError, match="split"):
        read_images("digits", "validation")
    with pytest.raises(UserError, match="side"):
        read_images("digits", side=0)
    with pytest.raises(UserError, match="channels"):
        read_images("digits", channels=2)


def test_gray_is_close_to_pillow_and_back() -> None:
    images = pixels(7, 4, 3, 9, 9)
    gray = _pixels.recolour(images, 1, "test")
    for mine, image in zip(gray[:, 0], images, strict=True):
        theirs = np.asarray(Image.fromarray(image.transpose(1, 2, 0)).convert("L"))
        assert np.abs(mine.astype(int) - theirs.astype(int)).max() <= 1
    back = _pixels.recolour(gray, 3, "test")
    assert np.array_equal(back, np.stack([gray[:, 0]] * 3, axis=1))
    assert np.array_equal(_pixels.recolour(back, 1, "test"), gray)


@pytest.mark.parametrize(("wanted", "said"), [(1, "1 or 3"), (3, "1 or 3"), (5, "1 or 5")])
def test_channels_that_cannot_be_made_are_told(wanted: int, said: str) -> None:
    with pytest.raises(UserError, match=f"test needs images with {said} channels, got 2; convert"):
        _pixels.recolour(pixels(1, 2, 2, 4, 4), wanted, "test")


def test_the_shortest_files_are_told_apart(tmp_path: Path) -> None:
    for content in (b"\x08", b"\x08\x07", b"\x80", b"P"):
        (tmp_path / "file").write_bytes(content)
        assert kind_of(tmp_path / "file") in ("something else", "a text file")
    (tmp_path / "file").write_bytes(b"\x08\x07\x12")
    assert kind_of(tmp_path / "file") == "an ONNX model"


def test_result_is_plain(tmp_path: Path) -> None:
    held = read_images("digits", channels=3, side=12)
    assert isinstance(held, ImageSet)
    assert held.images.dtype == torch.uint8
    assert held.images.shape == (359, 3, 12, 12)
    for means, deviations in STATISTICS.values():
        assert len(means) == len(deviations)
        assert all(0 < value < 1 for value in (*means, *deviations))


# -- names of folders and of classes --------------------------------------------------------------------------


def folders(*names: str, labels: tuple[int, ...] | None = None) -> ImageSet:
    """One 2 x 2 image for each name (or label), as a folder of classes is read."""
    held = torch.tensor(range(len(names)) if labels is None else labels)
    return ImageSet(torch.zeros(len(held), 1, 2, 2, dtype=torch.uint8), held, names, "t", folders=True)


@pytest.mark.parametrize(
    ("names", "known", "expected"),
    [
        (("cat", "dog", "hen"), ("hen", "dog", "cat"), [2, 1, 0]),
        (("cat", "hen"), ("hen", "dog", "cat"), [2, 0]),
        (("Sheep Dog", "tabby-cat"), ("tabby_cat", "sheep_dog"), [1, 0]),
        (("Cat", "cat"), ("cat", "Cat"), [1, 0]),
        (("0", "1", "10", "4"), (), [0, 1, 10, 4]),
        (("0003", "007"), (), [3, 7]),
        (("n01440764", "n02102040"), ("English springer, English springer spaniel", "tench, Tinca tinca"), [1, 0]),
    ],
)
def test_folders_get_the_labels_of_their_names(
    names: tuple[str, ...], known: tuple[str, ...], expected: list[int]
) -> None:
    held = in_order(folders(*names), known, len(known) or 11, "test")
    assert held.labels.tolist() == expected
    assert held.names == known


def test_folders_whose_names_say_nothing() -> None:
    for known, said in (((), "not known"), (("0", "1", "2"), "the teacher's are 0, 1, 2")):
        with pytest.warns(UserWarning, match=f"no test folder .*cat, dog, hen.*{said}.*alphabetical.*data.classes"):
            assert in_order(folders("cat", "dog", "hen"), known, 3, "test").labels.tolist() == [0, 1, 2]
        with pytest.raises(UserError, match=r"teacher's 3 classes they are, got 2 \(cat, dog\)") as caught:
            in_order(folders("cat", "dog"), known, 3, "test")
        one_folder_sentence(caught)


def test_folders_of_which_some_are_no_class() -> None:
    for names, known in (
        (("cat", "horse"), ("cat", "dog")),
        (("Cat", "CAT", "dog"), ("cat", "dog")),
        (("1", "2", "3"), ()),
    ):
        with pytest.raises(UserError, match=r"got (horse|Cat, CAT|3) beside names that it has") as caught:
            in_order(folders(*names), known, len(known) or 3, "test")
        one_folder_sentence(caught)
    empty = in_order(folders("cat", "dog", "no images", labels=(1, 0)), ("dog", "cat"), 2, "test")
    assert empty.labels.tolist() == [0, 1]


def one_folder_sentence(caught: pytest.ExceptionInfo[UserError]) -> None:
    text = str(caught.value)
    assert text.startswith("test folders need ")
    assert "; " in text
    assert "\n" not in text


def test_other_sets_keep_their_labels() -> None:
    own = ImageSet(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 2]), ("bird", "cat", "dog"), "t")
    assert in_order(own, ("dog", "bird", "cat"), 3, "test").labels.tolist() == [1, 2, 0]
    assert in_order(own, ("plane", "cat", "dog"), 3, "test").labels.tolist() == [0, 1, 2]
    assert in_order(replace(own, names=()), ("dog", "bird", "cat"), 3, "test").labels.tolist() == [0, 1, 2]
    with pytest.raises(UserError, match="train labels need to be 0 to 1, got 0 to 2"):
        in_order(own, ("plane", "cat"), 2, "train")


def test_folders_that_are_numbers_are_sorted_by_value(tmp_path: Path) -> None:
    for name in ("0", "2", "10"):
        fill(tmp_path / name, 1)
    assert read_images(f"folder:{tmp_path}").names == ("0", "2", "10")


# -- images that are not square -------------------------------------------------------------------------------


def test_height_and_width(tmp_path: Path) -> None:
    images = pixels(1, 3, 1, 8, 16)
    np.savez(tmp_path / "wide.npz", x=images, y=np.arange(3))
    fill(tmp_path / "f" / "a", 2, side=16)
    assert np.array_equal(read_images(tmp_path / "wide.npz", side=(8, 16)).images.numpy(), images)
    assert read_images(tmp_path / "wide.npz", side=8).images.shape == (3, 1, 8, 8)
    assert read_images(f"folder:{tmp_path / 'f'}", side=(4, 12)).images.shape == (1, 3, 4, 12)
    assert read_images("digits", side=(8, 16)).images.shape == (359, 1, 8, 16)
    with pytest.raises(UserError, match=r"at least 1 pixel, got \(8, 0\)"):
        read_images("digits", side=(8, 0))
