"""Web rows: every source gives the same bytes, once converted they are only mapped, bad images are counted."""

import mmap
import os
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from dfkd.data import _sources as sources
from dfkd.data import rows as room
from dfkd.data._sources import archives
from dfkd.data.rows import Rows, open_rows
from dfkd.errors import UserError
from dfkd.prepare import _cache

Bytes = npt.NDArray[np.uint8]


def pixels(seed: int, *shape: int) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def everything(rows: Rows) -> Bytes:
    return np.concatenate([np.asarray(block) for _, block in rows.blocks(3)])


def saved(folder: Path, images: Bytes, suffix: str = ".png") -> None:
    """Images N H W C, spread over nested folders, in an order that sorting keeps."""
    for number, image in enumerate(images):
        place = folder / f"part{number // 3}" / "deep"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{number:03d}{suffix}")


def packed(file: Path, members: dict[str, bytes]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for name, body in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(body)
            archive.addfile(entry, BytesIO(body))


def png(image: Bytes) -> bytes:
    stream = BytesIO()
    Image.fromarray(image).save(stream, format="PNG")
    return stream.getvalue()


# -- what rows are --------------------------------------------------------------------------------------------


def test_take_and_blocks() -> None:
    images = torch.from_numpy(pixels(1, 10, 3, 4, 5))
    for rows in (open_rows(images, (3, 4, 5)), Rows(images.numpy())):
        assert len(rows) == 10
        assert rows.shape == (3, 4, 5)
        assert rows.skipped == 0
        index = torch.tensor([7, 0, 7, 9])
        assert torch.equal(rows.take(index), images[index])
        assert rows.take(torch.empty(0, dtype=torch.int64)).shape == (0, 3, 4, 5)
        blocks = list(rows.blocks(4))
        assert [start for start, _ in blocks] == [0, 4, 8]
        assert torch.equal(torch.cat([block for _, block in blocks]), images)
        with pytest.raises(UserError, match="size"):
            next(rows.blocks(0))


def test_what_is_taken_is_a_copy(tmp_path: Path) -> None:
    images = pixels(1, 6, 3, 4, 4)
    np.save(tmp_path / "web.npy", images)
    for rows in (open_rows(str(tmp_path / "web.npy"), (3, 4, 4)), open_rows(torch.from_numpy(images), (3, 4, 4))):
        rows.take(torch.tensor([0, 1])).zero_()
        next(rows.blocks(2))[1].zero_()
        assert np.array_equal(everything(rows), images)


# -- arrays ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["first", "last"])
def test_fitting_array_is_mapped(tmp_path: Path, layout: str) -> None:
    images = pixels(2, 7, 3, 4, 6)
    np.save(tmp_path / "web.npy", images if layout == "first" else images.transpose(0, 2, 3, 1))
    rows = open_rows(str(tmp_path / "web.npy"), (3, 4, 6), tmp_path / "cache")
    assert isinstance(rows._data, np.memmap)
    assert not (tmp_path / "cache").exists()
    assert np.array_equal(everything(rows), images)
    taken = rows.take(torch.tensor([5, 2]))
    assert taken.is_contiguous()
    assert np.array_equal(taken.numpy(), images[[5, 2]])


@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (0, 2, 3, 1)], ids=["nchw", "nhwc"])
def test_letting_go_of_mapped_pages_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, axes: tuple[int, ...]
) -> None:
    images = np.random.default_rng(0).integers(256, size=(40, 3, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "web.npy", images.transpose(axes))
    monkeypatch.setattr(room, "KEPT_BYTES", 0)  # after every read
    rows = open_rows(tmp_path / "web.npy", (3, 8, 8))
    assert isinstance(rows._map, mmap.mmap)
    for _ in range(2):
        assert torch.equal(rows.take(torch.tensor([39, 0, 7, 7])), torch.from_numpy(images[[39, 0, 7, 7]]))
        assert rows._touched == 0
        assert torch.equal(torch.cat([part for _, part in rows.blocks(9)]), torch.from_numpy(images))


def test_rows_in_memory_have_no_map() -> None:
    assert Rows(np.zeros((2, 1, 4, 4), dtype=np.uint8))._map is None


def test_gray_weights(tmp_path: Path) -> None:
    images = pixels(2, 5, 3, 4, 4)
    np.save(tmp_path / "web.npy", images)
    rows = open_rows(str(tmp_path / "web.npy"), (1, 4, 4))
    expected = np.empty((5, 1, 4, 4), dtype=np.uint8)
    for n in range(5):
        for y in range(4):
            for x in range(4):
                red, green, blue = (float(value) for value in images[n, :, y, x])
                expected[n, 0, y, x] = round(0.299 * red + 0.587 * green + 0.114 * blue)
    assert np.array_equal(everything(rows), expected)


def test_resized_once_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = pixels(3, 300, 6, 6, 3)
    np.save(tmp_path / "web.npy", images)
    source, cache = str(tmp_path / "web.npy"), tmp_path / "new" / "cache"
    rows = open_rows(source, (3, 4, 4), cache)
    assert isinstance(rows._data, np.memmap)
    for number in (0, 255, 256, 299):
        expected = np.asarray(Image.fromarray(images[number]).resize((4, 4), Image.Resampling.LANCZOS))
        assert np.array_equal(rows.take(torch.tensor([number]))[0].permute(1, 2, 0).numpy(), expected)
    assert [path.suffix for path in cache.iterdir()] == [".npy"]
    again = np.load(next(cache.iterdir()))
    assert np.array_equal(again, everything(rows))
    assert np.array_equal(again, everything(open_rows(source, (3, 4, 4))))  # in memory: the same bytes
    monkeypatch.delattr(room, "_write")
    assert np.array_equal(everything(open_rows(source, (3, 4, 4), cache)), again)
    monkeypatch.undo()
    np.save(tmp_path / "web.npy", images[:10])  # another source, another cache file
    os.utime(tmp_path / "web.npy", ns=(1, 1))
    assert len(open_rows(source, (3, 4, 4), cache)) == 10
    assert len(list(cache.iterdir())) == 2


def test_interrupted_conversion_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "web.npy", pixels(3, 20, 3, 6, 6))

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        open_rows(str(tmp_path / "web.npy"), (3, 4, 4), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("data", [np.zeros((2, 3, 4, 4)), torch.zeros(2, 3, 4, 4), np.zeros((2, 4, 4), np.uint8)])
def test_rows_are_bytes_of_four_dimensions(data: Any) -> None:
    with pytest.raises(UserError, match="Rows needs uint8 images N C H W, got"):
        Rows(data)


def test_a_mapped_array_stays_mapped(tmp_path: Path) -> None:
    images = pixels(1, 5, 3, 4, 4)
    np.save(tmp_path / "web.npy", images)
    rows = open_rows(np.load(tmp_path / "web.npy", mmap_mode="r"), (3, 4, 4))
    assert isinstance(room._map_below(rows._data), mmap.mmap)
    assert np.array_equal(everything(rows), images)
    assert torch.equal(rows.take(torch.tensor([4, 0])), torch.from_numpy(images[[4, 0]]))


@pytest.mark.parametrize("inner", ["", "deeper"])
def test_a_cache_that_cannot_be_written_is_told(inner: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    np.save(tmp_path / "web.npy", pixels(1, 5, 3, 6, 6))
    with pytest.raises(UserError, match=r"open_rows needs to write the converted images of \S+ to \S+, got .*; free"):
        open_rows(str(tmp_path / "web.npy"), (3, 4, 4), tmp_path / "file" / inner)


def test_the_home_folder_is_asked_for_only_where_the_cache_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DFKD_CACHE", str(tmp_path))
    monkeypatch.setattr(Path, "home", lambda: pytest.fail("asked for the home folder"))
    assert _cache() == tmp_path


def test_pictures_of_other_kinds_are_left_out_aloud(tmp_path: Path) -> None:
    saved(tmp_path, pixels(1, 4, 4, 4, 3))
    for name in ("a.tif", "b.gif", "c.TIF"):
        Image.fromarray(pixels(2, 4, 4, 3)).save(tmp_path / name)
    with pytest.warns(UserWarning, match=r"1 \.gif, 2 \.tif are left out; convert them to png or jpg"):
        assert len(open_rows(tmp_path, (3, 4, 4))) == 4


def test_unfit_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "float.npy", np.zeros((2, 3, 4, 4), dtype=np.float32))
    np.save(tmp_path / "empty.npy", np.zeros((0, 3, 4, 4), dtype=np.uint8))
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "many.npy", np.zeros((2, 5, 4, 4), dtype=np.uint8))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "many.npy").read_bytes()[:-1])
    for name in ("float", "empty", "object", "many", "cut", "absent"):
        with pytest.raises(UserError) as caught:
            open_rows(str(tmp_path / f"{name}.npy"), (3, 4, 4))
        assert "\n" not in str(caught.value)
    for tensor in (torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(0, 3, 4, 4)):
        with pytest.raises(UserError, match=r"needs (uint8 )?images N"):
            open_rows(tensor, (3, 4, 4))
    with pytest.raises(UserError, match="image shape"):
        open_rows(str(tmp_path / "float.npy"), (2, 4, 4))


