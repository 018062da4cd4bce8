"""The rules of the house, read from the source itself."""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import dfkd

SOURCE = Path(dfkd.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in FILES}
Function = ast.FunctionDef | ast.AsyncFunctionDef

# A room may import from its own floor and from those above it in this list.
FLOORS: list[set[str]] = [
    {"types", "errors", "visible", "extras", "imports", "allocator", "datasets", "defaults"},
    {"losses", "ops"},
    {"nets", "data"},
    {"engine"},
    {"report"},
    {"methods"},
    {
        "identity",
        "runs",
        "student_files",
        "stored",
        "weights",
        "settings",
        "inputs",
        "prepare",
        "lent",
        "exam",
        "watchers",
    },
    {"api", "teacher", "teacher_plan", "recipes", "deploy", "tune"},
    {"cli", "__init__", "__main__"},
]


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def floor(name: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if name in rooms)


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, module) of every import of this package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name.split(".")[0] == "dfkd")
        elif isinstance(node, ast.ImportFrom):
            yield from _from(node)


def _from(node: ast.ImportFrom) -> Iterator[tuple[int, str]]:
    if node.level:
        yield node.lineno, "relative"
    elif node.module == "dfkd":
        yield from ((node.lineno, f"dfkd.{alias.name}") for alias in node.names)
    elif node.module and node.module.startswith("dfkd."):
        yield node.lineno, node.module


def functions(tree: ast.AST) -> Iterator[Function]:
    yield from (node for node in ast.walk(tree) if isinstance(node, Function))


def where(path: Path, line: int) -> str:
    return f"{path.relative_to(SOURCE)}:{line}"


def test_every_room_has_a_floor() -> None:
    known = {name for rooms in FLOORS for name in rooms}
    assert {room(path) for path in FILES} <= known


def test_the_page_on_architecture_shows_the_floors() -> None:
    page = (SOURCE.parents[1] / "docs/architecture.md").read_text()
    block = page.partition("Rooms, floor by floor")[2].split("```")[1]
    told = [set(line.split(", ")) for line in block.strip().splitlines()]
    assert told == [{name for name in rooms if not name.startswith("__")} for rooms in FLOORS]


def test_rooms_import_only_downstairs() -> None:
    wrong = []
    for path, tree in TREES.items():
        if path == SOURCE / "__init__.py":
            continue  # the table of public names
        for line, module in imports(tree):
            parts = module.split(".")
            target = parts[1] if len(parts) > 1 else "__init__"
            private = target == "__version__" or module == "dfkd.__version__"
            if module == "relative" or (not private and floor(target) > floor(room(path))):
                wrong.append(f"{where(path, line)} imports {module}")
    assert wrong == []


def test_methods_do_not_import_each_other() -> None:
    wrong = []
    for path in (SOURCE / "methods").glob("*.py"):
        for line, module in imports(TREES[path]):
            if path.name != "__init__.py" and module.startswith("dfkd.methods"):
                wrong.append(f"{where(path, line)} imports {module}")
    assert wrong == []


def test_commands_do_not_import_each_other() -> None:
    wrong = []
    for path in (SOURCE / "cli").glob("*.py"):
        for line, module in imports(TREES[path]):
            if module.startswith("dfkd.cli.do_"):
                wrong.append(f"{where(path, line)} imports {module}")
    assert wrong == []


def test_methods_draw_nothing() -> None:
    wrong = []
    for path in (SOURCE / "methods").glob("*.py"):
        wrong += [f"{where(path, line)} imports {name}" for line, name in imports(TREES[path]) if "report" in name]
    assert wrong == []


def test_no_other_room_names_a_method() -> None:
    """Papers are sources, in docstrings and comments; code that knows a method belongs into that method."""
    from dfkd.methods import METHODS

    wrong = []
    for path, tree in TREES.items():
        if room(path) in ("methods", "recipes", "defaults", "__init__"):
            continue
        told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
        for node in ast.walk(tree):
            for word in () if id(node) in told else words(node):
                wrong += [f"{where(path, node.lineno)} {name}" for name in METHODS if re.search(rf"\b{name}", word)]  # type: ignore[attr-defined]
    assert wrong == []


def words(node: ast.AST) -> Iterator[str]:
    """The names and texts of a piece of code."""
    if isinstance(node, ast.Name):
        yield node.id
    elif isinstance(node, ast.Attribute):
        yield node.attr
    elif isinstance(node, ast.alias):
        yield node.name.rpartition(".")[2]
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value


