"""Text embeddings: the shipped vectors, every way to get others, and what is refused."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from dfkd.data import _encoders, text
from dfkd.data.text import PROMPTS, SHIPPED, TextEmbedding, class_list, clean, embed, shipped_texts
from dfkd.errors import UserError

SIZES = {
    "digits": 10,
    "mnist": 10,
    "svhn": 10,
    "cifar10": 10,
    "cifar100": 100,
    "cinic10": 10,
    "tiny-imagenet": 200,
    "imagenet": 1000,
    "imagenette": 10,
}


def neighbours(held: TextEmbedding, names: tuple[str, ...], name: str) -> list[str]:
    """All names, the nearest first."""
    distance = (held.vectors - held.vectors[names.index(name)]).norm(dim=1)
    return [names[index] for index in distance.argsort()]


# -- lists ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SIZES)
def test_lists_have_their_sizes_and_distinct_names(name: str) -> None:
    names = class_list(name)
    assert len(names) == SIZES[name]
    assert len({clean(label).lower() for label in names}) == SIZES[name]
    assert all(clean(label) for label in names)


def test_known_entries() -> None:
    assert class_list("cifar10")[3] == "cat"
    assert class_list("cifar100")[1] == "aquarium_fish"
    assert class_list("imagenet")[0] == "tench, Tinca tinca"
    assert class_list("tiny-imagenet")[0].startswith("goldfish")
    assert set(class_list("tiny-imagenet")) < set(class_list("imagenet"))
    assert class_list("cinic10") == class_list("cifar10")
    # The outputs of an ImageNet classifier that are read for Imagenette.
    rows = (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)
    assert class_list("imagenette") == tuple(class_list("imagenet")[row] for row in rows)
    with pytest.raises(UserError, match="class_list needs"):
        class_list("stl10")


def test_clean() -> None:
    assert clean("aquarium_fish") == "aquarium fish"
    assert clean(" bicycle-built-for-two\n") == "bicycle built for two"


# -- the shipped file -----------------------------------------------------------------------------------------


def test_shipped_file_is_whole_and_small() -> None:
    with safe_open(SHIPPED, framework="pt") as stored:
        header = stored.metadata()
        vectors = stored.get_tensor("vectors")
    texts = shipped_texts()
    assert len(set(texts)) == len(texts)
    assert vectors.shape == (len(texts), 384)
    assert vectors.dtype == torch.float16
    assert torch.allclose(vectors.float().norm(dim=1), torch.ones(len(texts)), atol=1e-3)
    assert header["weights_sha256"] == _encoders.MINILM["model.safetensors"]
    assert header["licence"] == "Apache-2.0"
    assert SHIPPED.stat().st_size + SHIPPED.with_name("names.json").stat().st_size < 2_500_000


@pytest.mark.parametrize("name", SIZES)
def test_shipped_vectors_for_each_list(name: str) -> None:
    held = embed(class_list(name), SIZES[name])
    assert held.vectors.shape == (SIZES[name], 384)
    assert held.vectors.dtype == torch.float32
    assert held.source["origin"] == "shipped"
    assert set(held.source) == {"encoder", "weights_sha256", "licence", "prompt", "origin"}
    assert float(torch.pdist(held.vectors).min()) > 0.1  # no two classes share a vector


def test_neighbours_make_sense() -> None:
    names = class_list("cifar10")
    held = embed(names, 10)
    order = neighbours(held, names, "cat")
    assert order.index("dog") < order.index("truck")
    assert neighbours(held, names, "automobile")[1] == "truck"
    hundred = class_list("cifar100")
    assert set(neighbours(embed(hundred, 100), hundred, "maple_tree")[1:4]) == {"oak_tree", "pine_tree", "willow_tree"}


def test_any_mix_of_shipped_names_in_any_order_and_case() -> None:
    held = embed(["Truck", "aquarium-fish", "7", "cat"], 4)
    full = embed(class_list("cifar10"), 10).vectors
    assert torch.equal(held.vectors[0], full[9])
    assert torch.equal(held.vectors[3], full[3])
    assert torch.equal(held.vectors[1], embed(class_list("cifar100"), 100).vectors[1])
    assert torch.equal(held.vectors[2], embed(None, 10).vectors[7])


def test_wordnet_ids_are_names_too() -> None:
    assert torch.equal(
        embed(["n01443537", "n01440764"], 2).vectors, embed(list(class_list("imagenet")[1::-1]), 2).vectors
    )


# -- index prompts --------------------------------------------------------------------------------------------


def test_index_prompts() -> None:
    nameless = embed(None, 1000)
    assert nameless.vectors.shape == (1000, 384)
    assert nameless.source["prompt"] == PROMPTS["P3"]
    names = class_list("cifar10")
    for held in (embed(names, 10, "index"), embed(names, 10, prompt="P3"), embed(None, 10, "shipped")):
        assert torch.equal(held.vectors, nameless.vectors[:10])
        assert held.source["prompt"] == PROMPTS["P3"]
    with pytest.raises(UserError, match="1000"):
        embed(None, 1001, "index")


# -- without and with a text encoder --------------------------------------------------------------------------


def test_auto_falls_back_to_the_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "has_minilm", lambda: False)
    with pytest.warns(
        UserWarning, match="no vector for 'a photo of gadget' and 1 more .*class indices.*text.file"
    ) as told:
        held = embed(["gadget", "gizmo"], 2)
    assert len(told) == 1
    assert torch.equal(held.vectors, embed(None, 2).vectors)
    assert held.source["prompt"] == PROMPTS["P3"]
    with pytest.raises(UserError, match="gadget"):
        embed(["gadget", "gizmo"], 2, "shipped")
    with pytest.raises(UserError, match="class of gadget"):
        embed(["gadget", "gizmo"], 2, "shipped", prompt="P1")


@pytest.mark.parametrize("name", ["digits", "cifar10", "cifar100", "tiny-imagenet", "imagenette"])
def test_the_first_prompt_is_shipped_too(name: str) -> None:
    names = class_list(name)
    first, second = (embed(names, len(names), "shipped", prompt=prompt) for prompt in ("P1", "P2"))
    assert first.source["prompt"] == PROMPTS["P1"]
    assert first.vectors.shape == second.vectors.shape
    cosine = torch.nn.functional.cosine_similarity(first.vectors, second.vectors)
    assert float(cosine.min()) > 0.3  # the same names in other words
    closest = (first.vectors @ second.vectors.T).argmax(dim=1)
    assert float((closest == torch.arange(len(names))).float().mean()) > 0.9


def test_auto_takes_the_encoder_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, ...]] = []

    def encoder(prompts: tuple[str, ...]) -> tuple[Tensor, dict[str, str]]:
        seen.append(prompts)
        return torch.arange(len(prompts) * 3, dtype=torch.float64).reshape(-1, 3), {"encoder": "toy"}

    monkeypatch.setattr(text, "has_minilm", lambda: True)
    monkeypatch.setattr(text, "minilm", encoder)
    monkeypatch.setattr(text, "clip", encoder)
    held = embed(["gadget", "sea_gizmo"], 2)
    assert seen == [("a photo of gadget", "a photo of sea gizmo")]
    assert held.vectors.dtype == torch.float32
    assert held.source == {"encoder": "toy", "prompt": PROMPTS["P2"]}
    embed(["cat", "dog"], 2)  # shipped: the encoder is left alone
    assert len(seen) == 1
    embed(["cat", "dog"], 2, "minilm", prompt="P1")
    embed(["cat", "dog"], 2, "clip", prompt="P3")
    embed(None, 2, "clip")
    assert seen[1:] == [("a class of cat", "a class of dog"), *[("a photo of 0", "a photo of 1")] * 2]


def test_missing_extras_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    told = {"minilm": "'sentence-transformers>=3'", "clip": "'open.clip.torch>=2.30' 'torch==[0-9.]+'`$"}
    told["shipped"] = "'sentence-transformers>=3'.*, or pass vectors"
    for encoder, package in told.items():
        with pytest.raises(UserError, match=f"run `pip install .*{package}"):
            embed(["cat", "no such animal"], 2, encoder)


def test_altered_model_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for name in ("config.json", "absent.json"):
        with pytest.raises(UserError, match="published"):
            _encoders.check_hash(tmp_path / name, _encoders.MINILM["config.json"])


def test_shipped_vectors_reproduce() -> None:
    if not _encoders.has_minilm():
        pytest.skip("the text extra is not installed")
    names = class_list("cifar10")
    mine, shipped = embed(names, 10, "minilm"), embed(names, 10)
    assert torch.allclose(mine.vectors, shipped.vectors, atol=2e-3)
    assert mine.source["weights_sha256"] == shipped.source["weights_sha256"]
    assert embed(["cat", "dog"], 2, "minilm", prompt="P1").vectors.shape == (2, 384)


# -- files ----------------------------------------------------------------------------------------------------


def test_file_round_trip(tmp_path: Path) -> None:
    vectors = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    save_file({"embeddings": vectors}, tmp_path / "a.safetensors", metadata={"encoder": "mine", "prompt": "the {name}"})
    np.save(tmp_path / "a.npy", vectors.double().numpy())
    torch.save(vectors, tmp_path / "a.pt")
    torch.save({"vectors": vectors}, tmp_path / "b.pt")
    for name in ("a.safetensors", "a.npy", "a.pt", "b.pt"):
        for encoder in ("file", "auto"):
            held = embed(None, 4, encoder, file=tmp_path / name)
            assert torch.equal(held.vectors, vectors)
            assert held.source["origin"] == str(tmp_path / name)
    assert embed(None, 4, "file", file=tmp_path / "a.safetensors").source["encoder"] == "mine"
    assert torch.equal(embed(None, 4, file=str(tmp_path / "a.npy")).vectors, vectors)


def test_unfit_files(tmp_path: Path) -> None:
    good = torch.ones(4, 7)
    np.save(tmp_path / "rows.npy", good[:3].numpy())
    np.save(tmp_path / "flat.npy", good.flatten().numpy())
    np.save(tmp_path / "text.npy", np.array([["a", "b"]] * 4))
    np.save(tmp_path / "object.npy", np.array([[{}]] * 4, dtype=object), allow_pickle=True)
    torch.save({"a": good, "b": good}, tmp_path / "two.pt")
    torch.save({"vectors": TextEmbedding(good, {})}, tmp_path / "code.pt")
    torch.save(good > 0, tmp_path / "bool.pt")
    torch.save(good / 0, tmp_path / "infinite.pt")
    save_file({"a": good}, tmp_path / "cut.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "cut.safetensors").read_bytes()[:-1])
    (tmp_path / "broken.pt").write_bytes(b"no archive")
    (tmp_path / "a.csv").write_text("1,2")
    for file in [
        *sorted(tmp_path.iterdir()),
        tmp_path / "absent.npy",
        tmp_path / "absent.pt",
        tmp_path / "a.safetensors",
    ]:
        with pytest.raises(UserError) as caught:
            embed(None, 4, "file", file=file)
        assert "\n" not in str(caught.value)
        assert "got" in str(caught.value)


# -- arguments ------------------------------------------------------------------------------------------------


def test_unfit_arguments(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one name for each of 3"):
        embed(["cat", "dog"], 3)
    with pytest.raises(UserError, match="differ"):
        embed(["sea_lion", "Sea-Lion"], 2)
    with pytest.raises(UserError, match="not empty"):
        embed(["cat", "_"], 2)
    with pytest.raises(UserError, match="encoder to be one of"):
        embed(None, 2, "bert")
    with pytest.raises(UserError, match="prompt to be one of"):
        embed(None, 2, prompt="P4")
    with pytest.raises(UserError, match="file=PATH"):
        embed(None, 2, "file")
    with pytest.raises(UserError, match="encoder 'file'"):
        embed(None, 2, "shipped", file=tmp_path / "a.npy")
    with pytest.raises(UserError, match="at least one class"):
        embed(None, 0)
