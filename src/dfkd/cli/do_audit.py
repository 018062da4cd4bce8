"""`dfkd audit`: what the synthetic images of a run, and its student, show of the private images behind the teacher."""

import json
from pathlib import Path

import torch

from dfkd.cli.config import Audit
from dfkd.cli.job import rebuilt_job, task_of
from dfkd.cli.parse import Tree, merge
from dfkd.cli.setup import plain_settings
from dfkd.data.readers import read_images
from dfkd.data.rows import Rows, open_rows
from dfkd.deploy.stored import stored_images
from dfkd.engine.audit import audit_images
from dfkd.errors import UserError
from dfkd.inputs import runtime_of
from dfkd.report.privacy import NUMBERS_FILE, audit_numbers, audit_verdict, write_audit
from dfkd.weights import load_weights

__all__ = ["images_of", "run"]

STUDENT_FILE = "student.safetensors"
NO_DATA: Tree = {"data": {"web": None, "real": None, "test": None}, "text": {"encoder": "index"}}  # the networks do


def run(settings: Audit) -> int:
    """Compare, write the page, and say what was found."""
    folder = _check(settings)
    images, _ = stored_images(folder, settings.count, "audit")
    flags: Tree = {name: plain_settings(getattr(settings, name)) for name in ("teacher", "student")}
    if settings.own_method is not None:
        flags["method"] = {"name": settings.own_method}
    job, test = rebuilt_job(folder, "audit", merge(NO_DATA, flags))
    out = _folder(folder, settings.out)
    private = images_of(settings.private or "", "train", job.facts.image_size)
    source = test if settings.heldout is None else None if settings.heldout == "none" else settings.heldout
    heldout = None if source is None else images_of(source, "test", job.facts.image_size)
    task = task_of(job, runtime_of(job.settings.runtime).launch())
    has_student = (folder / STUDENT_FILE).is_file()
    if has_student:
        load_weights(task.student.net, folder / STUDENT_FILE, "student")
    stream = torch.Generator().manual_seed(settings.seed)
    student = task.student.freeze() if has_student else None
    audit = audit_images(task.teacher, images, private, heldout, settings.count, stream, student)
    facts = {
        "run": folder.name,
        "method": type(job.method).__name__,
        "private": str(settings.private),
        "held-out": source or "none",
        "student": STUDENT_FILE if has_student else "not finished",
        "most images of a kind": f"{settings.count:,}",
        "seed": str(settings.seed),
    }
    page = write_audit(out, audit, images, private, facts)
    if settings.json:
        print(json.dumps(audit_numbers(audit)))
        return 0
    print(audit_verdict(audit).text)
    print(f"page    {page} (shows private images)")
    print(f"numbers {out / NUMBERS_FILE}")
    return 0


def images_of(source: str, split: str, shape: tuple[int, int, int]) -> Rows:
    """Images without labels: a folder, .npy or .tar as web images are, or the split of a data set known by name.

    Raises:
        UserError: nothing there, or nothing readable.
    """
    place = Path(source.removeprefix("folder:")).expanduser()
    if place.is_dir() or source.endswith((".npy", ".tar", ".tar.gz", ".tgz")):
        return open_rows(source, shape)
    return Rows(read_images(source, split, side=shape[1:], channels=shape[0]).images)


def _check(settings: Audit) -> Path:
    if settings.run is None:
        raise UserError("audit needs a run folder, got none; for example `dfkd audit runs/x --private folder`")
    if settings.private is None:
        raise UserError("audit needs the private images, got none; give --private with a folder or a data set")
    if settings.count < 2:
        raise UserError(f"audit needs --count of at least 2, got {settings.count}; raise it")
    return Path(settings.run)


def _folder(folder: Path, out: str | None) -> Path:
    """Where the page goes: beside the run, not into it, because a run folder is passed on and private images are not.

    Raises:
        UserError: a file of that name, or the run folder itself.
    """
    place = folder.with_name(f"{folder.resolve().name}-audit") if out is None else Path(out)
    if place.exists() and not place.is_dir():
        raise UserError(f"audit needs a folder to write to, got the file {place}; remove it or choose another --out")
    if folder.resolve() in (place.resolve(), *place.resolve().parents):
        raise UserError(
            f"audit needs a folder outside the run, because its page shows private images, got {place}; "
            "choose another --out"
        )
    return place
