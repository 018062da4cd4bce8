"""The images in a checkpoint, read without networks: which of them are the newest."""

from pathlib import Path

import pytest
import torch

from dfkd.data.pool import Pool
from dfkd.deploy.stored import stored_images
from dfkd.engine.checkpoint import Checkpoint

COLUMNS = {"images": ((1, 2, 2), torch.uint8), "labels": ((), torch.int64)}


def fill(folder: Path, sizes: list[list[int]], capacity: int = 50) -> None:
    """A checkpoint of as many processes as ``sizes`` has rows: images added before each save; labels count them."""
    processes = range(len(sizes))
    savers = [Checkpoint(folder / "checkpoint", rank, len(sizes)) for rank in processes]
    pools = [Pool(capacity, COLUMNS) for _ in processes]
    for rounds, added in enumerate(zip(*sizes, strict=True), start=1):
        for rank in reversed(processes):  # process 0 commits
            number = torch.arange(pools[rank].added, pools[rank].added + added[rank])
            images = (100 * rank + number).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
            pools[rank].add(images=images, labels=number)
            savers[rank].save(rounds, {}, {"pool": pools[rank]})


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, [9]),
        (4, [112, 8, 113, 9]),
        (5, [7, 112, 8, 113, 9]),
        (100, [*range(100, 104), *(place for k in range(10) for place in (104 + k, k))]),
    ],
)
def test_every_process_gives_its_newest_images(count: int, expected: list[int], tmp_path: Path) -> None:
    fill(tmp_path, [[6, 4], [9, 5]])
    images, labels = stored_images(tmp_path, count)
    assert images[:, 0, 0, 0].tolist() == expected
    assert labels.tolist() == [place % 100 for place in expected]


def test_of_one_process_they_are_the_last_ones_in_their_order(tmp_path: Path) -> None:
    fill(tmp_path, [[6, 4]])
    assert stored_images(tmp_path, 3)[1].tolist() == [7, 8, 9]
