"""The Hugging Face hub: a student fetched by its name; what goes wrong there, as one sentence."""

import importlib.util
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dfkd.errors import UserError
from dfkd.extras import install_extra

__all__ = ["check_name", "endpoint", "hub_errors_as_sentences", "fetch", "is_repository", "library"]

FETCHED = ("student.safetensors", "student.json")  # neither can run code
NETWORK_ERRORS = frozenset(
    {
        "ConnectError",
        "ConnectTimeout",
        "ConnectionError",
        "IncompleteSnapshotError",
        "LocalEntryNotFoundError",
        "NetworkError",
        "OSError",
        "OfflineModeIsEnabled",
        "ProxyError",
        "ReadTimeout",
        "TransportError",
    }
)
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_repository(name: str) -> bool:
    """Whether ``name`` has the form ``owner/name``."""
    return REPOSITORY.fullmatch(name) is not None


def fetch(repository: str) -> Path:
    """The folder of a published student, from the cache of ``huggingface_hub`` where it is there.

    Raises:
        UserError: a missing package, no such repository, no network, or one without a student.
    """
    check_name(repository)
    hub = library()
    with hub_errors_as_sentences(repository, "load"):
        folder = Path(hub.snapshot_download(repository, allow_patterns=list(FETCHED), endpoint=endpoint()))
    if not (folder / "student.safetensors").is_file() or not (folder / "student.json").is_file():
        raise UserError(
            f"load needs a student that `dfkd push` published, got {repository} without student.safetensors and "
            "student.json; for other models of the hub use hf:OWNER/NAME as a network"
        )
    return folder


def check_name(repository: str) -> None:
    """Refuse what has not the form ``owner/name``."""
    if not is_repository(repository):
        raise UserError(f"the hub needs a name like owner/name, got {repository!r}; give both parts")


def library() -> Any:
    """The package ``huggingface_hub``.

    Raises:
        UserError: it is missing.
    """
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UserError(f"the hub needs the package huggingface_hub, got none installed; run `{install_extra('hub')}`")
    import huggingface_hub

    return huggingface_hub


def endpoint() -> str | None:
    """Where the hub is, as ``HF_ENDPOINT`` says; None for the public one."""
    return os.environ.get("HF_ENDPOINT") or None


@contextmanager
def hub_errors_as_sentences(repository: str, what: str) -> Iterator[None]:
    """What the hub's library raises, as one sentence."""
    from huggingface_hub import errors

    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.ERROR)  # what it warns of is said here
    try:
        yield
    except errors.GatedRepoError as error:
        raise UserError(
            f"{what} needs access to {repository}, got a gated model; ask for access on its page, then set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{what} needs a model of the hub, got {repository}, which is not there or not yours to see; check the "
            "name, or log in with `hf auth login`"
        ) from error
    except errors.LocalTokenNotFoundError as error:
        raise _no_token(what) from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            raise _no_token(what, "none or one" if status == 401 else "one") from error
        why = str(error).splitlines()[0]
        raise UserError(f"{what} needs the hub, got {why!r} for {repository}; try again later") from error
    except Exception as error:  # what the network layer raises depends on the library's version
        if isinstance(error, UserError) or not _is_network(error):
            raise
        where = endpoint() or "https://huggingface.co"
        otherwise = ", or give a folder" if what == "load" else ""
        raise UserError(
            f"{what} needs a connection to {where}, got {type(error).__name__}; check the network{otherwise}"
        ) from error
    finally:
        log.setLevel(level)


def _no_token(what: str, token: str = "none") -> UserError:
    return UserError(
        f"{what} needs a token of the hub that may write, got {token} that may not; set HF_TOKEN or run `hf auth login`"
        if token != "none"
        else f"{what} needs a token of the hub, got none; set HF_TOKEN or run `hf auth login`"
    )


def _is_network(error: BaseException) -> bool:
    """A connection that failed, by itself or below what the hub's library made of it."""
    return any(kind.__name__ in NETWORK_ERRORS for kind in type(error).__mro__)
