"""`dfkd plot --over`: what is gathered from run folders, what is refused, and what is drawn."""

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dfkd.cli.main import main
from dfkd.engine.records import Evaluation, RunResult
from dfkd.errors import UserError
from dfkd.report.files import read_run, write_run
from dfkd.report.sweep import settings_in, sweep_chart, sweep_of
from test_report import an_info


def a_run(folder: Path, accuracy: float | None, method: str = "STTS", **settings: Any) -> str:
    """A finished run folder; an accuracy of None: never evaluated."""
    info = replace(an_info(), method=method, settings={"lambda_a": 0.05, **settings}, plan={"steps": 3})
    final = None if accuracy is None else Evaluation(accuracy, 0.9, 0.1, 100)
    folder.mkdir()
    write_run(folder, info, RunResult(info, [], final, None, 1.0), "finished")
    return str(folder)


def gathered(folders: list[str], name: str = "method.sigma") -> Any:
    return sweep_of({folder: read_run(Path(folder)) for folder in folders}, name)


def test_seeds_of_one_value_are_joined(tmp_path: Path) -> None:
    held = {2.0: [0.9, 0.92, 0.97], 0.5: [0.8], 10.0: [0.7, 0.75]}
    folders = [
        a_run(tmp_path / f"{value}-{seed}", accuracy, sigma=value)
        for value, found in held.items()
        for seed, accuracy in enumerate(found)
    ]
    sweep = gathered(folders)
    assert list(sweep.accuracies) == ["0.5", "2", "10"]  # as numbers, not as words
    assert list(sweep.numbers) == [0.5, 2.0, 10.0]
    assert sweep.means() == pytest.approx([np.mean(held[value]) for value in (0.5, 2.0, 10.0)])
    assert np.isnan(sweep.spreads()[0])
    assert sweep.spreads()[1:] == pytest.approx([np.std(held[value], ddof=1) for value in (2.0, 10.0)])
    assert sweep.others == []


def test_words_and_nested_settings_and_what_else_differs(tmp_path: Path) -> None:
    inner = [{"method": "STTS", "sigma": sigma} for sigma in (1.0, 2.0)]
    a = a_run(tmp_path / "a", 0.5, select="dynamic", images_from=inner[0], taps=[0, 1])
    b = a_run(tmp_path / "b", 0.6, select="random", images_from=inner[1], taps=[0, 2], lambda_a=None)
    assert "method.images_from.sigma" in settings_in(read_run(Path(a)).info)
    nested = gathered([a, b], "method.images_from.sigma")
    assert list(nested.numbers) == [1.0, 2.0]
    assert nested.others == ["method.lambda_a", "method.select", "method.taps"]
    words = gathered([a, b], "method.select")
    assert (list(words.accuracies), words.numbers) == (["dynamic", "random"], ())
    mixed = gathered([a, b], "method.lambda_a")
    assert (list(mixed.accuracies), mixed.numbers) == (["0.05", "null"], ())
    assert list(gathered([a, b], "method.taps").accuracies) == ["[0, 1]", "[0, 2]"]


def test_values_are_told_apart_by_all_their_digits(tmp_path: Path) -> None:
    values = (1234567, 1234568, 0.1234567, 0.1234568)
    folders = [a_run(tmp_path / str(value), 0.5, sigma=value) for value in values]
    assert list(gathered(folders).accuracies) == ["0.1234567", "0.1234568", "1234567", "1234568"]


def test_other_images_names_and_code_are_named(tmp_path: Path) -> None:
    folders = [a_run(tmp_path / str(sigma), 0.5, sigma=sigma) for sigma in (1.0, 2.0)]
    info = read_run(Path(folders[1])).info
    told = {"inputs": {"web images": "60 of 1x8x8, ab"}, "names": ("ant", "bee", "cat"), "provenance": {"commit": "c"}}
    info = replace(info, **told)  # type: ignore[arg-type]
    final = Evaluation(0.5, 0.9, 0.1, 100)
    write_run(Path(folders[1]), info, RunResult(info, [], final, None, 1.0), "finished")
    assert gathered(folders).others == ["data.names", "provenance.commit", "inputs.web images"]


