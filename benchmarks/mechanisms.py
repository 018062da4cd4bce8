"""What makes the methods work, on CIFAR-10 at 16 x 16 pixels, where a run takes a few minutes of one core."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from benchmarks.rows import HALF_JUNK, KD3_STUDENT, WEB, Row, half
from dfkd.engine.plan import Plan
from dfkd.methods import D3K, KD3, NAYER, SpaceshipNet

PAIR = ("wrn16-1", "resnet8")
PLAN = Plan(rounds=20, steps=50, batch_size=128, lr=0.1, weight_decay=5e-4)  # 1,000 steps of the student
LONG = replace(PLAN, steps=150, **KD3_STUDENT)  # 3,000

_NAYER = NAYER(steps=15, synthesis_batch=200, batches=2, warmup_batches=4, width=256, channels=32, alpha_bn=1.0, pad=2)


def nayer() -> list[Row]:
    """NAYER's Table 4 (its figures: WRN-40-2 to WRN-16-2, 100 epochs): what the noisy layer is for.

    WRN-16-1 to ResNet-8 at 16 x 16 pixels, 1,000 steps of 128 images, 9,600 images made; three seeds. Embeddings that
    meet noise have the norm of CLIP's (``text_scale`` 10.7), as in the paper.
    """
    clip = {"text_scale": 10.7}
    variants: list[tuple[str, dict[str, Any], str]] = [
        ("K-to-1 (NAYER)", {}, "93.48"),
        ("1-to-1", {"group": "one"}, "93.42"),
        ("without BN", {"norm": False}, "91.15"),
        ("one layer, never drawn anew", {"redraw": False, "renew": None, "group": "batch"}, "14.82"),
        ("label text only", {"code": "lte"}, "13.52"),
        ("one-hot", {"code": "onehot"}, "12.35"),
        ("noise", {"code": "z"}, "90.14"),
        ("text and noise, concatenated", {"code": "concat", **clip}, "13.29"),
        ("text + 0.1 noise", {"code": "sum", "beta": 0.1, **clip}, "18.92"),
        ("text + 0.5 noise", {"code": "sum", "beta": 0.5, **clip}, "85.72"),
        ("text + noise", {"code": "sum", "beta": 1.0, **clip}, "90.15"),
    ]
    plan = replace(PLAN, warmup=2)
    return half(Row(label, *PAIR, replace(_NAYER, **change), plan, paper) for label, change, paper in variants)


_SPACESHIP = SpaceshipNet(lr=4e-3, lambda_cls=2.0, width=64, channels=32, pad=2)


def spaceship(views: int) -> Callable[[], list[Row]]:
    """The rows of Spaceship-Net's Table 3 with so many views of every stored sample."""
    samples, rounds, steps = {28: (4600, 23, 25), 200: (640, 5, 100), 1000: (128, 1, 400)}[views]
    method = replace(_SPACESHIP, synthesis_batch=samples // rounds, steps=steps)
    warmup = 3 if views == 28 else 0
    plan = replace(PLAN, rounds=rounds - warmup, steps=1000 // (rounds - warmup), warmup=warmup)

    def rows() -> list[Row]:
        variants: list[tuple[str, dict[str, Any], str]] = [
            ("CFE and mSARC", {}, "77.41"),
            ("mSARC only", {"diversity": "none"}, "62.05"),
            ("neither", {"diversity": "none", "constraint": "none"}, "60.17"),
            ("CFE only", {"constraint": "none"}, "48.18"),
        ]
        return half(Row(label, *PAIR, replace(method, **change), plan, paper) for label, change, paper in variants)

    rows.__doc__ = f"""Spaceship-Net's Table 3 (its figures: CIFAR-100, ResNet-34 to ResNet-18), {views} views a sample.

    WRN-16-1 to ResNet-8 at 16 x 16 pixels, 1,000 steps of 128 images drawn from {samples:,} stored samples; in
    the paper every sample is seen about 2,000 times.
    """
    return rows


_D3K = D3K(
    steps=80, synthesis_batch=128, widths=(16, 64), width=64, lr=0.01, alpha=0.1, init="torch", hash_pool=2, pad=2
)


def d3k() -> list[Row]:
    """D3K's parts (its Figure 4: base < +SG < +SG and D-Dhash), with both forms of the hash loss; five seeds.

    WRN-16-1 to ResNet-8 at 16 x 16 pixels, 1,000 steps of 128 images, 3,072 images made. ``base`` is one generator
    shape, freshly initialised for every batch; SG draws the shape too. The exclusive or has both neighbours' gradient.
    """
    one = {"widths": (40, 40), "kernels": (3,)}
    xor = {"hash_form": "xor", "ste": "difference"}
    variants: list[tuple[str, dict[str, Any]]] = [
        ("base", {**one, "theta": 0.0}),
        ("SG only", {"theta": 0.0}),
        ("SG and D-Dhash", {}),
        ("SG and D-Dhash as exclusive or", xor),
        ("D-Dhash only", one),
    ]
    plan = replace(PLAN, warmup=4)
    return half(Row(label, *PAIR, replace(_D3K, **change), plan) for label, change in variants)


_KD3 = KD3(select_every=4, skip_teacher_contrast=True, pad=2)


def kd3_alpha() -> list[Row]:
    """The balance of KD3's eq. 18: α with the contrast as a mean, and both terms as printed sums; three seeds.

    WRN-16-1 to ResNet-8 at 16 x 16 pixels, 3,000 steps of 128 images, among 50,000 photographs.
    """
    sums = {"alignment": "sum", "reference_batch": None}
    variants: list[tuple[str, dict[str, Any]]] = [
        ("no contrast", {"mdcl": "none"}),
        ("alpha 0, both views seen", {"alpha": 0.0}),
        ("alpha 0.0001", {"alpha": 1e-4}),
        ("alpha 0.001", {"alpha": 1e-3}),
        ("alpha 0.01", {"alpha": 1e-2}),
        ("sums, no contrast", {"alignment": "sum", "mdcl": "none"}),
        ("sums, alpha 0.0001", {**sums, "alpha": 1e-4}),
        ("sums, alpha 0.001", {**sums, "alpha": 1e-3}),
        ("sums, alpha 0.01", {**sums, "alpha": 1e-2}),
    ]
    return half(Row(label, *PAIR, replace(_KD3, **change), LONG, "", WEB) for label, change in variants)


def kd3_junk() -> list[Row]:
    """Who selects (KD3's Table 2) from a pool of which half is junk: noise, textures, strokes; five seeds.

    WRN-16-1 to ResNet-8 at 16 x 16 pixels, 3,000 steps of 128 images, without contrast; a selection in every fourth
    round. Every second of the 50,000 images shows nothing (``benchmarks/junk.py``).
    """
    plain = replace(_KD3, mdcl="none")
    variants: list[tuple[str, dict[str, Any], str]] = [
        ("dynamic selection", {}, "95.21"),
        ("teacher-only selection", {"select": "teacher"}, "94.01"),
        ("student-only selection", {"select": "student"}, "91.99"),
        ("random selection", {"select": "random"}, "90.22"),
    ]
    return half(
        Row(label, *PAIR, replace(plain, **change), LONG, paper, HALF_JUNK) for label, change, paper in variants
    )
