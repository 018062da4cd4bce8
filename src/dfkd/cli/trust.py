"""Code that a file names does not run: a network or method of one's own counts where the command line names it.

``package.module:callable`` imports a module of the working folder. In a recipe, in the description beside weights or
in the recipe of a run folder it may be a stranger's word.
"""

from collections.abc import Iterator, Mapping
from typing import Any, get_origin, get_type_hints

from dfkd.engine.core import Method
from dfkd.errors import UserError
from dfkd.methods import COMBINATIONS, METHODS
from dfkd.nets.adapters import own_code

__all__ = ["refuse_code", "to_repeat"]

NETWORKS = ("teacher", "student", "network")


def refuse_code(
    stored: Mapping[str, Any], flags: Mapping[str, Any], source: object, method_flag: str = "method"
) -> None:
    """Refuse names of code in ``stored``, settings from a file, that ``flags``, from the command line, do not repeat.

    Args:
        stored: sections of the file.
        flags: sections of the command line.
        source: the file, for messages.
        method_flag: what names the method on the command line.

    Raises:
        UserError: all such names, and what to repeat.
    """
    unnamed = []
    for section in NETWORKS:
        name, given_name = _name(stored.get(section)), _name(flags.get(section))
        if name is not None and own_code(name) and given_name is None:
            unnamed.append((section, name))
    given_methods = dict(_methods(flags.get("method"), "method"))
    for at, name in _methods(stored.get("method"), "method"):
        if _own_method(name) and at not in given_methods:
            unnamed.append((at.replace("method", method_flag, 1), name))
    if unnamed:
        roles, names = (" and ".join(dict.fromkeys(part)) for part in zip(*unnamed, strict=True))
        who = roles if len(unnamed) == 1 else f"each of {roles}"
        flags_to_add = " ".join(f"--{at} {name}" for at, name in unnamed)
        raise UserError(
            f"{who} needs its code to be named on the command line, got {names} only from {source}; add {flags_to_add} "
            "if you trust that code"
        )


def _name(setting: Any) -> str | None:
    """Of a network: a word, or a section with a name."""
    name = setting.get("name") if isinstance(setting, Mapping) else setting
    return name if isinstance(name, str) else None


def _methods(setting: Any, at: str) -> Iterator[tuple[str, str]]:
    """(dotted place, name) of a method and of those it is made of."""
    if isinstance(setting, str):
        yield at, setting
    if not isinstance(setting, Mapping):
        return
    yield from ((at, setting[key]) for key in ("name", "class_path") if isinstance(setting.get(key), str))
    names = [setting[key] for key in ("name", "class_path") if isinstance(setting.get(key), str)]
    foreign = any(_own_method(name) for name in names)
    for key, part in {
        **setting,
        **(setting["init_args"] if isinstance(setting.get("init_args"), Mapping) else {}),
    }.items():
        if key not in ("name", "class_path", "init_args") and _may_be_method(key, part, foreign):
            yield from _methods(part, f"{at}.{key}")


def _may_be_method(key: str, part: Any, foreign: bool) -> bool:
    """A word may be any setting: with a dot it names code where methods stand, and anywhere in an ``own`` class."""
    word = isinstance(part, str) and (":" in part or ("." in part and (foreign or key in _parts())))
    return word or isinstance(part, Mapping)


def _parts() -> set[str]:
    """The fields of the package's combinations that hold methods."""
    hints = [get_type_hints(kind) for kind in COMBINATIONS.values()]
    kinds = {name: get_origin(hint) or hint for table in hints for name, hint in table.items()}
    return {name for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, Method)}


def _own_method(name: str) -> bool:
    """Does the name mean a class that is neither in the tables nor of this package?"""
    if name.startswith(("dfkd.", "dfkd:")):
        return False
    return name.lower() not in {short.lower() for short in (*METHODS, *COMBINATIONS)} and (":" in name or "." in name)


def to_repeat(stored: Mapping[str, Any]) -> str:
    """The flags that :func:`refuse_code` asks for, each after a space."""
    names = [(section, _name(stored.get(section))) for section in NETWORKS]
    named_code = [(section, name) for section, name in names if name is not None and own_code(name)]
    named_code += [(at, name) for at, name in _methods(stored.get("method"), "method") if _own_method(name)]
    return "".join(f" --{at} {name}" for at, name in named_code)