def test_what_cannot_be_drawn_is_one_sentence(tmp_path: Path) -> None:
    good = [a_run(tmp_path / f"g{sigma}", 0.5, sigma=sigma) for sigma in (1.0, 2.0)]
    other = a_run(tmp_path / "kd3", 0.5, "KD3")
    blank = a_run(tmp_path / "blank", None, sigma=3.0)
    going = a_run(tmp_path / "going", 0.5, sigma=3.0)
    write_run(Path(going), read_run(Path(going)).info, None, "running")
    for folders, name, said in [
        ([*good, other], "method.sigma", "such as method.sigma or plan.steps, got 'method.sigma' and .*kd3 .KD3. with"),
        (good, "sigma", "such as method.sigma or plan.steps, got 'sigma'"),
        ([*good, blank], "method.sigma", "with an accuracy, got .*blank without accuracy on test images"),
        ([*good, going], "method.sigma", "with an accuracy, got .*going that has not finished"),
        (good[:1], "method.sigma", "at least two values of method.sigma, got only 1;"),
        ([], "method.sigma", "at least two values of method.sigma, got no runs;"),
        (good, "plan.steps", "at least two values of plan.steps, got only 3;"),
    ]:
        with pytest.raises(UserError, match=said):
            gathered(folders, name)


@pytest.mark.parametrize("values", [(1.0, 2.0), (0.01, 0.1, 5.0), ("fixed", "coded"), tuple(range(1, 16))])
def test_the_chart_names_the_setting_and_its_values(values: tuple[Any, ...], tmp_path: Path) -> None:
    folders = [a_run(tmp_path / f"r{i}", 0.5 + 0.01 * i, sigma=value) for i, value in enumerate(values)]
    data = sweep_chart(gathered(folders), label="σ, the variance")
    text = "".join(ET.fromstring(data).itertext())
    assert "σ, the variance" in text
    assert "accuracy of the student" in text
    if len(values) <= 12:
        assert all((f"{value:g}" if isinstance(value, float) else value) in text for value in values)
    assert sweep_chart(gathered(folders), "png").startswith(b"\x89PNG")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    for name, accuracy, sigma in (("a", 0.9, 1.0), ("b", 0.94, 1.0), ("c", 0.8, 2.0)):
        a_run(Path(name), accuracy, sigma=sigma)
    assert main(["plot", "--over", "method.sigma", "a", "b", "c", "--out", "paper", "--format", "png"]) == 0
    told = capsys.readouterr().out
    assert "method.sigma = 1           92.00 % ± 2.83, 2 runs\n" in told
    assert "method.sigma = 2           80.00 %\n" in told
    assert [path.name for path in Path("paper").iterdir()] == ["over-method.sigma.png"]
    assert main(["plot", "a", "c", "c", "./c/", "--over", "method.sigma"]) == 0
    told = capsys.readouterr().out
    assert "runs" not in told  # a run that is given twice counts once
    assert "over method.sigma   over-method.sigma.svg\n" in told
    for name, value in (("d", "[80, 100, 120]"), ("e", "[80, 100, 140]")):
        a_run(Path(name), 0.97, temperature=value)
    assert main(["plot", "d", "e", "--over", "method.temperature"]) == 0
    told = capsys.readouterr().out
    assert "method.temperature = [80, 100, 120] 97.00 %\n" in told
    assert "over method.temperature over-method.temperature.svg\n" in told
    assert Path("over-method.sigma.svg").exists()
    assert main(["plot", "--over", "method.sigma", "--compare", "a,c"]) == 0
    for wrong, said in [
        (["--over", "method.sigma"], "plot needs a run folder, got none"),
        (["--over", "method.sigma", "a"], "at least two values of method.sigma, got only 1"),
        (["--over", "method.sigma", "a", "b", "--compare", "c"], "either as words or as --compare, got both"),
        (["--over", "method.sigma", "a", "gone"], "gone"),
    ]:
        capsys.readouterr()
        assert main(["plot", *wrong]) == 2
        assert said in capsys.readouterr().err
    assert main(["report", "a", "b"]) == 0  # a page about both
