"""From the command line and a recipe to checked settings: one sentence for whatever does not fit.

Flags are dotted names. They and the recipe are merged as plain nested values; jsonargparse then checks them against
the types of the dataclasses.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from dfkd.cli.fields import Option, options, parts, spell
from dfkd.errors import UserError

__all__ = ["fill", "flags", "merge", "nearest", "read_yaml", "unknown"]

MOST_BYTES = 2**20  # of a recipe: twenty thousand names of classes are 300 kB
MOST_DEPTH = 50

T = TypeVar("T")
Tree = dict[str, Any]

# `--hours 2` is short for `--stop.hours 2`, and so are these.
RULES = ("patience", "until_agreement", "hours")

_NOTHING: Mapping[str, Any] = MappingProxyType({})

# `--teacher NAME` is short for `--teacher.name NAME`.
SHORT = {"teacher": "name", "student": "name", "network": "name", "method": "name", "data": "preset", "text": "encoder"}


def flags(
    argv: Sequence[str], cls: type, positional: str | None, free: Iterable[str] = (), more: str | None = None
) -> Tree:
    """Read ``argv`` into a nested dict of strings, one level per dot.

    Args:
        argv: what follows the command's name.
        cls: the command's settings; flags that it does not have are refused.
        positional: the field that a word without dashes fills.
        free: sections whose options are not known yet (the method's).
        more: the field, a list, that further words fill.

    Raises:
        UserError: an unknown flag, a flag without its value, or a word too many.
    """
    by_name = {option.name: option for option in options(cls)}
    sections = {item.name for item in fields(cls)} & SHORT.keys()
    tree: Tree = {}
    extra: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("--") and more is not None and positional in tree:
            _refuse_single_dash(word)
            extra.append(word)
            continue
        if not word.startswith("--"):
            _put_word(tree, word, positional)
            continue
        name, equals, value = word[2:].partition("=")
        if name in sections and name not in by_name:
            name = f"{name}.{SHORT[name]}"
        name = _full(name, by_name)
        option = by_name.get(name)
        if option is None and name.partition(".")[0] not in free:
            raise unknown(f"--{name}", [f"--{option}" for option in by_name], "dfkd", "option")
        if not equals:
            value = _value(words, option, name)
        set_value(tree, name, value)
    if extra and more in tree:
        raise UserError(f"dfkd needs the list either as words or as --{more}, got both; leave one out, see --help")
    return {**tree, more: extra} if extra and more is not None else tree


def set_value(tree: Tree, name: str, value: Any) -> None:
    """Set the dotted ``name``; a word for what has settings of its own is their ``name``."""
    *path, last = name.split(".")
    for key in path:
        branch = tree.setdefault(key, {})
        tree[key] = branch if isinstance(branch, dict) else {"name": branch}
        tree = tree[key]
    if isinstance(tree.get(last), dict):
        tree[last]["name"] = value
    else:
        tree[last] = value


def merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> Tree:
    """``low`` with everything that ``high`` says put over it."""
    merged = dict(low)
    for key, value in high.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def fill(cls: type[T], tree: Mapping[str, Any], at: str = "", ready: Mapping[str, Any] = _NOTHING) -> T:
    """An instance of the dataclass ``cls`` from nested plain values (or strings of them).

    Args:
        cls: the settings.
        tree: what is said; the rest keeps its default.
        at: where ``tree`` stands in the recipe, for messages.
        ready: fields that are made already (methods within a method).

    Raises:
        UserError: an unknown key or a value of another type, with the nearest name or the type that is wanted.
    """
    from jsonargparse import ArgumentParser

    _check_keys(cls, tree, at)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, skip=set(ready))
    try:
        return _build(cls, parser.instantiate(parser.parse_object(_with_lists(cls, tree))), ready)
    except UserError:
        raise
    except Exception as error:  # argparse, jsonargparse and the types raise several kinds
        raise _wrong_value(cls, tree, at, str(error)) from error


def read_yaml(path: Path) -> Tree:
    """A recipe file: at most 1 MiB, nested at most 50 deep, every value written out (no aliases).

    Raises:
        UserError: not there, not YAML, no mapping, or beyond these limits.
    """
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        text = _text_of(path)
        _check_events(yaml.parse(text, Loader=loader), path)
        tree = yaml.load(text, Loader=loader)
    except OSError as error:
        raise UserError(f"recipe needs a readable file, got {path} ({error.strerror}); check the path") from error
    except UserError:
        raise
    except Exception as error:  # dates, numbers and tags that are none raise several kinds
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark is not None else ""
        raise UserError(f"recipe needs YAML, got something else in {path}{where}; correct it") from error
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise UserError(f"recipe needs sections such as teacher: and student:, got {path} without; see `dfkd recipes`")
    return tree


def _text_of(path: Path) -> str:
    if (size := path.stat().st_size) > MOST_BYTES:
        raise UserError(f"recipe needs at most {MOST_BYTES} bytes, got {size} in {path}; give a recipe file")
    return path.read_text("utf-8")


def _check_events(events: Iterable[Any], path: Path) -> None:
    """Aliases can double a document at each line, and deep nesting overflows the stack."""
    import yaml

    depth = 0
    for event in events:
        line = event.start_mark.line + 1
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MOST_DEPTH:
            raise UserError(f"recipe needs at most {MOST_DEPTH} levels, got more in {path} (line {line}); flatten it")
        if isinstance(event, yaml.AliasEvent):
            raise UserError(
                f"recipe needs every value written out, got the alias *{event.anchor} in {path} (line {line}); "
                "write the value"
            )


def unknown(name: str, names: Iterable[str], who: str, what: str) -> UserError:
    """The error for a name that is not among ``names``, with the nearest one."""
    names = list(names)
    close = nearest(name, names)
    hint = (
        f"did you mean {close}?" if close else f"known are {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}"
    )
    return UserError(f"{who} needs {'an' if what[0] in 'aeio' else 'a'} {what} it knows, got {name}; {hint}")


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The known name most like ``name``, also where only the last part was given or the section is wrong."""
    names = list(names)
    spelled = {full.lower(): full for full in reversed(names)}
    close = difflib.get_close_matches(name.lower(), list(spelled), n=1, cutoff=0.75)
    if close:
        return spelled[close[0]]
    tails = {full.lstrip("-").rpartition(".")[2]: full for full in reversed(names)}
    close = difflib.get_close_matches(name.lstrip("-").rpartition(".")[2], list(tails), n=1, cutoff=0.75)
    return tails[close[0]] if close else None


def _full(name: str, names: Iterable[str]) -> str:
    """The known option that is meant: dashes for underscores, and short forms written out."""
    plain = name.replace("-", "_")
    rule = f"stop.{plain}"
    return plain if plain in names else rule if plain in RULES and rule in names else name


def _refuse_single_dash(word: str) -> None:
    if word.startswith("-") and word != "-":
        raise UserError(f"dfkd needs options with two dashes, got {word}; see --help")


def _put_word(tree: Tree, word: str, positional: str | None) -> None:
    _refuse_single_dash(word)
    top = None if positional is None else positional.partition(".")[0]
    if positional is None or top in tree:
        raise UserError(f"dfkd needs options as --name value, got the word {word!r}; see --help")
    set_value(tree, positional, word)


def _value(words: list[str], option: Option | None, name: str) -> str:
    alone = option is not None and option.boolean
    if words and not words[0].startswith("--") and not (alone and words[0] not in ("true", "false", "null")):
        return words.pop(0)
    if alone:
        return "true"
    raise UserError(f"--{name} needs a value, got none; write --{name} VALUE")


def _with_lists(cls: type, tree: Mapping[str, Any]) -> Tree:
    """``tree`` with the lists that are written as texts as jsonargparse reads them, section by section."""
    types = get_type_hints(cls)
    joined: Tree = {}
    for key, value in tree.items():
        if is_dataclass(types[key]) and isinstance(value, Mapping):
            joined[key] = _with_lists(types[key], value)
        else:
            joined[key] = _split_list(value, types[key]) if isinstance(value, str) else value
    return joined


def _split_list(value: str, kind: Any) -> str | list[str]:
    """Lists may be written without brackets, ``1,8,8``; in a list of texts, ``0`` and ``no`` are texts."""
    kinds = [part for part in parts(kind) if part is not type(None)]
    lists = [part for part in kinds if get_origin(part) in (list, tuple)]
    bare = "," in value or len(lists) == len(kinds)
    if not lists or value in ("null", "None") or not (value.startswith("[") or bare):
        return value
    text = value if value.startswith("[") else f"[{value}]"
    return _texts(text) if get_args(lists[0])[0] is str else text


def _texts(text: str) -> list[str]:
    """The elements of ``[a, b]``, quoted or not; where they are no YAML, what stands between the commas."""
    import yaml

    try:
        parsed = yaml.load(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError:
        parsed = None
    if isinstance(parsed, list) and all(isinstance(item, str) for item in parsed):
        return parsed
    return [part.strip() for part in text.removeprefix("[").removesuffix("]").split(",")]


def _check_keys(cls: type, tree: Mapping[str, Any], at: str) -> None:
    types = get_type_hints(cls)
    for key, value in tree.items():
        name = f"{at}{key}"
        if key not in {item.name for item in fields(cls)}:
            sections = [f"{at}{section}" for section, kind in types.items() if is_dataclass(kind)]
            raise unknown(name, [*sections, *(option.name for option in options(cls, at))], "recipe", "setting")
        if is_dataclass(types[key]):
            if not isinstance(value, Mapping):
                raise UserError(f"{name} needs settings of its own (name: value), got {value!r}; indent them below it")
            _check_keys(types[key], value, f"{name}.")


def _build(cls: type[T], values: Any, ready: Mapping[str, Any]) -> T:
    """jsonargparse returns a namespace of the fields that are not ready."""
    arguments = {item.name: getattr(values, item.name) for item in fields(cls) if item.name not in ready}  # type: ignore[arg-type]
    return cls(**arguments, **ready)


def _wrong_value(cls: type, tree: Mapping[str, Any], at: str, reason: str) -> UserError:
    """jsonargparse names the key; its type and the value are said in our words."""
    key = re.search(r'[Kk]ey "([\w.]+)"', reason)
    by_name = {option.name: option for option in options(cls)}
    if key is None or key[1] not in by_name:
        return UserError(f"{at or 'recipe '}needs values of the right type, got an error: {reason.splitlines()[0]}")
    option, value = by_name[key[1]], tree
    for step in key[1].split("."):
        value = value.get(step) if isinstance(value, Mapping) else value  # type: ignore[assignment]
    choices = [
        str(c) for part in parts(option.type) if get_origin(part) is not None for c in getattr(part, "__args__", ())
    ]
    close: list[str] = difflib.get_close_matches(value, choices, n=1) if isinstance(value, str) else []
    hint = f"did you mean {close[0]}?" if close else "change it"
    return UserError(f"{at}{option.name} needs {spell(option.type)}, got {value!r}; {hint}")
