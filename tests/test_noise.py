"""The noise yardstick's augmentation, against its pieces."""

from dataclasses import replace

import pytest
import torch

from dfkd.engine.core import Clock
from dfkd.errors import UserError
from dfkd.methods.noise import NoiseInput, NoiseState
from dfkd.ops.affine import affine, draw_affine
from dfkd.ops.augment import crop_flip
from settings import SETTINGS, tiny_plan, tiny_task

AUGMENTED = NoiseInput(degrees=15.0, scale=0.1, shift=0.1, crop=2, noise=0.05)


def images_of(method: NoiseInput) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch, and the noise it was made of, before any augmentation."""
    task = tiny_task(SETTINGS["NoiseInput"])
    stream = torch.Generator().manual_seed(0)
    stream.set_state(task.runtime.generator.get_state())
    batch = method.batch(task, NoiseState(), Clock(tiny_plan(), 0))
    return batch.images, stream.get_state()


def test_noise_is_augmented_as_stts_augments_its_set() -> None:
    got, state = images_of(AUGMENTED)
    stream = torch.Generator().manual_seed(0)
    stream.set_state(state)
    x = (torch.randn(12, 1, 8, 8, generator=stream) * 0.3 + 0.4).clamp(0, 1)  # tiny_task's mean and std
    x = affine(x, draw_affine(12, stream, 15.0, 0.1, 0.1))
    x = crop_flip(x, stream, 2, flip=False)
    x = (x + 0.05 * torch.randn(x.shape, generator=stream)).clamp(0, 1)
    torch.testing.assert_close(got, x)


def test_without_augmentation_noise_stays_noise() -> None:
    plain, state = images_of(NoiseInput())
    stream = torch.Generator().manual_seed(0)
    stream.set_state(state)
    torch.testing.assert_close(plain, (torch.randn(12, 1, 8, 8, generator=stream) * 0.3 + 0.4).clamp(0, 1))
    only, _ = images_of(replace(NoiseInput(), crop=2))
    black = (only == 0).all(dim=3).any()
    assert bool(black)  # the frame that a crop takes in


@pytest.mark.parametrize("change", [{"scale": 1.0}, {"noise": -0.1}, {"crop": -1}], ids=str)
def test_augmentations_that_cannot_be_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(change))):
        NoiseInput(**change)  # type: ignore[arg-type]
