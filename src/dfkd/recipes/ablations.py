"""The ablation tables of the papers: recipes of ``table.py`` with a few changes each, made from lists of changes."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from dfkd.recipes.table import PAIRS, ROWS, Plain, Row

__all__ = ["ABLATIONS"]

# What is varied: name -> (the paper's accuracy in percent or None, changed settings).
Variants = Mapping[str, tuple[float | None, Plain]]

_FIGURE = "the paper shows this as a curve only"


# Embeddings that reach G unnormalised: the shipped ones have norm 1, the authors' CLIP vectors 10 to 11.4.
_CLIP_NORM: Plain = {"text_scale": 10.7}


_CLIPS = "the figure is CLIP's; the shipped vectors are MiniLM's"

# What encodes the class names: variant, our encoder, what to know.
_ENCODERS = (
    ("doc2vec", "file", "not runnable as it is: no extra brings a Doc2Vec model; give its vectors, --text.file"),
    ("sbert", "minilm", "by all-MiniLM-L6-v2, needs the extra text; the paper's own model may be another"),
    ("clip", "clip", "the paper's encoder; needs the extra clip, which downloads weights"),
)


def _base(name: str) -> Row:
    return next(row for row in ROWS if row.name == name)


def _vary(base: Row, variants: Variants, plan: Plain | None = None, note: str | None = None) -> Iterator[Row]:
    """``base`` once for each variant, with its settings and, for all of them, ``plan`` changed."""
    for variant, (paper, settings) in variants.items():
        yield replace(
            base,
            settings={**base.settings, **settings},
            plan={**base.plan, **(plan or {})},
            paper=paper,
            note=base.note if note is None else note,
            variant=variant,
        )


def _nayer() -> Iterator[Row]:
    """Shorter budgets (its Tables 1 and 2), what feeds the generator (its Table 4), memory, prompts, encoders."""
    shorter = {
        ("cifar10", 100): (94.03, 91.34, 91.12, 93.57, 93.48),
        ("cifar10", 200): (94.89, 91.93, 91.60, 94.03, 93.84),
        ("cifar100", 100): (76.29, 71.10, 59.26, 69.89, 70.20),
        ("cifar100", 200): (77.07, 71.53, 61.90, 70.68, 71.22),
    }
    for (data, rounds), papers in shorter.items():
        for (teacher, student), paper in zip(PAIRS, papers, strict=True):
            base = _base(f"nayer/{data}-{teacher}-{student}")
            yield from _vary(base, {f"rounds{rounds}": (paper, {})}, {"rounds": rounds})
    tiny = _base("nayer/tiny-imagenet-resnet34-resnet18")
    for rounds, paper in ((100, 61.71), (200, 63.12)):
        yield from _vary(tiny, {f"rounds{rounds}": (paper, {})}, {"rounds": rounds})
    inputs: Variants = {
        "onehot": (12.35, {"code": "onehot"}),
        "noise": (90.14, {"code": "z"}),
        "text": (13.52, {"code": "lte", **_CLIP_NORM}),
        "text-concat-noise": (13.29, {"code": "concat", **_CLIP_NORM}),
        "text-plus-0.1-noise": (18.92, {"code": "sum", "beta": 0.1, **_CLIP_NORM}),
        "text-plus-0.5-noise": (85.72, {"code": "sum", "beta": 0.5, **_CLIP_NORM}),
        "text-plus-noise": (90.15, {"code": "sum", **_CLIP_NORM}),
        "no-redraw": (14.82, {"redraw": False, "renew": None, "group": "batch"}),
        "1-to-1": (93.42, {"group": "one"}),
        "no-norm": (91.15, {"norm": False}),
    }
    yield from _vary(_base("nayer/cifar10-wrn40-2-wrn16-2"), inputs, {"rounds": 100})
    rows = {5: 90.41, 10: 90.76, 20: 90.98, 40: 91.21, 100: 91.64, 200: 91.86}
    memory = {f"memory{k}k": (paper, {"memory": 1000 * k}) for k, paper in rows.items()}
    yield from _vary(_base("nayer/cifar10-wrn40-2-wrn16-1"), memory)
    prompts = {"cifar10": {"P1": 93.96, "P3": 93.28}, "cifar100": {"P1": 71.68, "P3": 71.12}}
    for data, papers_by_prompt in prompts.items():
        for prompt, paper in papers_by_prompt.items():
            for row in _vary(_base(f"nayer/{data}-wrn40-2-wrn16-2"), {prompt.lower(): (paper, {})}):
                yield replace(row, text={"prompt": prompt}, note=_CLIPS)
    encoders = {"cifar10": (93.98, 93.94, 94.07), "cifar100": (71.58, 71.63, 71.72)}
    for data, figures in encoders.items():
        base = _base(f"nayer/{data}-wrn40-2-wrn16-2")
        for (variant, encoder, note), paper in zip(_ENCODERS, figures, strict=True):
            yield replace(base, paper=paper, note=note, text={"encoder": encoder}, variant=variant)


def _spaceship() -> Iterator[Row]:
    """How images are varied and what constrains the student (its Table 3), and how much is exchanged."""
    parts: Variants = {
        "neither": (60.17, {"diversity": "none", "constraint": "none"}),
        "msarc": (62.05, {"diversity": "none"}),
        "cfe": (48.18, {"constraint": "none"}),
        "cutmix": (65.24, {"diversity": "cutmix", "constraint": "none"}),
        "mixup": (61.40, {"diversity": "mixup", "constraint": "none"}),
        "cutmix-msarc": (76.47, {"diversity": "cutmix"}),
        "mixup-msarc": (75.72, {"diversity": "mixup"}),
        "cfe-at": (36.09, {"constraint": "at"}),
        "cfe-fitnets": (25.81, {"constraint": "fitnets"}),
        "cutmix-msarc-code": (76.47, {"diversity": "cutmix", "mixing": "batch"}),
        "mixup-msarc-code": (75.72, {"diversity": "mixup", "mixing": "batch"}),
        "exchange10": (77.04, {"fraction": 0.1}),
        "exchange30": (77.11, {"fraction": 0.3}),
    }
    yield from _vary(_base("spaceshipnet/cifar100-resnet34-resnet18"), parts)


def _d3k() -> Iterator[Row]:
    """Self-distillation, and its parts and the sweep of λ, which the paper shows as curves."""
    settings = {
        "wrn40-2": {"svhn": 96.73, "cifar10": 94.72, "cifar100": 75.43},
        "wrn16-1": {"svhn": 96.29, "cifar10": 90.64, "cifar100": 60.06},
    }
    for net, papers in settings.items():
        for data, paper in papers.items():
            base = _base(f"d3k/{data}-wrn40-2-wrn16-1")
            yield replace(base, teacher=net, student=net, paper=paper, variant="self")
    parts: Variants = {
        "fixed-generator": (None, {"theta": 0.0, "widths": [64, 64], "kernels": [3]}),
        "no-hash": (None, {"theta": 0.0}),
    }
    strengths: Variants = {f"lambda{value}": (None, {"hash_lambda": value}) for value in (0.3, 0.6, 1.2)}
    own_values: Variants = {"theta0.5": (None, {"theta": 0.5}), "theta2": (None, {"theta": 2.0})}
    xor: Variants = {"xor": (None, {"hash_form": "xor", "ste": "difference"})}
    for data in ("cifar10", "cifar100"):
        wide, vgg = (_base(f"d3k/{data}-{pair}") for pair in ("wrn40-2-wrn16-1", "vgg11-resnet18"))
        yield from _vary(wide, parts, note=_FIGURE)
        yield from _vary(vgg, parts, note=_FIGURE)
        yield from _vary(wide, strengths, note=_FIGURE)
        yield from _vary(wide, own_values, note="own values; of those that the paper tried, 1 was the best")
        yield from _vary(wide, xor, note="a reading of ours: codes are driven away from the bank's majority")


# KD3's Table 4: 5, 25, 50 and 75 % of the web images. Its second student has the same teacher, ResNet-34.
_SHARES = {
    "cifar10-resnet34-resnet18": (84.35, 92.83, 94.11, 94.97),
    "cifar100-resnet34-resnet18": (61.17, 75.57, 77.02, 77.85),
    "cinic10-resnet34-resnet18": (75.01, 82.19, 84.49, 85.88),
    "tiny-imagenet-resnet34-resnet18": (52.28, 63.87, 65.86, 66.15),
    "cifar10-resnet34-vgg13": (82.90, 92.66, 93.76, 94.18),
    "cifar100-resnet34-vgg13": (53.41, 73.99, 76.06, 76.18),
}


def _cmi() -> Iterator[Row]:
    """Without images made beforehand, without the adversary, without the contrast."""
    base = _base("cmi/cifar10-wrn40-2-wrn16-1")
    scratch = replace(base, settings={}, plan={}, paper=88.82, note="the authors' README", variant="scratch")
    yield scratch
    yield replace(scratch, settings={"alpha_cr": 0.0}, paper=None, note="no paper prints it", variant="no-contrast")
    only = {"batches": 0, "alpha_adv": 0.0, "alpha_cls": 0.5}
    plan = {"warmup": 196, "rounds": 200, "steps": 391}
    yield replace(base, settings=only, plan=plan, paper=87.38, note="the paper's Figure 3", variant="no-adversary")


def _kd3() -> Iterator[Row]:
    """Its parts (its Table 2) and the share of the web images that may be selected (its Table 4)."""
    parts: dict[str, tuple[float, float, Plain]] = {
        "onehot": (93.42, 74.54, {"share_head": False, "labels": "onehot"}),
        "soft": (93.98, 76.92, {"share_head": False, "labels": "soft"}),
        "random": (90.22, 73.60, {"select": "random"}),
        "student": (91.99, 75.30, {"select": "student"}),
        "teacher": (94.01, 76.76, {"select": "teacher"}),
        "no-contrast": (94.48, 77.35, {"mdcl": "none"}),
        "mixup": (94.61, 77.43, {"perturb": "mixup"}),
        "ordinary": (94.61, 77.43, {"perturb": "ordinary"}),
    }
    ten: Variants = {name: (paper, settings) for name, (paper, _, settings) in parts.items()}
    hundred: Variants = {name: (paper, settings) for name, (_, paper, settings) in parts.items()}
    yield from _vary(_base("kd3/cifar10-resnet34-resnet18"), ten)
    yield from _vary(_base("kd3/cifar100-resnet34-resnet18"), hundred)
    for pair, papers in _SHARES.items():
        base = _base(f"kd3/{pair}")
        for percent, paper in zip((5, 25, 50, 75), papers, strict=True):
            # As many steps for a web image as at 100 %, where 782 of 64 images are one pass over 50,000.
            steps = {"steps": round(7.82 * percent)}
            yield from _vary(base, {f"pool{percent}": (paper, {"pool_share": percent / 100})}, steps)
    tenth = _base("kd3/cifar10-resnet34-resnet18")
    weights: Variants = {f"alpha{value}": (None, {"alpha": value}) for value in (0.001, 0.1, 1.0)}
    yield from _vary(tenth, weights, note=f"{_FIGURE}; α weighs a mean over the batch here, a sum of 64 in print")
    sweep: Variants = {
        **{f"tau{value}": (None, {"temperature": value}) for value in (0.1, 0.5, 0.7)},
        **{f"v{value}": (None, {"v_th": value}) for value in (0.9, 0.925, 0.975)},
    }
    yield from _vary(tenth, sweep, note=_FIGURE)
    literal: Variants = {"sum": (None, {"alignment": "sum", "reference_batch": None})}
    yield from _vary(tenth, literal, note="eq. 18 with both terms as sums: over features, and over the batch")


def _stts() -> Iterator[Row]:
    """The layer and the terms (its Tables 4 and 5), the sweeps of σ and λ_a, and ZSKD (its Table 2)."""
    for name, papers in (
        ("stts/mnist-lenet5-lenet5-half", (98.92, 99.04, 98.96)),
        ("stts/cifar10-alexnet-alexnet-half", (71.95, 73.54, 72.46)),
    ):
        base = _base(name)
        terms: Variants = {
            "softmax": (papers[0], {"space": "logits", "lambda_a": 0.0}),
            "targets": (papers[1], {"lambda_a": 0.0}),
            "softmax-activation": (papers[2], {"space": "logits"}),
        }
        yield from _vary(base, terms)
        yield from _vary(base, {"activation": (None, {"lambda_d": 0.0})}, note="a control of ours: no targets at all")
        printed: Plain = {"act_reduction": "sum", "kl_tau2": False}
        yield from _vary(
            base, {"literal": (None, printed)}, note="L_a as a sum over the map, L_d without τ², as printed"
        )
        settings = {"sigma": 2.0, "lambda_a": 0.05, **base.settings}
        sweep = {
            **{f"sigma{value}": (None, {"sigma": value}) for value in (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)},
            **{f"lambda{value}": (None, {"lambda_a": value}) for value in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)},
        }
        variants = {key: row for key, row in sweep.items() if any(settings[k] != value for k, value in row[1].items())}
        yield from _vary(base, variants, note=f"{_FIGURE}; λ_a here weighs a mean over the map beside τ² L_d")
    yield from _stts_norms()
    # ZSKD has no activation loss; it starts from uniform noise and rescales the images in every step.
    zskd = {"targets": "dirichlet", "lambda_a": 0.0, "init": "uniform", "bound": "rescale"}
    for name, paper in (
        ("mnist-lenet5-lenet5-half", 98.77),
        ("cifar10-alexnet-alexnet-half", 69.56),
        ("cifar10-resnet34-resnet18", 91.99),
    ):
        yield from _vary(_base(f"stts/{name}"), {"dirichlet": (paper, zskd)}, note="ZSKD, as STTS's Table 2 prints it")


def _stts_norms() -> Iterator[Row]:
    """Teachers with BatchNorm: extensions of ours, their controls, and two readings of ZSKD's published code."""
    rows: list[tuple[str, Plain, str]] = [
        ("bn", {"alpha_bn": 3.0}, "an extension of ours: DeepInversion's BatchNorm term"),
        ("bn-control", {"alpha_bn": 3.0, "lambda_d": 0.0}, "the BatchNorm term of +bn without the targets"),
        ("bn-coarse", {"alpha_bn": 3.0, "coarse": 3}, "extensions of ours: +bn, images as sums of grids"),
        ("bn-coarse-control", {"alpha_bn": 3.0, "coarse": 3, "lambda_d": 0.0}, "+bn-coarse without the targets"),
        ("batch-statistics", {"teacher_bn": "batch"}, "a reading: T's BatchNorm as in ZSKD's code"),
        ("stored-targets", {"student_target": "stored"}, "a reading: targets of the images as made, not as augmented"),
    ]
    for name in ("cifar10-alexnet-alexnet-half", "cifar10-resnet34-resnet18"):
        for variant, settings, note in rows:
            yield from _vary(_base(f"stts/{name}"), {variant: (None, settings)}, note=note)


ABLATIONS: tuple[Row, ...] = (*_nayer(), *_spaceship(), *_d3k(), *_cmi(), *_kd3(), *_stts())
"""Every row; names end in a plus sign and what differs."""
