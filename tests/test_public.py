"""The public surface: names, what they are, and that importing them is quick."""

import dataclasses
import inspect
import subprocess
import sys
from typing import Any

import dfkd
from dfkd.methods import METHODS

# fmt: off
NAMES = [
    "METHODS", "NAYER", "STATISTICS", "ZOO", "Anatomy", "Batch", "Clock", "Distilled", "Evaluation", "Exchange",
    "ImageSet", "Method", "Moments", "Need", "Observer", "Plan", "Pool", "Probe", "Readout", "Recombine", "RoundRecord",
    "Rows", "RunInfo", "RunResult", "Runtime", "State", "Task", "TextEmbedding", "UserError", "Watch", "__version__",
    "build", "build_task", "class_list", "distill", "embed", "evaluate", "open_rows", "read_images", "run", "survey",
]

DISTILL = [
    "teacher", "student", "method", "image_size", "mean", "std", "classes", "plan", "out", "resume", "test", "text",
    "prompt", "web", "real", "runtime", "seed", "observers", "progress", "evaluate_every", "samples_every",
    "save_every", "teacher_layers", "student_layers", "names", "spec", "export",
]
# fmt: on


def test_the_names_promised_are_there() -> None:
    assert set(NAMES) <= set(dfkd.__all__)
    for name in dfkd.__all__:
        assert getattr(dfkd, name) is not None
    assert sorted(dir(dfkd)) == sorted(dfkd.__all__)
    assert len(set(dfkd.__all__)) == len(dfkd.__all__)


def test_the_table_and_the_type_checker_see_the_same_names() -> None:
    source = inspect.getsource(dfkd)
    for name, where in dfkd._WHERE.items():
        value = getattr(dfkd, name)
        assert f"from {where} import" in source, name
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__module__ == where, name
    assert set(dfkd._WHERE) | {"__version__"} == set(dfkd.__all__)


def test_every_method_is_public() -> None:
    for name, kind in METHODS.items():
        if name not in ("NoiseInput", "VanillaKD"):  # yardsticks, by METHODS alone
            assert getattr(dfkd, name) is kind


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(dfkd, "nonsense")


def test_public_things_are_documented() -> None:
    for name in dfkd.__all__:
        value: Any = getattr(dfkd, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            text = inspect.getdoc(value) or ""
            generated = dataclasses.is_dataclass(value) and text.startswith(f"{name}(")
            assert text, name
            assert not generated, name


def test_distill_takes_what_it_took() -> None:
    have = list(inspect.signature(dfkd.distill).parameters)
    assert [name for name in have if name in DISTILL] == DISTILL
    kinds = [p.kind for p in inspect.signature(dfkd.distill).parameters.values()]
    assert kinds[3:] == [inspect.Parameter.KEYWORD_ONLY] * (len(kinds) - 3)


def test_importing_stays_light() -> None:
    script = "import sys, dfkd; print([m for m in ('torch', 'numpy', 'lightning_fabric', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    heavy = ("kornia", "matplotlib", "sklearn", "timm", "torchvision", "sentence_transformers", "lightning_fabric")
    script = f"import sys, dfkd; dfkd.distill, dfkd.run; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
