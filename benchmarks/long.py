"""CIFAR-10 with a student budget at which orders can be seen on a CPU: 10,000 steps of 128 images for every method."""

from dataclasses import replace
from typing import Any

from benchmarks.rows import KD3_STUDENT, SMALL_CMI, SMALL_DAFL, STTS_STUDENT, WEB, Row, half
from dfkd.engine.core import Method
from dfkd.engine.plan import Plan
from dfkd.methods import D3K, DFND, KD3, NAYER, STTS, NoiseInput, SpaceshipNet, VanillaKD

PLAN = Plan(rounds=50, steps=200, batch_size=128, lr=0.1, weight_decay=5e-4)


def cifar10() -> list[Row]:
    """WRN-16-1 to ResNet-8 on CIFAR-10: 10,000 steps of 128 images for every method, last round, in bfloat16.

    NAYER, Spaceship-Net, D3K, CMI and STTS (with our extensions to BatchNorm and to grids) make 12,800 images each,
    with 1,920, 2,560, 10,240, 3,840 and 3,200 steps of synthesis. Noise is fresh in every step, and so are DAFL's
    images, before which its generator takes a step. Vanilla KD draws from the 50,000 training images, KD3 and DFND from
    as many photographs: KD3 selects in every fifth round, DFND half of them at the start. STTS and KD3 learn with Adam.
    """
    pair = ("wrn16-1", "resnet8")
    nayer = NAYER(steps=30, synthesis_batch=200, batches=1, warmup_batches=7, width=256, channels=32, alpha_bn=1.0)
    spaceship = SpaceshipNet(steps=40, synthesis_batch=200, lr=4e-3, lambda_cls=2.0, width=64, channels=32)
    d3k = D3K(steps=80, synthesis_batch=100, batches=2, widths=(16, 64), width=64, lr=0.01, alpha=0.1, init="torch")
    stts = STTS(
        alpha_bn=3.0,
        sigma=20.0,
        lambda_a=1.0,
        init_std=0.2,
        coarse=3,
        steps=50,
        lr=0.1,
        batches=4,
        synthesis_batch=200,
        degrees=0.0,
        scale=0.0,
        shift=0.0,
        noise=0.0,
        flip=True,
    )
    cmi = replace(SMALL_CMI, synthesis_batch=200, bank=12_800, negatives=512)
    dfnd = DFND(selected_share=0.5, teacher_accuracy=0.86)
    kd3 = KD3(select_every=5, skip_teacher_contrast=True)
    rows: list[tuple[str, Method[Any], Plan, dict[str, Any]]] = [
        ("vanilla KD (real data)", VanillaKD(), PLAN, {"real": "cifar10"}),
        ("noise input", NoiseInput(), PLAN, {}),
        ("NAYER", nayer, replace(PLAN, warmup=2), {}),
        ("Spaceship-Net", spaceship, replace(PLAN, warmup=14), {}),
        ("D3K", d3k, replace(PLAN, warmup=14), {}),
        ("STTS +bn, coarse", stts, replace(PLAN, warmup=16, **STTS_STUDENT), {}),
        ("KD3", kd3, replace(PLAN, **KD3_STUDENT), WEB),
        ("KD3 without contrast", replace(kd3, mdcl="none"), replace(PLAN, **KD3_STUDENT), WEB),
        ("CMI", cmi, replace(PLAN, warmup=14), {}),
        ("DAFL", SMALL_DAFL, replace(PLAN, turns=200), {}),
        ("DFND", dfnd, PLAN, WEB),
    ]
    return half(Row(label, *pair, method, plan, "", inputs) for label, method, plan, inputs in rows)
