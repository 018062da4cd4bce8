"""Images per second drawn from the pool with crop and flip, at 32x32: ``python -m benchmarks.pool``."""

import argparse
import statistics
import time

import torch

from benchmarks.records import write_record
from dfkd.data.pool import Pool
from dfkd.ops.augment import crop_flip
from dfkd.ops.pixels import as_images


def rate(pool: Pool, batch: int, draws: int, generator: torch.Generator, floats: bool) -> float:
    """Images per second over ``draws`` draws."""
    start = time.perf_counter()
    for _ in range(draws):
        images = crop_flip(pool.draw(batch, generator)["images"], generator)
        if floats:
            as_images(images)
    return batch * draws / (time.perf_counter() - start)


def main() -> None:
    """Fill a pool with random bytes, draw, write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=512)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    pool = Pool(options.rows, {"images": ((3, 32, 32), torch.uint8)})
    pool.add(images=torch.randint(256, (options.rows, 3, 32, 32), dtype=torch.uint8, generator=generator))
    rate(pool, options.batch, 5, generator, True)
    found = {
        kind: statistics.median(rate(pool, options.batch, 40, generator, floats) for _ in range(5))
        for kind, floats in (("bytes", False), ("floats in [0, 1]", True))
    }
    for kind, value in found.items():
        print(f"{kind}: {value:,.0f} images/s")
    write_record(
        "pool-draw-rate",
        {"images_per_second": found, "rows": options.rows, "batch": options.batch, "threads": options.threads},
    )


if __name__ == "__main__":
    main()
