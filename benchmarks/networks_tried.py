"""Other people's networks through the survey, one tiny round as teacher and one as student; the table in the docs.

Needs the extras ``timm``, ``torchvision`` and ``hf``. Weights are random, running statistics those of noise, and images
small: this tells what fits and what is refused, not how well anything is learnt.

    python -m benchmarks.networks_tried                     # print the table
    python -m benchmarks.networks_tried --write             # put it into docs/networks.md
    python -m benchmarks.networks_tried --only timm:xcep    # names that begin so
"""

import argparse
import platform
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

import dfkd
from dfkd.engine.core import Method, Task, unmet
from dfkd.engine.driver import run
from dfkd.methods import METHODS
from dfkd.nets.adapters import LogitsOnly
from dfkd.nets.vision import mend_torchvision
from dfkd.prepare import prepare
from dfkd.settings import Images

PAGE = Path(__file__).parents[1] / "docs" / "networks.md"
BEGIN, END = "<!-- table of networks -->\n", "<!-- end of networks -->\n"
CLASSES = 10
SMALL: dict[str, Method[Any]] = {  # a round of each as teacher: generator and BatchNorm, pixels, selected images
    "NAYER": dfkd.NAYER(steps=1, synthesis_batch=4, batches=1, width=8, channels=4, warmup_batches=1),
    "STTS": dfkd.STTS(steps=2, synthesis_batch=4, batches=1),
    "KD3": dfkd.KD3(select="random", v_th=0.01, head_width=8, block=32),  # random weights are sure of nothing
}
TIMM = {
    32: """resnet18 resnetv2_18 seresnet18 skresnet18 regnetx_002 regnety_002 mobilenetv2_050 mobilenetv3_small_050
        mobilenetv4_conv_small_035 mnasnet_small fbnetc_100 ghostnet_050 lcnet_035
        tinynet_e repvgg_a0 mobileone_s0 fastvit_t8 repvit_m0_9 gernet_s hrnet_w18_small selecsls42 convnext_atto
        edgenext_xx_small mobilevit_xxs rexnet_100 starnet_s1""",
    64: "ghostnetv2_100 ghostnetv3_050",
    96: "xception41 inception_v3 nasnetalarge",
    224: "efficientvit_m0 levit_128s vit_tiny_patch16_224",
}
TORCHVISION = {
    32: "resnet18 shufflenet_v2_x0_5 mobilenet_v2 mobilenet_v3_small squeezenet1_1 mnasnet0_5 regnet_x_400mf googlenet",
    128: "alexnet",
    299: "inception_v3",
}
SMALL_HF: dict[str, tuple[str, dict[str, Any]]] = {
    "ResNet basic": ("ResNet", {"layer_type": "basic", "depths": [1, 1, 1, 1], "hidden_sizes": [16, 16, 32, 64]}),
    "ResNet bottleneck": ("ResNet", {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 64, 64]}),
    "RegNet": ("RegNet", {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 64, 64], "groups_width": 8}),
    "ConvNext": ("ConvNext", {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 64, 64]}),
    "ViT": ("ViT", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}),
    "MobileNetV2": ("MobileNetV2", {"depth_multiplier": 0.35}),
    "EfficientNet": ("EfficientNet", {"width_coefficient": 0.25, "depth_coefficient": 0.5, "hidden_dim": 320}),
    "Swin": ("Swin", {"embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}),
}


@dataclass(frozen=True)
class Row:
    """One network: what it is, what fits it, and what is said."""

    name: str
    side: int
    parameters: str
    norms: str
    methods: str
    teacher: str
    student: str
    notes: str


def main() -> int:
    """Try all networks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    began, rows = time.monotonic(), []
    for name, side in names():
        if name.startswith(given.only):
            rows.append(try_network(name, side))
            print(line(rows[-1]), flush=True)
    packages = ", ".join(f"{p} {version(p)}" for p in ("torch", "timm", "torchvision", "transformers"))
    told = (
        f"{len(rows)} networks, {packages}, {platform.machine()}, one thread, "
        f"{(time.monotonic() - began) / 60:.0f} minutes."
    )
    print(told, file=sys.stderr)
    if given.write:
        write(rows, told)
    return 0


def names() -> Iterator[tuple[str, int]]:
    """(name, image side) of every network."""
    for prefix, table in (("timm", TIMM), ("torchvision", TORCHVISION)):
        for side, listed in table.items():
            yield from ((f"{prefix}:{name}", side) for name in listed.split())
    yield from ((f"transformers {name}", 64) for name in SMALL_HF)


def build_network(name: str, side: int) -> nn.Module:
    """The network with random weights."""
    torch.manual_seed(0)
    mend_torchvision()
    if name.startswith("transformers"):
        import transformers

        kind, settings = SMALL_HF[name.removeprefix("transformers ")]
        sizes = {"image_size": side, "patch_size": 16} if kind == "ViT" else {"image_size": side}
        config = getattr(transformers, f"{kind}Config")(num_labels=CLASSES, **sizes, **settings)
        net: nn.Module = LogitsOnly(getattr(transformers, f"{kind}ForImageClassification")(config))
    else:
        net = dfkd.build(name, CLASSES, 3).net
    return net


def calibrate(net: nn.Module, side: int) -> nn.Module:
    """``net`` with running statistics of noise."""
    norms = [layer for layer in net.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    for layer in norms:
        layer.momentum = None  # the mean of all batches
    with torch.no_grad():
        for _ in range(2 if norms else 0):
            net.train()(torch.randn(4, 3, side, side))
    return net.eval()


def try_network(name: str, side: int) -> Row:
    """One round as teacher of a small network, one as student of one."""
    size = (3, side, side)
    try:
        net = build_network(name, side)
        facts = dfkd.survey(net, size, CLASSES)
        calibrate(net, side)
    except Exception as error:
        return Row(name, side, "", "", "", "", "", sentence_of(error))
    norms = f"{facts.norms}" if facts.norms else "none"
    norms += f", {len(facts.idle_norms)} idle" if facts.idle_norms else ""
    norms += f", {len(facts.repeated_norms)} shared" if facts.repeated_norms else ""
    other = dfkd.build("resnet8", CLASSES, 3).net
    teacher, fits, notes = outcome((net, other), size, "teacher")
    student, _, more = outcome((dfkd.build("resnet8", CLASSES, 3).net, build_network(name, side)), size, "student")
    return Row(name, side, f"{facts.parameters:,}", norms, fits, teacher, student, "; ".join([*notes, *more]))


def outcome(pair: tuple[nn.Module, nn.Module], size: tuple[int, int, int], trained: str) -> tuple[str, str, list[str]]:
    """What ran a round of ``pair``, or the sentence; the methods whose needs are met; and what is said of the pair.

    A foreign teacher goes through one round of each of three methods where it fits them, a foreign student through
    one of noise.
    """
    web = torch.randint(0, 256, (64, *size), dtype=torch.uint8)
    data = Images(image_size=size, mean=(0.5,) * 3, std=(0.25,) * 3, web=web)
    runtime, plan = dfkd.Runtime(device="cpu").launch(), dfkd.Plan(rounds=1, warmup=0, steps=1, batch_size=4)
    fits, ran, notes = "", [], list[str]()
    try:
        teacher, student = dfkd.Classifier(pair[0]), dfkd.Classifier(pair[1])
        task, facts, *_ = prepare(teacher, student, runtime, data, "index")
        fits = usable_methods(task)
        notes = [note for one in facts for note in one.notes if "saw an image" not in note]
        rounds = {name: method for name, method in SMALL.items() if name in fits.split(", ")}
        for name, method in (rounds if trained == "teacher" and rounds else {"noise": dfkd.NoiseInput()}).items():
            task.teacher.release()
            task.student.release()
            task, *_ = prepare(teacher, student, runtime, data, "index", method=method)
            run(task, method, replace(plan, warmup=method.least_warmup()))
            ran.append(name)
    except Exception as error:
        return "; ".join([*ran, sentence_of(error)]), fits, notes
    return ", ".join(ran), fits, notes


def usable_methods(task: Task) -> str:
    """The methods whose needs the pair meets, with web images."""
    left = ("NoiseInput", "VanillaKD")
    return ", ".join(name for name, kind in METHODS.items() if name not in left and not unmet(task, kind()))


def sentence_of(error: Exception) -> str:
    """A refusal as it is said; anything else is a fault."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else ""
    return text if isinstance(error, dfkd.UserError) else f"FAULT {type(error).__name__}: {text}"


def line(row: Row) -> str:
    """One row of the table."""
    cells = (f"`{row.name}`", row.side, row.parameters, row.norms, row.methods, row.teacher, row.student, row.notes)
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def write(rows: list[Row], told: str) -> None:
    """Put the table between its marks in the page."""
    titles = ("network", "side", "parameters", "BatchNorm read", "methods it fits as teacher", "rounds as teacher")
    head = f"| {' | '.join((*titles, 'round as student', 'said'))} |"
    table = "\n".join((head, "|---|---|---|---|---|---|---|---|", *map(line, rows)))
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{told}\n\n{table}\n\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    raise SystemExit(main())
