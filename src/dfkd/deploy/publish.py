"""A student published on the Hugging Face hub, with its card."""

from pathlib import Path

from dfkd.deploy.card import card_of
from dfkd.deploy.export import EXPORT_FOLDER
from dfkd.deploy.hub import check_name, endpoint, hub_errors_as_sentences, library
from dfkd.errors import UserError

__all__ = ["push"]

FILES = ("student.safetensors", "student.json", "student.pt2")
EXPORTS = ("student.onnx", "student-int8.onnx")


def push(folder: str | Path, repository: str, *, private: bool = False, licence: str = "unknown") -> str:
    """Publish the student of a run: weights, description, program, exported files, and a card from the record.

    All files go into one commit: the repository changes as a whole or not at all. Who pushes is told by ``HF_TOKEN``,
    or by ``hf auth login``; where, by ``HF_ENDPOINT``.

    Args:
        folder: of a finished run.
        repository: ``owner/name``; made where it is not there.
        private: of a new repository.
        licence: an identifier of the hub.

    Returns:
        Its address.

    Raises:
        UserError: no finished run, a missing package, no or a wrong token, no network.
    """
    check_name(repository)
    run = Path(folder)
    card = card_of(run, repository, licence)
    files = _files(run)
    hub = library()
    with hub_errors_as_sentences(repository, "push"):
        service = hub.HfApi(endpoint=endpoint(), library_name="dfkd")
        service.create_repo(repository, private=private, exist_ok=True)
        parts = [hub.CommitOperationAdd("README.md", card.encode())]
        parts += [hub.CommitOperationAdd(name, str(path)) for name, path in files.items()]
        commit = service.create_commit(repository, parts, commit_message="Student with its card, by dfkd")
    return str(getattr(commit, "repo_url", "") or f"{endpoint() or 'https://huggingface.co'}/{repository}")


def _files(run: Path) -> dict[str, Path]:
    files = {name: run / name for name in FILES if (run / name).is_file()}
    if "student.safetensors" not in files:
        raise UserError(f"push needs student.safetensors, got {run} without; give the folder of a finished run")
    return files | {name: run / EXPORT_FOLDER / name for name in EXPORTS if (run / EXPORT_FOLDER / name).is_file()}
