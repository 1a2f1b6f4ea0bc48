"""Noise, targets, timesteps, loss: golden 04 for every mode, and what kept tokens do."""

import re
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from tests.trainer.jobs import golden, golden_extra
from trainer.conditions import KeepMasks, keep_masks
from trainer.flow import Clean, Draws, Example, add_noise, draw, masked_loss, velocity_loss
from trainer.latents import VideoGeometry, audio_coords, pack_audio, pack_video, video_coords
from trainer.model import BaseModel
from trainer.spec import KeepRectangle, Suffix
from trainer.transformer import token_timesteps

MODES = golden("04_modes")
CASES = sorted(name.removesuffix(".v.sigma") for name in MODES if name.endswith(".v.sigma"))
_NOTES = golden_extra("04_modes")
SEED = int(re.search(r"manual_seed\((\d+)\)", _NOTES["seed"])[1])
FRAME_RATE = Fraction(re.search(r"px/(\d+)\*", _NOTES["audio_suffix_tokens"])[1])
_, _, _F, _H, _W = MODES["latents"].shape
GEOMETRY = VideoGeometry(8 * _F - 7, 32 * _H, 32 * _W, FRAME_RATE)


def keep_of(case: str, batch: int, num_audio_tokens: int | None) -> KeepMasks | None:
    """The masks of a case, made as a training makes them, from what its name says; [B, N]."""
    if case.startswith("t2v"):
        return None
    if case.startswith("inpaint"):
        if f"{case}.mask_in" in MODES:
            return KeepMasks((MODES[f"{case}.mask_in"] > 0.5).flatten(1), None)
        assert case == "inpaint_all_keep"
        return KeepMasks(torch.ones(batch, GEOMETRY.num_tokens, dtype=torch.bool), None)
    if match := re.fullmatch(r"outpaint_\w*y(\d+)x(\d+)_y(\d+)x(\d+)", case):
        top, left, bottom, right = map(int, match.groups())
        condition = KeepRectangle(
            left=left,
            top=top,
            right=right,
            bottom=bottom,
            frame_width=GEOMETRY.width,
            frame_height=GEOMETRY.height,
        )
    else:
        condition = Suffix(num_latent_frames=int(re.match(r"suffix_px(\d+)", case)[1]) // 8)
    masks = keep_masks([condition], GEOMETRY, num_audio_tokens=num_audio_tokens)
    audio = None if masks.audio is None else masks.audio.expand(batch, -1)
    return KeepMasks(masks.video.expand(batch, -1), audio)


@pytest.mark.golden
@pytest.mark.parametrize("case", CASES)
def test_every_mode_is_the_reference(case: str) -> None:
    video, audio = pack_video(MODES["latents"]), pack_audio(MODES["audio_latents"])
    joint = f"{case}.a.sigma" in MODES
    masks = keep_of(case, len(video), audio.shape[1] if joint else None)
    example = Example(
        video=Clean(video, Tensor(), Tensor(), masks and masks.video),
        audio=Clean(audio, Tensor(), Tensor(), masks and masks.audio) if joint else None,
        num_conditions=0 if masks is None else 1,
    )
    draws = draw(example, torch.Generator().manual_seed(SEED))

    losses = []
    sides = [("v", example.video, draws.video, "video_pred")]
    if joint:
        sides.append(("a", example.audio, draws.audio, "audio_pred"))
    for side, clean, (sigma, noise), prediction in sides:
        noised = add_noise(clean.tokens, sigma, noise, clean.keep)
        loss = masked_loss(MODES[prediction], noised.target, noised.in_loss)
        losses.append(loss)
        in_loss = torch.ones(noised.tokens.shape[:2]) if clean.keep is None else noised.in_loss
        results = {
            "sigma": sigma,
            "noise": noise,
            "noisy": noised.tokens,
            "target": noised.target,
            "timesteps": token_timesteps(sigma, clean.keep).expand(noised.tokens.shape[:2]),
            "loss_mask": in_loss.to(torch.uint8),
            "loss": loss,
        }
        for name, result in results.items():
            expected = MODES[f"{case}.{side}.{name}"]
            atol = 1e-5 if name == "loss" else 1e-6
            torch.testing.assert_close(
                result, expected, atol=atol, rtol=0, msg=lambda m, name=name: f"{name}: {m}"
            )
    torch.testing.assert_close(sum(losses), MODES[f"{case}.loss"], atol=1e-5, rtol=0)
    torch.testing.assert_close(sum(losses).mean(), MODES[f"{case}.loss_scalar"], atol=1e-5, rtol=0)
    batch = len(video)
    coords = {"v": video_coords(GEOMETRY, batch), "a": audio_coords(audio.shape[1], batch)}
    for side, *_ in sides:
        assert torch.equal(coords[side], MODES[f"{case}.{side}.positions"])


def test_a_small_hole_weighs_as_much_as_a_whole_frame() -> None:
    target = torch.zeros(2, 8, 4)
    in_loss = torch.tensor([[True] + [False] * 7, [True] * 8])
    assert torch.equal(masked_loss(target + 3, target, in_loss), torch.tensor([9.0, 9.0]))
    assert masked_loss(target + 3, target, torch.zeros(2, 8, dtype=torch.bool)).sum() == 0


def test_kept_predictions_do_not_reach_loss_or_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, target = torch.randn(2, 1, 6, 4, generator=generator).unbind()
    in_loss = torch.tensor([[True, True, False, True, False, True]])
    disturbed = prediction.clone()
    disturbed[:, ~in_loss[0]] = float("nan")
    gradients = []
    for values in (prediction, disturbed):
        values.requires_grad_(True)
        loss = masked_loss(values, target, in_loss)
        loss.sum().backward()
        gradients.append((loss.detach(), values.grad))
    assert torch.equal(gradients[0][0], gradients[1][0])
    assert torch.equal(gradients[0][1], gradients[1][1])
    assert (gradients[0][1][:, ~in_loss[0]] == 0).all()


def test_kept_tokens_are_seen_clean(tiny: BaseModel) -> None:
    """Changing a given token changes what is predicted elsewhere; its noise changes nothing."""
    transformer = tiny.transformer(with_audio=False)
    geometry = VideoGeometry(17, 64, 64, Fraction(24))
    generator = torch.Generator().manual_seed(0)
    masks = keep_masks([Suffix(num_latent_frames=1)], geometry, num_audio_tokens=None)
    keep = masks.video[None]
    tokens = torch.randn(1, geometry.num_tokens, 128, generator=generator)
    noise = torch.randn(tokens.shape, generator=generator)
    context = torch.randn(1, 8, 64, generator=generator)

    def loss(tokens: Tensor, noise: Tensor) -> Tensor:
        clean = Clean(tokens, context, video_coords(geometry), keep)
        draws = Draws((torch.tensor([0.7]), noise))
        with torch.no_grad():
            return velocity_loss(transformer, Example(clean), draws).total

    def disturbed(values: Tensor) -> Tensor:
        return torch.where(keep[..., None], values + 1, values)

    assert not torch.equal(loss(disturbed(tokens), noise), loss(tokens, noise))
    assert torch.equal(loss(tokens, disturbed(noise)), loss(tokens, noise))
