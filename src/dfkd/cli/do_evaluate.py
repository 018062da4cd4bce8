"""`dfkd evaluate`."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dfkd.cli.config import Evaluate
from dfkd.cli.job import RECIPE_FILE
from dfkd.cli.names import check_name
from dfkd.cli.parse import read_yaml
from dfkd.cli.setup import load, name_and_sidecar, seed_everything, with_weights_path
from dfkd.cli.trust import refuse_code
from dfkd.data.classes import in_order
from dfkd.data.readers import read_images
from dfkd.engine.anatomy import survey
from dfkd.engine.evaluate import evaluate
from dfkd.engine.probe import Probe
from dfkd.engine.runtime import Runtime
from dfkd.engine.verify import verify
from dfkd.errors import UserError
from dfkd.inputs import Facts, facts_of, runtime_of
from dfkd.report.files import plain
from dfkd.report.summary import percent
from dfkd.settings import Network

__all__ = ["run"]


def run(settings: Evaluate) -> int:
    """Measure a network on labelled images; with a teacher, also how often the two choose the same class."""
    settings = _with_target(settings)
    settings = replace(
        settings, network=with_weights_path(settings.network), teacher=with_weights_path(settings.teacher)
    )
    if settings.data.test is None:
        raise UserError("evaluate needs labelled images, got none; give --data.test cifar10, FILE.npz or folder:DIR")
    check_name(settings.network, "network")
    check_name(settings.teacher, "teacher")
    _, sidecar = name_and_sidecar(settings.network, "network")
    facts = facts_of(settings.data, sidecar, "network")
    seed_everything(settings.runtime.seed, settings.runtime.threads)
    images = read_images(str(settings.data.test), "test", side=facts.image_size[1:], channels=facts.image_size[0])
    images = in_order(images, facts.names, facts.classes, "test")
    runtime = runtime_of(settings.runtime).launch()
    student = _probe(settings.network, facts, runtime, "network")
    teacher = None
    if settings.teacher.name or settings.teacher.weights:
        _, of_teacher = name_and_sidecar(settings.teacher, "teacher")
        # What is not said of the teacher is as for the network that it taught.
        teacher = _probe(
            settings.teacher,
            replace(facts, mean=of_teacher.mean or facts.mean, std=of_teacher.std or facts.std),
            runtime,
            "teacher",
        )
    evaluation = evaluate(student, images.images, images.labels, facts.classes, runtime, teacher)
    if settings.json:
        row: dict[str, Any] = asdict(evaluation)
        if teacher is None:
            row["agreement"], row["class_agreement"] = None, None
        print(json.dumps(plain(row)))
        return 0
    agreement = "" if teacher is None else f", agreement with the teacher {percent(evaluation.agreement)}"
    print(
        f"accuracy {percent(evaluation.accuracy)}{agreement}, loss {evaluation.loss:.4f}, {evaluation.images:,} images"
    )
    return 0


def _with_target(settings: Evaluate) -> Evaluate:
    """A run folder brings its student, its teacher and its test images; a file only itself."""
    if settings.target is None:
        return settings
    target = Path(settings.target)
    network = replace(settings.network, weights=settings.network.weights or str(target))
    settings = replace(settings, network=network)
    if not (target / RECIPE_FILE).is_file():
        return settings
    if not (target / "student.safetensors").is_file():
        raise UserError(f"evaluate needs a finished run, got {target} without a student; resume it first")
    recipe = read_yaml(target / RECIPE_FILE)
    data = settings.data if settings.data.test else replace(settings.data, test=recipe.get("data", {}).get("test"))
    teacher = settings.teacher
    row = recipe.get("teacher", {})
    if not (teacher.name or teacher.weights) and row.get("weights") and Path(row["weights"]).exists():
        refuse_code({"teacher": row}, {}, target / RECIPE_FILE)
        teacher = Network(name=row.get("name"), weights=row["weights"], key=row.get("key"))
    return replace(settings, data=data, teacher=teacher)


def _probe(network: Network, facts: Facts, runtime: Runtime, role: str) -> Probe:
    net = load(network, facts, role, trained=True).classifier.net
    anatomy = survey(net, facts.image_size, facts.classes or None, role)
    probe = verify(
        net,
        runtime,
        image_shape=facts.image_size,
        mean=facts.mean,
        std=facts.std,
        role=role,
        trains=False,
        norms=(),
        outputs=anatomy.outputs,
    )
    for note in (*anatomy.notes, *probe.notes):
        print(f"note: {note}", file=sys.stderr)
    return probe.probe.freeze()