# -- folders --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cached", [False, True])
def test_folder_skips_and_counts_damaged_images(tmp_path: Path, cached: bool) -> None:
    images = pixels(4, 7, 8, 8, 3)
    saved(tmp_path / "web", images)
    (tmp_path / "web" / "readme.txt").write_text("no image")
    (tmp_path / "web" / "part0" / "bad.jpg").write_bytes(b"no image")
    whole = (tmp_path / "web/part0/deep/000.png").read_bytes()
    (tmp_path / "web" / "cut.png").write_bytes(whole[: len(whole) // 2])
    cache = tmp_path / "cache" if cached else None
    for _ in range(2):
        rows = open_rows(str(tmp_path / "web"), (3, 8, 8), cache)
        assert rows.skipped == 2
        assert np.array_equal(everything(rows), images.transpose(0, 3, 1, 2))


def test_a_conversion_is_watched(tmp_path: Path) -> None:
    saved(tmp_path / "web", pixels(4, 300, 8, 8, 3))
    (tmp_path / "web" / "bad.jpg").write_bytes(b"no image")
    np.save(tmp_path / "web.npy", pixels(3, 300, 6, 6, 3))
    packed(tmp_path / "web.tar", {f"{n}.png": png(pixels(n, 5, 5, 3)) for n in range(3)})
    told: list[tuple[int, int | None]] = []
    for source in ("web", "web.npy", "web.tar"):
        open_rows(str(tmp_path / source), (3, 4, 4), tmp_path / "cache", lambda done, total: told.append((done, total)))
    assert told == [(256, 301), (301, 301), (256, 300), (300, 300), (3, None)]
    told.clear()
    open_rows(str(tmp_path / "web"), (3, 4, 4), tmp_path / "cache", lambda done, total: told.append((done, total)))
    assert not told, "what is in the cache is not converted"


def test_large_members_are_decoded_in_smaller_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = pixels(5, 7, 8, 8, 3)
    members = {f"{n}.png": png(image) for n, image in enumerate(images)}
    packed(tmp_path / "web.tar", members)
    monkeypatch.setattr(sources, "_BLOCK_BYTES", 2 * len(members["0.png"]))
    told: list[int] = []
    rows = open_rows(str(tmp_path / "web.tar"), (3, 8, 8), None, lambda done, _: told.append(done))
    assert np.array_equal(everything(rows), images.transpose(0, 3, 1, 2))
    assert len(told) >= 3
    assert told[-1] == 7


def test_folder_resizes_and_grays(tmp_path: Path) -> None:
    saved(tmp_path / "web", pixels(4, 4, 8, 12, 3), suffix=".bmp")
    rows = open_rows(f"folder:{tmp_path / 'web'}", (1, 4, 4))
    assert rows.shape == (1, 4, 4)
    assert len(rows) == 4


@pytest.mark.parametrize("kind", ["empty", "all bad", "absent"])
def test_nothing_to_read(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "web"
    if kind != "absent":
        folder.mkdir()
    if kind == "all bad":
        (folder / "1.png").write_bytes(b"no image")
    for cache in (None, tmp_path / "cache"):
        with pytest.raises(UserError, match="open_rows needs"):
            open_rows(str(folder), (3, 4, 4), cache)
    assert not list(tmp_path.glob("cache/*"))


# -- shards ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pattern", ["web-*.tar", "web-{000..002}.tar", "web-{000,001,002}.tar", "{web,none}-00{0..2}.tar"]
)
def test_shards(tmp_path: Path, pattern: str) -> None:
    images = pixels(5, 6, 4, 4, 3)
    for shard in range(3):
        packed(
            tmp_path / f"web-{shard:03d}.tar",
            {
                f"{n}.{kind}": png(images[n]) if kind == "png" else b"7"
                for n in (2 * shard, 2 * shard + 1)
                for kind in ("png", "cls")
            },
        )
    rows = open_rows(str(tmp_path / pattern), (3, 4, 4), tmp_path / "cache")
    assert np.array_equal(everything(rows), images.transpose(0, 3, 1, 2))
    assert rows.skipped == 0


def test_shard_with_bad_members_and_hostile_names(tmp_path: Path) -> None:
    image = pixels(5, 4, 4, 3)
    packed(
        tmp_path / "a.tar", {"../../out.png": png(image), "bad.webp": b"x", "empty.jpg": b"", "/abs.PNG": png(image)}
    )
    rows = open_rows(str(tmp_path / "a.tar"), (3, 4, 4))
    assert len(rows) == 2
    assert rows.skipped == 2
    assert not (tmp_path.parent.parent / "out.png").exists()


def test_unfit_shards(tmp_path: Path) -> None:
    packed(tmp_path / "a.tar", {f"{n}.png": png(pixels(n, 40, 40, 3)) for n in range(9)})
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "no.tar").write_bytes(b"no tar file" * 100)
    packed(tmp_path / "none.tar", {"a.txt": b"text"})
    for name in ("cut.tar", "no.tar", "none.tar", "absent.tar", "absent-{0..3}.tar"):
        with pytest.raises(UserError) as caught:
            open_rows(str(tmp_path / name), (3, 4, 4), tmp_path / "cache")
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("cache/*"))


def test_brace_and_glob_order(tmp_path: Path) -> None:
    for name in ("b-09.tar", "b-10.tar", "b-11.tar", "a.tar"):
        packed(tmp_path / name, {})
    names = [path.name for path in archives(str(tmp_path / "b-{09..10}.tar"))]
    assert names == ["b-09.tar", "b-10.tar"]
    assert [path.name for path in archives(str(tmp_path / "{b-*,a}.tar"))] == [
        "a.tar",
        "b-09.tar",
        "b-10.tar",
        "b-11.tar",
    ]


# -- the real pool --------------------------------------------------------------------------------------------


def test_web32() -> None:
    roots = [Path(root) for root in (os.environ.get("DFKD_DATA"), ".data") if root]
    file = next((root / "web32.npy" for root in roots if (root / "web32.npy").is_file()), None)
    if file is None:
        pytest.skip("web32.npy is not in $DFKD_DATA or .data")
    rows = open_rows(str(file), (3, 32, 32))
    assert len(rows) == 50000
    start, block = next(iter(rows.blocks(100)))
    assert start == 0
    assert np.array_equal(block.permute(0, 2, 3, 1).numpy(), np.load(file, mmap_mode="r")[:100])
