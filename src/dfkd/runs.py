"""A run as a folder: who it is, whether it may be continued, and the student that is taken away from it."""

import hashlib
import io
import json
import os
import platform
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dfkd.engine.checkpoint import Checkpoint, write_aside
from dfkd.engine.core import Method
from dfkd.engine.lock import LOCK_FILE, held
from dfkd.engine.plan import Plan
from dfkd.engine.probe import Probe
from dfkd.engine.records import Fitted, Picked, RunInfo
from dfkd.engine.runtime import Runtime
from dfkd.engine.sharing import widened_by
from dfkd.errors import UserError
from dfkd.report.files import METRICS_FILE, RUN_FILE, SAMPLES_FOLDER, StoredRun, plain, read_run

__all__ = [
    "CHECKPOINT_FOLDER",
    "begun_plan",
    "check_free",
    "forget_run",
    "network_bytes",
    "note_resume",
    "open_run",
    "provenance",
    "save_picked",
    "save_student",
    "settings_of",
    "weights_hash",
]

VERSION = "0.1.0"
CHECKPOINT_FOLDER = "checkpoint"
PICKED_FILE = "picked.safetensors"
RECIPE_FILE = "recipe.yaml"
RECIPE_HEAD = b"# written by dfkd"
TEMPORARY = re.compile(r"\..+\.\d+\.tmp")  # what ``write_aside`` writes to
EVENTS = "events.out.tfevents."


def weights_hash(net: nn.Module) -> str:
    """SHA-256 of names, shapes and values of everything in the state dict: the same weights give the same hash."""
    digest = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def network_bytes(net: nn.Module) -> int:
    """Bytes of the weights and buffers, which is the size of the weights file within a few kilobytes."""
    return sum(t.numel() * t.element_size() for t in net.state_dict().values() if isinstance(t, Tensor))


def settings_of(value: Any) -> dict[str, object]:
    """Hyper-parameters of a method or a plan as plain values; a method within a method says which one it is."""
    settings: dict[str, object] = asdict(value)
    for item in fields(value):
        inner = getattr(value, item.name)
        if isinstance(inner, Method):
            settings[item.name] = {"method": type(inner).__name__, **settings_of(inner)}
    return settings


def provenance(runtime: Runtime) -> dict[str, object]:
    """Versions, machine, time, and the code's commit where it runs from a git checkout."""
    name = torch.cuda.get_device_name(runtime.device) if runtime.device.type == "cuda" else _processor()
    return {
        "dfkd": VERSION,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": str(runtime.device),
        "hardware": name,
        "threads": torch.get_num_threads(),
        "processes": runtime.world,
        "precision": runtime.precision,
        "compile": runtime.compiled,
        "compile_mode": runtime.compile_mode,
        "sync_bn": runtime.sync_bn,
        "channels_last": runtime.channels_last,
        "seed": runtime.seed,
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


@contextmanager
def open_run(folder: Path, info: RunInfo, resume: bool, save_every: float = 30.0) -> Iterator[StoredRun | None]:
    """Prepare ``folder`` for a run, and keep other processes out of it as long as this lasts.

    Nothing that is in the folder changes but temporaries of a start that was killed, which are removed. Gives the run
    that is continued; None where a new one begins.

    Args:
        folder: the run's.
        info: of the run that is to begin or to go on.
        resume: continue the run that is there. One that was killed before it wrote its ``run.json`` begins.
        save_every: least seconds between saves of the run.

    Raises:
        UserError: the folder holds another run (or other files) and ``resume`` is off, or the run there had other
            settings or lost its checkpoint, or another process runs it, or the folder cannot be written.
    """
    if resume and not any((folder / name).exists() for name in (RUN_FILE, RECIPE_FILE)):
        raise UserError(f"resume needs a run folder, got {folder} without {RUN_FILE}; start it without resume")
    if not (resume and (folder / RUN_FILE).exists()):
        check_free(folder)
        _make(folder)
    with held(folder):
        record = None
        if resume and (folder / RUN_FILE).exists():
            record = read_run(folder, mend=True)
            _check_same(record.info, info, folder)
            _check_saved(record, folder, save_every)
        else:
            check_free(folder)  # again, for a run that began in between
        _sweep(folder)
        yield record


def begun_plan(folder: Path, plan: Plan, hours: float) -> tuple[Plan, Fitted | None]:
    """The plan that was decided on when the run in ``folder`` began with ``plan`` and ``hours``, and how.

    Raises:
        UserError: it began with another number of hours, or with none.
    """
    info = read_run(folder, mend=True).info
    before = None if info.fitted is None else info.fitted.hours
    if info.fitted is None or before != hours:
        raise UserError(
            f"resume needs the settings the run in {folder} began with, got stop.hours = {hours!r} instead of "
            f"{before!r}; leave it out: the plan is in {RUN_FILE}"
        )
    if plain(settings_of(plan)) != plain(info.fitted.asked):
        return plan, info.fitted
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in info.plan.items()}
    return Plan(**values), info.fitted  # type: ignore[arg-type]


