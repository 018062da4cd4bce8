"""BatchNorm from a few real images: the statistics against NumPy, what is kept, what is refused."""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import dfkd
from dfkd.cli.main import main
from dfkd.deploy import adapt as adapting
from dfkd.deploy.adapt import with_statistics_of
from dfkd.deploy.card import card_of
from dfkd.deploy.predictor import Predictor


@pytest.fixture
def copied(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def teacher_of(net: nn.Module) -> Predictor:
    (mean,), (std,) = dfkd.STATISTICS["digits"]
    return Predictor(net, (1, 8, 8), [str(k) for k in range(10)], (mean,), (std,))


def spoil(folder: Path) -> None:
    """Statistics that are far off."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "student.safetensors")
    for name, value in weights.items():
        if name.endswith("running_mean"):
            weights[name] = value + 3 * torch.sign(torch.linspace(-1, 1, len(value)))
    save_file(weights, folder / "student.safetensors")


def test_the_statistics_are_those_of_the_images() -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, momentum=0.3)
    net = Predictor(nn.Sequential(conv, norm, nn.Flatten(), nn.Linear(108, 2)), (1, 8, 8), "ab", (0.5,), (0.25,))
    images = torch.rand(10, 1, 8, 8)
    with torch.no_grad():
        maps = conv((images - 0.5) / 0.25).double().numpy().transpose(1, 0, 2, 3).reshape(3, -1)
    found = with_statistics_of(net, images).net[1]  # type: ignore[index]
    np.testing.assert_allclose(found.running_mean.numpy(), maps.mean(axis=1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.running_var.numpy(), maps.var(axis=1, ddof=1), rtol=1e-4)
    assert found.momentum == 0.3
    assert not found.training
    assert torch.equal(norm.running_mean, torch.zeros(3))  # type: ignore[arg-type]


def test_what_helps_is_kept_beside_the_run_and_said(copied: Path, digits_teacher: nn.Module) -> None:
    spoil(copied)
    before = (copied / "student.safetensors").read_bytes()
    images = dfkd.read_images("digits", "train").images[:64]
    done = dfkd.adapt(copied, images, teacher_of(digits_teacher))
    assert done.kept
    assert done.after > done.before
    assert done.folder == copied / "adapted"
    assert (copied / "student.safetensors").read_bytes() == before
    again = dfkd.load(done.folder)
    test = dfkd.read_images("digits").images
    torch.testing.assert_close(again.predict(test).probabilities, done.student.predict(test).probabilities)
    assert json.loads((done.folder / "student.json").read_text())["adapted"]["images"] == 64
    card = card_of(done.folder, "me/x")
    assert "**not data-free**: its BatchNorm statistics were estimated on 64 real images" in card
    assert "| this network |" not in card
    assert "| before adaptation | " in card
    assert (
        f"it agrees with the teacher on {100 * done.after:.2f} % of them (each half judged with the statistics of the "
        f"other half), before adaptation on {100 * done.before:.2f} %."
    ) in card
    assert "\n\n\n" not in card.replace("\n\n\n```", "")
    assert "adaptation" not in card_of(copied, "me/x")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def with_seed(folder: Path, seed: int) -> Path:
    """The run as another one, begun with another seed."""
    record = json.loads((folder / "run.json").read_text())
    record["info"]["provenance"]["seed"] = seed
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def test_another_run_and_other_files_are_not_replaced(copied: Path, digits_teacher: nn.Module, tmp_path: Path) -> None:
    spoil(copied)
    teacher, images = teacher_of(digits_teacher), dfkd.read_images("digits", "train").images[:64]
    other = with_seed(Path(shutil.copytree(copied, tmp_path / "other")), 7)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("")
    assert dfkd.adapt(other, images, teacher, out=tmp_path / "result").kept
    shutil.copytree(tmp_path / "result", tmp_path / "exported")
    (tmp_path / "exported/student.onnx").write_text("")
    before = contents(tmp_path)
    places = [(copied, name) for name in ("other", "run", "mine", "result")] + [(other, "exported")]
    for run, name in places:
        with pytest.raises(
            dfkd.UserError, match=f"adapt needs a new folder or its own .*{name} with other files in it"
        ):
            dfkd.adapt(run, images, teacher, out=tmp_path / name)
    with pytest.raises(dfkd.UserError, match="adapt needs a folder to write to, got the file"):
        dfkd.adapt(copied, images, teacher, out=tmp_path / "mine/notes.txt")
    assert contents(tmp_path) == before


def test_an_earlier_result_is_replaced_as_a_whole_or_not_at_all(
    copied: Path, digits_teacher: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(copied)
    teacher, images = teacher_of(digits_teacher), dfkd.read_images("digits", "train").images
    assert dfkd.adapt(copied, images[:64], teacher).kept
    before = contents(copied)

    def fail(*_: object) -> None:
        raise OSError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(adapting, "write_aside", fail)
        with pytest.raises(dfkd.UserError, match=r"adapt needs to write .*adapted, got 'no space'"):
            dfkd.adapt(copied, images[64:128], teacher)
    assert contents(copied) == before
    assert dfkd.adapt(copied, images[64:128], teacher).kept
    after = contents(copied)
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {
        "adapted/student.json",
        "adapted/student.safetensors",
    }


def test_a_folder_of_weights_without_a_run_is_adapted(
    finished_run: Path, digits_teacher: nn.Module, tmp_path: Path
) -> None:
    source = tmp_path / "taught"
    source.mkdir()
    for suffix in ("safetensors", "json"):
        shutil.copyfile(finished_run / f"student.{suffix}", source / f"student.{suffix}")
    spoil(source)
    for path in list(source.iterdir()):
        path.rename(source / f"weights{path.suffix}")
    images = dfkd.read_images("digits", "train").images[:64]
    for _ in range(2):
        assert dfkd.adapt(source, images, teacher_of(digits_teacher)).kept
    assert sorted(contents(source / "adapted")) == ["student.json", "student.safetensors"]


def test_the_teacher_keeps_its_modes(copied: Path, digits_teacher: nn.Module) -> None:
    teacher = teacher_of(digits_teacher).train()
    next(iter(teacher.net.children())).eval()
    modes = [module.training for module in teacher.modules()]
    assert len(set(modes)) == 2
    images = dfkd.read_images("digits", "train").images[:8]
    quiet_teacher = copy.deepcopy(teacher).eval()
    found, wanted = (dfkd.adapt(copied, images, net) for net in (teacher, quiet_teacher))
    assert (found.before, found.after) == (wanted.before, wanted.after)
    assert [module.training for module in teacher.modules()] == modes


def test_what_does_not_help_is_not_kept(copied: Path, digits_teacher: nn.Module) -> None:
    torch.save(digits_teacher.state_dict(), copied / "student.pt")
    noise = torch.randint(256, (8, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    student = dfkd.load(copied)
    done = dfkd.adapt(copied, noise, student)  # its own teacher: it agrees with itself
    assert done.before == 1
    assert not done.kept
    assert not (copied / "adapted").exists()


def test_the_command_and_its_refusals(
    copied: Path, digits_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    pictures = tmp_path / "pictures"
    pictures.mkdir()
    words = ["adapt", str(copied), "--images", str(pictures), "--teacher", str(copied)]
    assert main(["adapt", str(copied)]) == 2
    assert main(words) == 2
    for i, one in enumerate(dfkd.read_images("digits").images[:3]):
        Image.fromarray(one[0].numpy()).save(pictures / f"{i}.png")
    assert main(words) == 2
    assert "at least 4 images, got 3" in capsys.readouterr().err
    Image.fromarray(one[0].numpy()).save(pictures / "3.png")
    assert main(words[:-2]) == 2
    assert "needs the teacher of the run" in capsys.readouterr().err
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["before"] == 1
