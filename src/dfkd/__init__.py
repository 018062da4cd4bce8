"""dfkd: data-free knowledge distillation for PyTorch image classifiers.

The public names are imported on first use, so that ``import dfkd`` and ``dfkd --help`` stay quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dfkd.api import Distilled, distill
    from dfkd.data.pool import Pool
    from dfkd.data.readers import STATISTICS, ImageSet, read_images
    from dfkd.data.rows import Rows, open_rows
    from dfkd.data.text import TextEmbedding, class_list, embed
    from dfkd.deploy.adapt import adapt
    from dfkd.deploy.export import export
    from dfkd.deploy.loading import load
    from dfkd.deploy.quantize import quantize
    from dfkd.engine.anatomy import Anatomy, survey
    from dfkd.engine.core import Clock, Method, State, Task
    from dfkd.engine.driver import Watch, run
    from dfkd.engine.estimate import Estimate, estimate
    from dfkd.engine.evaluate import evaluate
    from dfkd.engine.exchange import Exchange
    from dfkd.engine.measures import Measure
    from dfkd.engine.needs import Need
    from dfkd.engine.plan import Plan
    from dfkd.engine.probe import Probe
    from dfkd.engine.recombine import Recombine
    from dfkd.engine.records import Evaluation, Observer, RoundRecord, RunInfo, RunResult
    from dfkd.engine.runtime import Runtime
    from dfkd.engine.sharing import share_head, widen
    from dfkd.errors import UserError
    from dfkd.methods import METHODS
    from dfkd.methods.cmi import CMI
    from dfkd.methods.d3k import D3K
    from dfkd.methods.dafl import DAFL
    from dfkd.methods.dfnd import DFND
    from dfkd.methods.kd3 import KD3
    from dfkd.methods.nayer import NAYER
    from dfkd.methods.noise import NoiseInput
    from dfkd.methods.spaceship import SpaceshipNet
    from dfkd.methods.stts import STTS
    from dfkd.methods.vanilla import VanillaKD
    from dfkd.nets.zoo import ZOO, Classifier, build
    from dfkd.prepare import build_task
    from dfkd.settings import Images, Machine, Stopping, Text, Watching
    from dfkd.teacher import save_teacher, teach
    from dfkd.teacher_plan import TeachPlan
    from dfkd.tune.choose import choose
    from dfkd.tune.search import search
    from dfkd.types import Batch, Moments, Readout

__version__ = "0.1.0"

_WHERE = {
    "CMI": "dfkd.methods.cmi",
    "D3K": "dfkd.methods.d3k",
    "DAFL": "dfkd.methods.dafl",
    "DFND": "dfkd.methods.dfnd",
    "KD3": "dfkd.methods.kd3",
    "METHODS": "dfkd.methods",
    "NAYER": "dfkd.methods.nayer",
    "STATISTICS": "dfkd.data.readers",
    "STTS": "dfkd.methods.stts",
    "ZOO": "dfkd.nets.zoo",
    "Anatomy": "dfkd.engine.anatomy",
    "Batch": "dfkd.types",
    "Classifier": "dfkd.nets.zoo",
    "Clock": "dfkd.engine.core",
    "Distilled": "dfkd.api",
    "Estimate": "dfkd.engine.estimate",
    "Evaluation": "dfkd.engine.records",
    "Exchange": "dfkd.engine.exchange",
    "ImageSet": "dfkd.data.readers",
    "Images": "dfkd.settings",
    "Machine": "dfkd.settings",
    "Measure": "dfkd.engine.measures",
    "Method": "dfkd.engine.core",
    "Moments": "dfkd.types",
    "Need": "dfkd.engine.needs",
    "NoiseInput": "dfkd.methods.noise",
    "Observer": "dfkd.engine.records",
    "Plan": "dfkd.engine.plan",
    "Pool": "dfkd.data.pool",
    "Probe": "dfkd.engine.probe",
    "Readout": "dfkd.types",
    "Recombine": "dfkd.engine.recombine",
    "RoundRecord": "dfkd.engine.records",
    "Rows": "dfkd.data.rows",
    "RunInfo": "dfkd.engine.records",
    "RunResult": "dfkd.engine.records",
    "Runtime": "dfkd.engine.runtime",
    "SpaceshipNet": "dfkd.methods.spaceship",
    "State": "dfkd.engine.core",
    "Stopping": "dfkd.settings",
    "Task": "dfkd.engine.core",
    "TeachPlan": "dfkd.teacher_plan",
    "Text": "dfkd.settings",
    "TextEmbedding": "dfkd.data.text",
    "UserError": "dfkd.errors",
    "VanillaKD": "dfkd.methods.vanilla",
    "Watch": "dfkd.engine.driver",
    "Watching": "dfkd.settings",
    "adapt": "dfkd.deploy.adapt",
    "build": "dfkd.nets.zoo",
    "build_task": "dfkd.prepare",
    "choose": "dfkd.tune.choose",
    "class_list": "dfkd.data.text",
    "distill": "dfkd.api",
    "embed": "dfkd.data.text",
    "estimate": "dfkd.engine.estimate",
    "evaluate": "dfkd.engine.evaluate",
    "export": "dfkd.deploy.export",
    "load": "dfkd.deploy.loading",
    "open_rows": "dfkd.data.rows",
    "quantize": "dfkd.deploy.quantize",
    "read_images": "dfkd.data.readers",
    "run": "dfkd.engine.driver",
    "save_teacher": "dfkd.teacher",
    "search": "dfkd.tune.search",
    "share_head": "dfkd.engine.sharing",
    "survey": "dfkd.engine.anatomy",
    "teach": "dfkd.teacher",
    "widen": "dfkd.engine.sharing",
}

__all__ = [
    "CMI",
    "D3K",
    "DAFL",
    "DFND",
    "KD3",
    "METHODS",
    "NAYER",
    "STATISTICS",
    "STTS",
    "ZOO",
    "Anatomy",
    "Batch",
    "Classifier",
    "Clock",
    "Distilled",
    "Estimate",
    "Evaluation",
    "Exchange",
    "ImageSet",
    "Images",
    "Machine",
    "Measure",
    "Method",
    "Moments",
    "Need",
    "NoiseInput",
    "Observer",
    "Plan",
    "Pool",
    "Probe",
    "Readout",
    "Recombine",
    "RoundRecord",
    "Rows",
    "RunInfo",
    "RunResult",
    "Runtime",
    "SpaceshipNet",
    "State",
    "Stopping",
    "Task",
    "TeachPlan",
    "Text",
    "TextEmbedding",
    "UserError",
    "VanillaKD",
    "Watch",
    "Watching",
    "__version__",
    "adapt",
    "build",
    "build_task",
    "choose",
    "class_list",
    "distill",
    "embed",
    "estimate",
    "evaluate",
    "export",
    "load",
    "open_rows",
    "quantize",
    "read_images",
    "run",
    "save_teacher",
    "search",
    "share_head",
    "survey",
    "teach",
    "widen",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'dfkd' has no attribute {name!r}")
    value = getattr(import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