def note_resume(info: RunInfo, record: StoredRun, rounds: int, notes: Sequence[str] = ()) -> RunInfo:
    """``info`` of a run that goes on after ``rounds`` rounds, with what its resumes found.

    Warns, once, of versions, machine and threads that are not those of the start before: they change no setting, but
    the student may differ in its last bits from that of a run that was never stopped.
    """
    differing = _differing(record.info, info)
    if differing:
        text = f"bits of the student may differ from those of a run that was never stopped: {', '.join(differing)}"
        warnings.warn(f"{text}", stacklevel=2)
        notes = [*notes, text]
    lines = tuple(f"resumed after round {rounds} on {info.provenance['date']}: {note}" for note in notes)
    return replace(info, notes=(*record.info.notes, *lines))


def _differing(old: RunInfo, new: RunInfo) -> list[str]:
    """What of code and machine is not as it was: "torch 2.12 instead of 2.11"."""
    names = {"dfkd": "dfkd", "commit": "commit of dfkd", "python": "Python", "torch": "torch"}
    names |= {"device": "device", "hardware": "hardware", "threads": "threads"}
    differences = []
    for key, name in names.items():
        before, now = old.provenance.get(key), new.provenance.get(key)
        if before is not None and now is not None and before != now:
            differences.append(f"{name} {now} instead of {before}")
    return differences


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"out needs a folder that can be written, got {folder} ({error.strerror}); choose another"
        ) from None


def _check_saved(record: StoredRun, folder: Path, save_every: float) -> None:
    """Refuse to begin again where something was reached. A run that was stopped before its first save may."""
    saves = Checkpoint(folder / CHECKPOINT_FOLDER)
    if saves.exists():
        return
    rounds = record.rounds
    has_saved = len(rounds) > 1 and sum(past.seconds for past in rounds[:-1]) >= save_every
    if has_saved or record.status in ("finished", "stopped") or (folder / "student.safetensors").exists():
        raise UserError(
            f"resume needs the checkpoint of the {len(rounds)} rounds that were run, got none at {saves.path}; put it "
            "back, or start in a new folder"
        )


