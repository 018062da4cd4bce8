"""The command that installs an optional package and leaves torch as it is. Imports no torch.

Without the pin, pip may replace torch by a newer one. The packages are named, not ``dfkd[extra]``: that name means
something only where a package index has dfkd.
"""

from importlib.metadata import PackageNotFoundError, requires, version

__all__ = ["install_core", "install_extra"]


def install_extra(extra: str) -> str:
    """The command that installs what the extra ``extra`` asks for, beside the torch that is there."""
    return _command([text for text, condition in _requirements() if f"'{extra}'" in condition], f".[{extra}]")


def install_core(package: str) -> str:
    """The command that installs ``package``, which dfkd always needs, beside the torch that is there."""
    requirements = [text for text, condition in _requirements() if not condition and _is_for(text, package)]
    return _command(requirements, package)


def _command(requirements: list[str], otherwise: str) -> str:
    """``otherwise``: what is asked for where dfkd is run without being installed."""
    names = [f"'{name}'" for name in (*(requirements or [otherwise]), f"torch=={version('torch').split('+')[0]}")]
    return f"pip install {' '.join(names)}"


def _requirements() -> list[tuple[str, str]]:
    """(requirement, condition) of everything dfkd asks for; the condition of an extra is ``extra == 'name'``."""
    try:
        lines = requires("dfkd") or []
    except PackageNotFoundError:
        lines = []
    return [
        (text.strip(), condition.strip().replace('"', "'")) for text, _, condition in (s.partition(";") for s in lines)
    ]


def _is_for(requirement: str, package: str) -> bool:
    suffix = requirement.lower().removeprefix(package.lower())
    return suffix != requirement.lower() and not suffix[:1].isalnum() and suffix[:1] not in ("-", "_", ".")