def test_mathematics_knows_no_networks_files_or_devices() -> None:
    wrong = []
    for path, tree in TREES.items():
        if room(path) not in ("losses", "ops"):
            continue
        for node in ast.walk(tree):
            name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
            if name in ("cuda", "open", "Path", "item", "cpu"):
                wrong.append(f"{where(path, node.lineno)} {name}")  # type: ignore[attr-defined]
    assert wrong == []


def called(node: ast.Call) -> str:
    return ast.unparse(node.func)


def test_forbidden_words() -> None:
    wrong = []
    for path, tree in TREES.items():
        talks = room(path) in ("cli", "report")
        for node in ast.walk(tree):
            line = getattr(node, "lineno", 0)
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                if {"random", "numpy.random"} & set(names):
                    wrong.append(f"{where(path, line)} random numbers that are not torch's")
            elif isinstance(node, ast.Assert):
                wrong.append(f"{where(path, line)} assert")
            elif isinstance(node, ast.ExceptHandler) and node.type is None:
                wrong.append(f"{where(path, line)} bare except")
            elif isinstance(node, ast.Attribute) and ast.unparse(node) in ("np.random", "numpy.random"):
                wrong.append(f"{where(path, line)} {ast.unparse(node)}")
            elif isinstance(node, ast.Call):
                wrong += [f"{where(path, line)} {fault}" for fault in faults(node, talks)]
    assert wrong == []


def faults(node: ast.Call, talks: bool) -> Iterator[str]:
    """What is wrong with one call."""
    name, keywords = called(node), {k.arg: k.value for k in node.keywords}
    if name.endswith(".cuda"):
        yield "a device by name"
    if name == "print" and not talks:
        yield "print"
    if name in ("eval", "exec", "pickle.load", "pickle.loads"):
        yield name
    safe = keywords.get("weights_only")
    if name == "torch.load" and not (isinstance(safe, ast.Constant) and safe.value is True):
        yield "torch.load without weights_only=True"


# Participles and pronouns that say nothing of what they stand for.
NO_NOUNS = {
    *("asked", "found", "given", "got", "held", "kept", "known", "made", "mine", "named", "said", "seen", "settled"),
    *("shown", "spent", "told", "wanted"),
}


def bound_names(node: ast.AST) -> Iterator[str]:
    """Names that a statement, a comprehension or a signature gives to values."""
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign | ast.AugAssign | ast.NamedExpr | ast.For | ast.comprehension):
        targets = [node.target]
    elif isinstance(node, ast.withitem) and node.optional_vars is not None:
        targets = [node.optional_vars]
    elif isinstance(node, ast.arg):
        yield node.arg
    for target in targets:
        yield from (part.id for part in ast.walk(target) if isinstance(part, ast.Name))


def test_locals_are_nouns() -> None:
    wrong = {
        f"{where(path, getattr(node, 'lineno', function.lineno))} {name}"
        for path, tree in TREES.items()
        for function in functions(tree)
        for node in ast.walk(function)
        for name in bound_names(node)
        if name in NO_NOUNS
    }
    assert sorted(wrong) == []


EVENTS = {"started", "stepped", "rounded", "finished", "ended"}  # of an observer, which is told of them
VERBS = {"embed", "seed"}
PARTICIPLES = NO_NOUNS | {
    "between",
    "cut",
    "drawn",
    "left",
    "lent",
    "lost",
    "put",
    "spelt",
    "split",
    "taught",
    "written",
}


def test_functions_are_named_by_what_they_return_or_do() -> None:
    wrong = {
        f"{where(path, function.lineno)} {function.name}"
        for path, tree in TREES.items()
        for function in functions(tree)
        if isinstance(function, ast.FunctionDef)
        and (word := function.name.strip("_")) not in EVENTS | VERBS
        and (word in PARTICIPLES or ("_" not in word and word.endswith("ed")))
    }
    assert sorted(wrong) == []


def test_no_module_remembers_anything() -> None:
    wrong = []
    for path, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None and _can_change(node):
                wrong.append(f"{where(path, node.lineno)} {ast.unparse(node)[:60]}")
        for inner in ast.walk(tree):
            if isinstance(inner, ast.Global):
                wrong.append(f"{where(path, inner.lineno)} global")
    assert wrong == []


