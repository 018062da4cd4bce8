"""The model card of a student, written from the record of its run."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dfkd.deploy.export import EXPORT_FILE, EXPORT_FOLDER
from dfkd.deploy.quantize import QUANTIZE_FILE
from dfkd.engine.needs import Need
from dfkd.engine.records import RunInfo
from dfkd.errors import UserError
from dfkd.methods import METHODS
from dfkd.report.files import RUN_FILE, read_run
from dfkd.report.image_kinds import REAL, SYNTHETIC, WEB, ImageKind, image_kind
from dfkd.report.summary import count, duration, file_size, percent, sentence, stop_sentence
from dfkd.report.without_test import estimate_sentence, last_estimate

__all__ = ["card_of"]

PROGRAM = "student.pt2"
LEARNT_FROM: Mapping[ImageKind, str] = MappingProxyType(
    {
        SYNTHETIC: "it learnt from synthetic images, made from the teacher alone",
        WEB: "it learnt from unlabelled images from elsewhere",
        REAL: "it learnt from labelled training images",
    }
)


def card_of(folder: Path, repository: str, licence: str = "unknown") -> str:
    """A README.md with the front matter of the Hugging Face hub.

    Where there were no test images, the agreement with the teacher on held-out synthetic ones stands for the accuracy.

    Args:
        folder: of a finished run.
        repository: ``owner/name``.
        licence: an identifier of the hub, such as ``apache-2.0``.

    Raises:
        UserError: the run is not finished, or its record is damaged.
    """
    import jinja2

    if not (folder / RUN_FILE).is_file():
        raise UserError(f"a model card needs the folder of a run, got {folder} without {RUN_FILE}; give one")
    run = read_run(folder)
    if run.result is None:
        raise UserError(
            f"a model card needs a finished run, got {folder}, which is {run.status}; go on with "
            f"`dfkd distill --resume {folder}`"
        )
    info, result = run.info, run.result
    about = _description(folder)
    kind = _kind_of(info)
    adapted = about.get("adapted")
    final, first = result.final, result.teacher_evaluation
    estimate = last_estimate(run.rounds)
    plan: dict[str, Any] = dict(info.plan)
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    page = jinja2.Environment(
        loader=loader, autoescape=False, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    ).get_template("card.md.j2")
    return page.render(
        title=repository.rpartition("/")[2],
        repository=repository,
        licence=licence,
        licence_text=_licence(licence),
        method=info.method,
        made=LEARNT_FROM[kind],
        data_free=kind == SYNTHETIC and not adapted,
        adapted=f": its BatchNorm statistics were estimated on {adapted['images']} real images" if adapted else "",
        adaptation=_adaptation(adapted) if adapted else "",
        teacher=_network(info.teacher),
        student=_network(info.student),
        shape=" x ".join(map(str, info.image_shape)),
        shape_list=", ".join(map(str, info.image_shape)),
        classes=info.classes,
        names=_names(info.names),
        mean=_numbers(about.get("mean", [])),
        std=_numbers(about.get("std", [])),
        accuracy=percent(final.accuracy) if final else "",
        agreement=percent(final.agreement) if final else "",
        images=f"{final.images:,}" if final else "",
        teacher_accuracy=percent(first.accuracy) if first else "–",
        program=PROGRAM if (folder / PROGRAM).is_file() else "",
        estimate="" if estimate is None else estimate_sentence(estimate),
        stopped="" if result.stopped is None else sentence(stop_sentence(run.rounds, result.stopped)),
        rounds=plan.get("rounds", len(run.rounds)),
        steps=plan.get("steps"),
        batch_size=plan.get("batch_size"),
        duration=duration(result.seconds),
        provenance=info.provenance,
        **_quantization_stages(folder),
        **_export_files(folder),
    )


def _kind_of(info: RunInfo) -> ImageKind:
    """What the student learnt from; of runs that did not record their inputs yet, by the needs of the methods."""
    if info.inputs:
        return image_kind(info)
    inner = (part["method"] for part in info.settings.values() if isinstance(part, Mapping) and "method" in part)
    kinds = [METHODS[name] for name in (info.method, *inner) if name in METHODS]
    needs = {need for kind in kinds for need in kind().needs()}
    return REAL if Need.REAL in needs else WEB if Need.WEB in needs else SYNTHETIC


def _adaptation(adapted: Mapping[str, Any]) -> str:
    """What adapting did for the agreement with the teacher."""
    return (
        f"Then it was adapted to {adapted['images']} real images, without their labels: it agrees with the teacher on "
        f"{percent(adapted.get('after'))} of them (each half judged with the statistics of the other half), before "
        f"adaptation on {percent(adapted.get('before'))}."
    )


def _description(folder: Path) -> dict[str, Any]:
    try:
        about: dict[str, Any] = json.loads((folder / "student.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"a model card needs student.json in {folder}, got {type(error).__name__}; give a finished run"
        ) from error
    return about


def _network(about: Any) -> dict[str, Any]:
    return {
        "name": about.get("name"),
        "parameters": count(about.get("parameters")),
        "size": file_size(about.get("bytes")),
        "sha256": about.get("sha256"),
    }


def _names(names: tuple[str, ...]) -> str:
    listing = ", ".join(names[:20])
    return f"{listing} and {len(names) - 20} more" if len(names) > 20 else listing


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _licence(licence: str) -> str:
    if licence == "unknown":
        return (
            "Not stated by who published this. A student is made from its teacher: the licence of the teacher may "
            "bind it."
        )
    return f"`{licence}`, as stated by who published this. The licence of the teacher may bind it as well."


def _quantization_stages(folder: Path) -> dict[str, Any]:
    """The stages of `dfkd quantize`, where the network was quantized."""
    try:
        record = json.loads((folder / QUANTIZE_FILE).read_text("utf-8"))
        rows = [
            {
                "name": row["name"],
                "accuracy": percent(row["accuracy"]),
                "agreement": percent(row["agreement"]),
                "synthetic": percent(row["synthetic_agreement"]),
                "size": file_size(row["bytes"]),
            }
            for row in record["stages"]
        ]
        return {"bits": str(record["bits"]), "stages": rows}
    except (OSError, ValueError, KeyError, TypeError):
        return {"bits": "", "stages": []}


def _export_files(folder: Path) -> dict[str, Any]:
    """The files of `dfkd export`, where there are any."""
    try:
        record = json.loads((folder / EXPORT_FOLDER / EXPORT_FILE).read_text("utf-8"))
        rows = [
            {
                "file": row["file"],
                "size": file_size(row["bytes"]),
                "difference": f"{row['difference']:.2g}",
                "agreement": percent(row["agreement"]),
            }
            for row in record["artefacts"]
            if row["file"]
        ]
        return {"artefacts": rows, "compared": f"{record['images']:,}"}
    except (OSError, ValueError, KeyError, TypeError):
        return {"artefacts": [], "compared": ""}
