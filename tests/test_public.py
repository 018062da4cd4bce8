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
    "adapt", "build", "build_task", "class_list", "distill", "embed", "evaluate", "export", "load", "open_rows",
    "quantize", "read_images", "run", "survey",
]

DISTILL = [
    "teacher", "student", "method", "data", "text", "plan", "runtime", "watch", "stop", "out", "resume", "observers",
    "progress", "values",
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
    assert have == DISTILL
    kinds = [p.kind for p in inspect.signature(dfkd.distill).parameters.values()]
    assert kinds[3:-1] == [inspect.Parameter.KEYWORD_ONLY] * (len(kinds) - 4)


def test_every_field_of_the_sections_has_a_name_of_its_own() -> None:
    sections = (dfkd.Images, dfkd.Text, dfkd.Machine, dfkd.Watching, dfkd.Stopping)
    names = [item.name for section in sections for item in dataclasses.fields(section)]
    assert len(set(names)) == len(names)
    assert not set(names) & set(DISTILL)


def test_importing_stays_light() -> None:
    script = "import sys, dfkd; print([m for m in ('torch', 'numpy', 'lightning_fabric', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    heavy = ("matplotlib", "sklearn", "timm", "torchvision", "sentence_transformers", "lightning_fabric")
    script = f"import sys, dfkd; dfkd.distill, dfkd.run; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
