"""The documentation is true: its Python runs, its commands parse, its links lead somewhere, its lists are complete."""

import importlib
import importlib.util
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from dfkd.cli.commands import COMMANDS
from dfkd.cli.help import command_help
from dfkd.cli.main import main
from dfkd.cli.parse import fill, flags
from dfkd.methods import COMBINATIONS, METHODS
from dfkd.recipes import recipe
from docs_blocks import FENCE, ROOT, blocks, console_commands, execute, named

TOP = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
SKETCHES = {"docs/architecture.md"}  # its code is an outline, not a program
CARDS = sorted(path for path in (ROOT / "docs/methods").glob("*.md") if path.name != "index.md")
PAGES = [ROOT / name for name in TOP] + sorted(path for path in (ROOT / "docs").rglob("*.md") if path not in CARDS)
LINK = re.compile(r"(?<!\!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")


def _run_elsewhere(path: Path) -> bool:
    """Outlines run nowhere, tutorials in a test of their own, with their commands."""
    return named(path) in SKETCHES or path.parent.name == "tutorials"


HEAD_12 = "Linear(2 * width, 12)"  # the README's commands name twelve classes


@pytest.mark.parametrize("path", [p for p in PAGES if blocks(p, "python") and not _run_elsewhere(p)], ids=named)
def test_python_on_a_page_runs(path: Path, empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks(path, "python"):
        execute(path, block, names)
    if path.name == "adding-a-method.md":
        assert "bit-identical: True" in capsys.readouterr().out


@pytest.mark.parametrize("path", CARDS, ids=named)
def test_python_on_a_card_runs(path: Path, empty_folder: Path) -> None:
    found = blocks(path, "python")
    assert found, "a card shows how the method is used"
    names: dict[str, Any] = {"__name__": "card"}
    for block in found:
        execute(path, block, names)


def commands(path: Path) -> Iterator[tuple[str, ...]]:
    """Words of every `dfkd ...` line in the console blocks of a page."""
    for block in blocks(path, "console"):
        yield from console_commands(path, block)


def test_the_readmes_commands_run_on_a_bare_network(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = next(block.text for block in blocks(ROOT / "README.md", "python") if "def network" in block.text)
    network = code[code.index("from torch") : code.index("teacher = network")].replace("Linear(2 * width, 4)", HEAD_12)
    assert HEAD_12 in network
    own = "\n\ndef Big():\n    return network(32)\n\n\ndef Small():\n    return network(8)\n"
    (empty_folder / "mynets.py").write_text(network + own, "utf-8")
    torch.save(importlib.import_module("mynets").Big().state_dict(), "big.pth")
    lines = [words for words in commands(ROOT / "README.md") if any("mynets:Big" in word for word in words)]
    assert [words[0] for words in lines] == ["inspect", "distill"]
    inspect, distil = lines
    assert main(inspect) == 0
    assert "mean not given, std not given" in capsys.readouterr().out
    plan = "--plan.rounds 1 --plan.warmup 0 --plan.steps 1 --plan.batch_size 8 --watch.quiet true"
    assert main([*distil, *f"{plan} --method.steps 1 --method.synthesis_batch 12 --method.channels 8".split()]) == 0
    assert (empty_folder / "runs/x/student.pt2").is_file()


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_card_lists_every_hyper_parameter(method: str) -> None:
    (text,) = (path.read_text("utf-8") for path in CARDS if f"dfkd.{method}(" in path.read_text("utf-8"))
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    listed = {name for cell in cells for name in re.findall(r"`([a-z_0-9]+)`", cell)}
    assert listed == {field.name for field in fields(METHODS[method])}  # type: ignore[arg-type]


@pytest.mark.parametrize("path", [*PAGES, *CARDS], ids=named)
def test_commands_on_a_page_are_known(path: Path) -> None:
    for words in commands(path):
        check_command(words)
    for match in re.finditer(r"`dfkd ([a-z]\w*)", path.read_text("utf-8")):
        assert match[1] in COMMANDS, match[0]


def check_command(words: tuple[str, ...]) -> None:
    """The command exists, every option of it exists and takes such a value, and so does the recipe it names."""
    command = COMMANDS[words[0]]
    rest = [word for word in words[1:] if word not in ("--print_config", "--debug", "--help")]
    if ">" in rest:
        rest = rest[: rest.index(">")]
    tree = flags(rest, command.settings, command.word, command.free, command.more)
    named_recipe = str(tree.get("name" if command.name == "recipes" else "recipe", "my.yaml"))
    if "/" in named_recipe and not named_recipe.endswith(".yaml"):
        recipe(named_recipe)
    check_method(tree.pop("method", {}))
    for section in command.open:
        tree.pop(section, None)
    fill(command.settings, tree)


def check_method(chosen: dict[str, Any]) -> None:
    """The method has these settings, and so have the methods that it is made of."""
    inner = [part for part in chosen.values() if isinstance(part, dict)]
    name = str(chosen.pop("name", "of a recipe:" if inner else "NAYER"))
    if ":" not in name:
        known = {item.name for item in fields({**METHODS, **COMBINATIONS}[name])}  # type: ignore[arg-type]
        assert chosen.keys() <= known, f"{name} has no {sorted(chosen.keys() - known)}"
    for part in inner:
        check_method(part)


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_examples_in_the_help_are_sound(command: str) -> None:
    for _, line in COMMANDS[command].examples:
        check_command(tuple(shlex.split(line)[1:]))


@pytest.mark.parametrize("path", [*PAGES, *CARDS], ids=named)
def test_links_lead_somewhere(path: Path) -> None:
    text = FENCE.sub("", path.read_text("utf-8"))
    for target in (a or b for a, b in LINK.findall(text)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), f"{named(path)} links to {target}"
        if anchor:
            assert anchor in anchors(there), f"{named(path)} links to {target}"


def anchors(path: Path) -> set[str]:
    """Headings as they are named in links."""
    titles = re.findall(r"^#+ +(.+)$", FENCE.sub("", path.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "tools/docs_hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_command_line_reference_holds_the_help_of_every_command() -> None:
    page = hooks().filled((ROOT / "docs/reference/cli.md").read_text("utf-8"))
    for command in COMMANDS.values():
        assert f"## dfkd {command.name}\n" in page
        assert command_help(command) in page


def test_pages_hold_only_markers_that_are_filled() -> None:
    known = hooks().MARKERS
    for path in PAGES:
        for marker in re.findall(r"^<!-- (\w+) -->$", path.read_text("utf-8"), re.MULTILINE):
            assert marker in known
            assert known[marker]().strip()


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_a_list_that_only_the_site_shows_has_a_command(path: Path) -> None:
    """Readers of the repository see a marker as a gap; the page says what prints what belongs there."""
    text = path.read_text("utf-8")
    shown = {"cli": "`dfkd --help`", "methods": "`dfkd methods`", "recipes": "`dfkd recipes`", "zoo": "`dfkd inspect`"}
    assert all(shown[marker] in text for marker in re.findall(r"^<!-- (\w+) -->$", text, re.MULTILINE))


def test_every_method_has_a_card_a_row_in_the_readme_and_a_link_in_the_overview() -> None:
    overview, readme = hooks().methods(), (ROOT / "README.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)`.*\[\w+\]\(docs/methods/(\w+\.md)\) \|$", readme, re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted(METHODS)
    for name, card in rows:
        assert (ROOT / "docs/methods" / card).exists(), f"{name} needs the card {card}"
        assert f"| [{name}]({card}) |" in overview
    assert {path.name for path in CARDS} == {card for _, card in rows}


def test_every_page_is_in_the_navigation() -> None:
    listed = set(re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE))
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in PAGES if ROOT / "docs" in path.parents}
    assert listed == pages


def test_reference_names_modules_that_exist() -> None:
    for path in (ROOT / "docs/reference").glob("*.md"):
        for name in re.findall(r"^::: (\S+)$", path.read_text("utf-8"), re.MULTILINE):
            assert importlib.util.find_spec(name) is not None, f"{named(path)} names {name}"


def test_the_reference_has_every_method() -> None:
    page = (ROOT / "docs/reference/methods.md").read_text("utf-8")
    assert {kind.__module__ for kind in METHODS.values()} <= set(re.findall(r"^::: (\S+)$", page, re.MULTILINE))


def test_continuous_integration_runs_the_command_of_the_readme() -> None:
    quick = blocks(ROOT / "README.md", "console")[0].text
    assert quick == "$ make demo\n$ make test\n"
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert {"demo", "test", "check", "docs"} <= targets
    assert re.search(r"^make test$", (ROOT / ".ci/run").read_text("utf-8"), re.MULTILINE)


def test_versions_agree() -> None:
    import dfkd
    from dfkd.identity import VERSION

    told = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text("utf-8"), re.MULTILINE)
    assert told is not None
    assert cited is not None
    assert told[1] == cited[1] == dfkd.__version__ == VERSION


def test_the_readme_lists_every_dependency_by_name() -> None:
    import tomllib

    needed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    line = next(
        line
        for line in (ROOT / "README.md").read_text("utf-8").splitlines()
        if "-c my-torch.txt" in line and "numpy" in line
    )
    assert {item for item in needed if not item.startswith("torch>")} <= set(shlex.split(line))
