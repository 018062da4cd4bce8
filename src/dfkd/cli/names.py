"""Whether a network that was named is there, before anything else is asked for."""

from pathlib import Path

from dfkd.errors import UserError
from dfkd.nets.adapters import suggest
from dfkd.nets.zoo import WRN, ZOO
from dfkd.settings import Network

__all__ = ["check_name"]


def check_name(network: Network, role: str) -> None:
    """Refuse a word that is neither a network's name nor the path of weights; names with a colon are not checked.

    Args:
        network: as :func:`dfkd.cli.setup.with_weights_path` returns it: a path that is there is no name any more.
        role: "teacher", "student" or "network", for messages.

    Raises:
        UserError: neither, with the nearest names and paths.
    """
    name = network.name
    if name is None or ":" in name or name in ZOO or WRN.fullmatch(name):
        return
    if network.weights is not None:
        hint = suggest(name, ZOO, "`dfkd inspect` lists them")
        raise UserError(f"{role} needs the name of a network, got {name!r}; {hint}")
    hint = suggest(name, [*ZOO, *_neighbours(Path(name))], "check the path, or take a name that `dfkd inspect` lists")
    raise UserError(
        f"{role} needs the name of a network or the path of weights, got {name!r}, which is neither; {hint}"
    )


def _neighbours(path: Path) -> list[str]:
    """What is in the folder where ``path`` should be."""
    folder = path.parent
    return [str(there) for there in sorted(folder.iterdir())] if folder.is_dir() else []
