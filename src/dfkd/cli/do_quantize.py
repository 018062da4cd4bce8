"""`dfkd quantize`."""

import json
from pathlib import Path

from dfkd.cli.config import Distill, Quantize
from dfkd.cli.job import Job, prepare_job
from dfkd.cli.parse import Tree, fill, merge
from dfkd.cli.setup import resolve, wide_console, with_recipe
from dfkd.deploy.quantize import Quantized, quantize
from dfkd.deploy.stored import stored_images
from dfkd.errors import UserError
from dfkd.report.files import RUN_FILE, plain
from dfkd.report.summary import file_size, percent
from dfkd.types import Bytes

__all__ = ["run"]

OWN = ("target", "bits", "calibration", "resume", "json", "out")


def run(tree: Tree, show: bool = False) -> int:
    """Quantize a network and train it, both without its training data."""
    tree = with_recipe(tree)
    own_settings = fill(Quantize, {key: tree.pop(key) for key in OWN if key in tree})
    if own_settings.target is None or show:
        actual = "none" if own_settings.target is None else "--print_config"
        raise UserError(f"quantize needs a trained network, got {actual}; for example `dfkd quantize teachers/r20`")
    job = _job(own_settings.target, tree)
    out = Path(
        own_settings.out
        or f"runs/quantized-{job.teacher.classifier.name}-{own_settings.bits.lower()}".replace(":", "-")
    )
    result = quantize(
        job.teacher.classifier,
        own_settings.bits,
        job.method,
        images=_images(Path(own_settings.target), 2 * own_settings.calibration),
        calibration=own_settings.calibration,
        data=job.data,
        text=job.settings.text,
        plan=job.plan,
        runtime=job.settings.runtime,
        watch=job.settings.watch,
        out=out,
        resume=own_settings.resume,
        progress=not own_settings.json,
    )
    if own_settings.json:
        print(json.dumps(plain({"bits": str(result.bits), "out": str(out), "stages": list(result.stages)}), indent=1))
    else:
        _tell(result, out)
    return 0


def _job(target: str, tree: Tree) -> Job:
    """The network as its own student; a packaged recipe or a file of settings says the rest."""
    network: Tree = {"weights": target} if Path(target).exists() else {"name": target}
    tree = merge(tree, {"teacher": network})
    return prepare_job(*resolve(Distill, merge(tree, {"student": dict(tree["teacher"])})))


def _images(target: Path, count: int) -> Bytes | None:
    """The images of a run whose student is quantized; None for other networks."""
    if not (target / RUN_FILE).is_file():
        return None
    try:
        return stored_images(target, count, "quantize")[0]
    except UserError:  # its method makes new ones
        return None


def _tell(result: Quantized, out: Path) -> None:
    from rich.table import Table

    sheet = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for title in (str(result.bits), "accuracy", "agreement", "on synthetic images", "weights"):
        sheet.add_column(title, justify="left" if title == str(result.bits) else "right")
    for stage in result.stages:
        sheet.add_row(
            stage.name,
            percent(stage.accuracy),
            percent(stage.agreement),
            percent(stage.synthetic_agreement),
            file_size(stage.bytes),
        )
    console = wide_console()
    console.print(sheet)
    console.print(
        "\nAgreement with the fp32 network, on test images and on synthetic ones that calibrated nothing; weights "
        f"packed at their bits.\nstudent {out / 'student.safetensors'}",
        highlight=False,
    )