def check_free(folder: Path) -> None:
    """Refuse a folder in which a new run cannot begin. What a start that was killed left there does not count.

    Raises:
        UserError: it is a file, or holds a run or other files.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"out needs a folder, got the file {folder}; choose another path")
    if (folder / RUN_FILE).exists():
        raise UserError(
            f"out needs a folder without a run, got {folder}, which holds one; choose another folder, or continue "
            "that run with resume (`dfkd distill --resume`)"
        )
    if folder.exists() and not all(_left_behind(path) for path in folder.iterdir()):
        raise UserError(f"out needs an empty or new folder, got {folder} with other files in it; choose another folder")


def _left_behind(path: Path) -> bool:
    """Is this what a start that was killed before its first round leaves: written by us, and of no use?"""
    if path.is_symlink():
        return False
    if path.is_dir():
        ours = (CHECKPOINT_FOLDER, SAMPLES_FOLDER, "tensorboard")
        return path.name in ours and all(_left_behind(inner) for inner in path.iterdir())
    if path.name == RECIPE_FILE:
        return path.read_bytes().startswith(RECIPE_HEAD)
    if path.name == METRICS_FILE:
        return path.stat().st_size == 0
    return path.name == LOCK_FILE or bool(TEMPORARY.fullmatch(path.name)) or path.name.startswith(EVENTS)


def _sweep(folder: Path) -> None:
    """Remove temporaries that killed writes left, here and below."""
    for path in folder.rglob(".*.tmp"):
        if TEMPORARY.fullmatch(path.name) and path.is_file():
            with suppress(OSError):
                path.unlink(missing_ok=True)


def forget_run(folder: Path) -> None:
    """Remove what a run wrote before its first round; other files, and a folder that holds any, stay."""
    for name in (RUN_FILE, METRICS_FILE, RECIPE_FILE):
        (folder / name).unlink(missing_ok=True)
    for path in (folder / "tensorboard").glob(f"{EVENTS}*"):
        path.unlink(missing_ok=True)
    _sweep(folder)
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def save_student(
    folder: Path, student: Probe, spec: Mapping[str, object] | None, info: RunInfo, export: bool = True
) -> dict[str, str]:
    """Write the student so that it loads without this library; returns what was written, by role.

    ``student.safetensors`` holds the state dict, ``student.json`` how to rebuild the network and normalise its input,
    ``student.pt2`` (``torch.export``) the whole program from images in [0, 1] to logits, normalisation included.
    """
    from safetensors.torch import save_file

    weights = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in _tensors(student.net)}
    write_aside(folder / "student.safetensors", lambda path: save_file(weights, path))
    about = {
        "network": _network(student.net, spec),
        "image_shape": list(info.image_shape),
        "classes": info.classes,
        "names": list(info.names),
        "mean": student.mean.flatten().tolist(),
        "std": (1 / student.scale).flatten().tolist(),
        "method": info.method,
        "teacher_sha256": info.teacher.get("sha256"),
        "dfkd": VERSION,
    }
    text = json.dumps(plain(about), indent=1)
    write_aside(folder / "student.json", lambda path: path.write_text(text))
    files = {"weights": "student.safetensors", "description": "student.json"}
    if export and _export(student, info.image_shape, folder / "student.pt2"):
        files["program"] = "student.pt2"
    return files


def save_picked(folder: Path, picked: Picked | None, weights: Mapping[str, Tensor] | None) -> dict[str, str]:
    """Write the student of the picked round beside the last one, described likewise; returns what was written, by role.

    Without one, what an earlier start of the run wrote is removed.
    """
    from safetensors.torch import save_file

    file = folder / PICKED_FILE
    beside = file.with_suffix(".json")
    if picked is None or weights is None:
        for path in (file, beside):
            path.unlink(missing_ok=True)
        return {}
    write_aside(file, lambda path: save_file(dict(weights), path))
    about = {**json.loads((folder / "student.json").read_text("utf-8")), "picked": plain(picked)}
    write_aside(beside, lambda path: path.write_text(json.dumps(about, indent=1)))
    return {"picked": PICKED_FILE}


def _network(net: nn.Module, spec: Mapping[str, object] | None) -> dict[str, object]:
    """How to build the network again: as it was named, or its class; and how it was widened."""
    kind = {"class": f"{type(net).__module__}.{type(net).__qualname__}"}
    projector = widened_by(net)
    return {**(spec or kind), **({} if projector is None else {"projector": projector})}


class _Whole(nn.Module):
    """Normalisation and network as one module, without hooks."""

    mean: Tensor
    scale: Tensor

    def __init__(self, probe: Probe) -> None:
        super().__init__()
        self.net = probe.net
        self.register_buffer("mean", probe.mean.clone())
        self.register_buffer("scale", probe.scale.clone())

    def forward(self, images: Tensor) -> Tensor:
        return self.net((images - self.mean) * self.scale)


def _export(student: Probe, image_shape: tuple[int, int, int], path: Path) -> bool:
    """Write the exported program; False (with a warning) for a network that cannot be exported."""
    import copy

    net = student.release()
    program_net = _Whole(student).eval()
    _renew(net, image_shape)
    program_net.net = copy.deepcopy(net).to("cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    program_net = program_net.to("cpu").requires_grad_(False)
    example = torch.rand(2, *image_shape)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            batch = torch.export.Dim("n", min=1, max=65536)
            program = torch.export.export(program_net, (example,), dynamic_shapes=({0: batch},))
    except Exception as error:  # export fails in as many ways as networks can be written
        reason = str(error).strip().splitlines()
        warnings.warn(
            f"the student was not exported to {path.name}: {reason[0] if reason else type(error).__name__}",
            stacklevel=2,
        )
        return False
    packed = _packed(program)
    write_aside(path, lambda aside: aside.write_bytes(packed.getbuffer()))
    return True


@torch.no_grad()
def _renew(net: nn.Module, image_shape: tuple[int, int, int]) -> None:
    """Weights that layers compute in every pass (weight_norm, spectral_norm) without the graph that forbids a copy."""
    device = next((p.device for p in net.parameters()), torch.device("cpu"))
    net.eval()(torch.zeros(1, *image_shape, device=device))


def _packed(program: Any) -> io.BytesIO:
    """The file's content, packed in memory: a write that fails below torch's packer ends the process."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, buffer)
    return buffer