def _can_change(node: ast.Assign | ast.AnnAssign) -> bool:
    """A list, dict or set by a name that is not written as a constant (``ALL_CAPS``, ``__all__``, ``_WHERE``)."""
    target = node.targets[0] if isinstance(node, ast.Assign) else node.target
    name = ast.unparse(target)
    constant = name.upper() == name or name == "__all__"
    return isinstance(node.value, ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp) and not constant


def test_constants_are_never_written_to() -> None:
    writes = ("append", "extend", "update", "setdefault", "pop", "clear", "add", "insert")
    wrong = []
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in writes:
                owner = ast.unparse(node.func.value)
                if owner.isupper() and len(owner) > 1:  # one letter: a paper's
                    wrong.append(f"{where(path, node.lineno)} {owner}.{node.func.attr}")
            targets = node.targets if isinstance(node, ast.Assign) else []
            wrong += [
                f"{where(path, node.lineno)} {ast.unparse(target)}"  # type: ignore[attr-defined]
                for target in targets
                if isinstance(target, ast.Subscript) and len(name := ast.unparse(target.value)) > 1 and name.isupper()
            ]
    assert wrong == []


def test_public_arguments_are_annotated() -> None:
    wrong = []
    for path, tree in TREES.items():
        for node in functions(tree):
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
            bare = [a.arg for a in given if a is not None and a.annotation is None and a.arg not in ("self", "cls")]
            if bare and not (node.name.startswith("_") and not node.name.startswith("__")):
                wrong.append(f"{where(path, node.lineno)} {node.name}({', '.join(bare)})")
            if node.returns is None and not node.name.startswith("_"):
                wrong.append(f"{where(path, node.lineno)} {node.name} -> ?")
    assert wrong == []


# ---- budgets --------------------------------------------------------------------------------------------------------


def percentile_90(values: list[int]) -> int:
    return sorted(values)[int(0.9 * (len(values) - 1))]


def length(node: Function) -> int:
    """Lines of a function without its docstring and its head."""
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def depth(node: ast.AST, above: int = 0) -> int:
    """Deepest nesting of loops, branches, withs and tries below a function's body; an ``elif`` is not deeper."""
    deepest = above
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function | ast.Lambda | ast.ClassDef):
            continue
        opens = isinstance(child, ast.For | ast.While | ast.If | ast.With | ast.Try)
        chained = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
        deepest = max(deepest, depth(child, above + (opens and not chained)))
    return deepest


def test_files_are_short() -> None:
    lines = [len(path.read_text().splitlines()) for path in FILES]
    assert percentile_90(lines) <= 250


def test_functions_are_short() -> None:
    sizes = {where(p, f.lineno) + " " + f.name: length(f) for p, tree in TREES.items() for f in functions(tree)}
    assert {name: size for name, size in sizes.items() if size > 60} == {}
    assert percentile_90(list(sizes.values())) <= 30


def test_functions_are_flat() -> None:
    deep = {where(p, f.lineno) + " " + f.name: depth(f) for p, tree in TREES.items() for f in functions(tree)}
    assert {name: levels for name, levels in deep.items() if levels > 3} == {}


def test_the_loop_fits_on_a_screen() -> None:
    from dfkd.engine.driver import run

    assert len(inspect.getsource(run).splitlines()) <= 75  # docstring included
    node = next(f for f in functions(TREES[SOURCE / "engine" / "driver.py"]) if f.name == "run")
    assert length(node) <= 60


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_every_module_says_what_it_is(path: Path) -> None:
    empty = path.name == "__init__.py" and len(path.read_text().splitlines()) <= 1
    assert empty or ast.get_docstring(TREES[path])


def test_sentences_for_users_have_their_form() -> None:
    """``<who> needs <what>, got <value>; <what to do>``: one sentence, three parts."""
    wrong = []
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and called(node) == "UserError" and node.args:
                said = literal(node.args[0])
                if said and not well_formed(said):
                    wrong.append(f"{where(path, node.lineno)} {said!r}")
    assert wrong == []


def well_formed(said: str) -> bool:
    """The parts are there, in order; a value at the end may hold the last of them."""
    parts = [max(said.find(" needs "), said.find(" need ")), said.find("got "), said.rfind("; ")]
    found = [part for part in parts if part >= 0]
    whole = len(found) == 3 or (len(found) >= 1 and said.endswith("<>"))
    return whole and found == sorted(found) and not said.endswith(".") and "\n" not in said


def literal(node: ast.expr) -> str:
    """The text of a string or f-string, values as ``<>``; "" for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(literal(part) if isinstance(part, ast.Constant) else "<>" for part in node.values)
    return ""
