"""The transfer set against a deque, its draws against the uniform distribution, its spill against memory."""

import gc
from collections import deque
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dfkd.data.pool import Pool
from dfkd.errors import UserError

COLUMNS = {"images": ((1, 2, 2), torch.uint8), "labels": ((), torch.int64), "codes": ((3,), torch.float16)}


def rows(first: int, n: int) -> dict[str, Tensor]:
    """Rows that say their number."""
    number = torch.arange(first, first + n)
    return {
        "images": (number % 256).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2),
        "labels": number,
        "codes": number.half().unsqueeze(1).expand(-1, 3),
    }


def check_same(pool: Pool, oracle: "deque[int]") -> None:
    assert len(pool) == len(oracle)
    kept = pool.newest(len(pool))
    assert kept["labels"].tolist() == list(oracle)
    assert kept["images"][:, 0, 1, 1].tolist() == [i % 256 for i in oracle]
    assert kept["codes"][:, 2].tolist() == [float(torch.tensor(i).half()) for i in oracle]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.lists(st.integers(0, 25), max_size=8), st.booleans())
def test_first_in_first_out_like_a_deque(capacity: int, sizes: list[int], spilled: bool) -> None:
    pool = Pool(capacity, COLUMNS, limit_bytes=0 if spilled else None)
    oracle: deque[int] = deque(maxlen=capacity)
    total = 0
    for n in sizes:
        pool.add(**rows(total, n))
        oracle.extend(range(total, total + n))
        total += n
        assert pool.added == total
        check_same(pool, oracle)
        for count in (0, total - 3, total, total + 5):
            since = [i for i in oracle if i >= count]
            assert pool.since(max(count, 0))["labels"].tolist() == since
        assert pool.newest(3)["labels"].tolist() == list(oracle)[-3:]


def test_draws_are_uniform_over_the_rows_and_columns_stay_together() -> None:
    pool = Pool(16, COLUMNS)
    pool.add(**rows(0, 10))
    drawn = pool.draw(20_000, torch.Generator().manual_seed(3))
    assert drawn["labels"].tolist() == [int(x) for x in drawn["images"][:, 0, 0, 0]]
    assert drawn["labels"].tolist() == [int(x) for x in drawn["codes"][:, 1]]
    counts = torch.bincount(drawn["labels"], minlength=10).double()
    assert len(counts) == 10
    chi_square = float(((counts - 2000) ** 2 / 2000).sum())
    assert chi_square < 27.9  # 9 degrees of freedom, 0.1 %


def test_draws_depend_on_the_generator_alone() -> None:
    pool = Pool(8, COLUMNS)
    pool.add(**rows(0, 8))
    one, two = (pool.draw(5, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one["labels"], two["labels"])
    some = pool.draw(5, torch.Generator().manual_seed(1), ["labels"])
    assert some.keys() == {"labels"}
    assert torch.equal(some["labels"], one["labels"])


def test_a_draw_is_a_copy() -> None:
    pool = Pool(4, COLUMNS)
    pool.add(**rows(0, 4))
    pool.draw(4, torch.Generator().manual_seed(0))["labels"].fill_(99)
    pool.newest(4)["labels"].fill_(99)
    assert pool.newest(4)["labels"].tolist() == [0, 1, 2, 3]


def test_size_in_bytes_is_exact() -> None:
    assert Pool(50, {"images": ((3, 32, 32), torch.uint8)}).nbytes == 50 * 3072
    pool = Pool(7, COLUMNS)
    assert pool.nbytes == 7 * (4 + 8 + 6) == sum(t.numel() * t.element_size() for t in pool.rows.values())


def test_spilled_rows_are_files_of_that_size_and_go_away(tmp_path: Path) -> None:
    pool = Pool(100, COLUMNS, limit_bytes=1799, spill=tmp_path)
    assert pool.spilled
    files = list(tmp_path.rglob("*.rows"))
    assert sum(f.stat().st_size for f in files) == pool.nbytes == 1800
    pool.add(**rows(0, 150))
    by_hand = np.memmap(next(f for f in files if f.stem == "labels"), dtype=np.int64, mode="r")
    assert sorted(by_hand.tolist()) == list(range(50, 150))
    del by_hand, pool
    gc.collect()
    assert list(tmp_path.iterdir()) == []
    assert not Pool(100, COLUMNS, limit_bytes=1800, spill=tmp_path).spilled


def test_a_full_disk_is_named_before_the_first_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(UserError, match=r"pool needs .* of disk in .*, got No space left on device; free"):
        Pool(100, COLUMNS, limit_bytes=0, spill=tmp_path)


def test_a_system_that_cannot_reserve_disk_spills_all_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr("os.posix_fallocate")
    pool = Pool(100, COLUMNS, limit_bytes=0, spill=tmp_path)
    assert sum(file.stat().st_size for file in tmp_path.rglob("*.rows")) == pool.nbytes


def test_what_does_not_fit_is_refused() -> None:
    pool = Pool(4, COLUMNS)
    good = rows(0, 2)
    with pytest.raises(ValueError, match="columns"):
        pool.add(labels=good["labels"])
    with pytest.raises(ValueError, match="columns"):
        pool.add(**good, more=good["labels"])
    with pytest.raises(ValueError, match=r"'images'.* of torch\.float32"):
        pool.add(**{**good, "images": good["images"].float()})
    with pytest.raises(ValueError, match="'images'"):
        pool.add(**{**good, "images": good["images"][..., :1]})
    with pytest.raises(ValueError, match="as many rows"):
        pool.add(**{**good, "labels": torch.arange(3)})
    assert len(pool) == 0
    with pytest.raises(RuntimeError, match="first draw"):
        pool.draw(1, torch.Generator())
    with pytest.raises(UserError, match="capacity of at least 1"):
        Pool(0, COLUMNS)