def _check_same(old: RunInfo, new: RunInfo, folder: Path) -> None:
    """Name the first setting in which a run to be continued differs from the one on disk."""
    for what, before, now in _settings(old, new):
        if before != now:
            raise UserError(
                f"resume needs the settings the run in {folder} began with, got {what} = {now!r} instead of "
                f"{before!r}; set it back, or start in a new folder"
            )


def _settings(old: RunInfo, new: RunInfo) -> Sequence[tuple[str, object, object]]:
    pairs: list[tuple[str, object, object]] = [("method", old.method, new.method)]
    for group in ("settings", "plan"):
        at = "method" if group == "settings" else group
        was, now = (dict(_flat(plain(getattr(run, group)), at)) for run in (old, new))
        was = {**({"plan.turns": 1} if group == "plan" else {}), **was}  # newer than the first run folders
        pairs += [(key, was.get(key), now.get(key)) for key in {**was, **now}]
    for who in ("teacher", "student"):
        for key in ("kind", "sha256", "parameters", "mean", "std", "head", "stages"):
            pairs.append((f"{who}.{key}", plain(getattr(old, who).get(key)), plain(getattr(new, who).get(key))))
        for key in ("precision", "channels_last"):  # as the network bears them; newer than the first run folders
            now = getattr(new, who).get(key)
            pairs.append((f"{who}.{key}", getattr(old, who).get(key, now), now))
    for key in ("seed", "precision", "processes", "compile", "channels_last"):
        pairs.append((key, old.provenance.get(key), new.provenance.get(key)))
    for key, before in (("compile_mode", "default"), ("sync_bn", False)):  # newer than the first run folders
        pairs.append((key, old.provenance.get(key, before), new.provenance.get(key, before)))
    shape = ("image_shape", tuple(old.image_shape), tuple(new.image_shape))
    pairs += [shape, ("classes", old.classes, new.classes), ("text", old.text, new.text)]
    pairs += [(key, old.inputs[key], now) for key, now in new.inputs.items() if key in old.inputs]
    return [*pairs, *_names(old.names, new.names)]


def _names(old: Sequence[str], new: Sequence[str]) -> Iterator[tuple[str, object, object]]:
    """The first class whose name differs."""
    if len(old) != len(new):
        yield "names of classes", len(old), len(new)
    for label, (before, now) in enumerate(zip(old, new, strict=False)):
        yield f"the name of class {label}", before, now


def _flat(values: Mapping[str, Any], at: str) -> Iterator[tuple[str, object]]:
    """Nested settings under dotted names."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{at}.{key}")
        else:
            yield f"{at}.{key}", value


def _tensors(net: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, t) for name, t in net.state_dict().items() if isinstance(t, Tensor)]


def _commit() -> str | None:
    package = Path(__file__).resolve().parent
    try:
        process = subprocess.run(
            ["git", "-C", str(package), "rev-parse", "--short=12", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return process.stdout.strip() or None


def _processor() -> str:
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        name = models[0] if models else name
    return f"{name}, {os.cpu_count()} cores"
