"""The transformer's call: golden 05 in all situations, and equivalences that need no oracle."""

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from diffusers import LTX2VideoTransformer3DModel
from torch import Tensor

from tests.trainer.jobs import golden, golden_extra
from trainer.execution import checkpoint_blocks
from trainer.latents import VideoGeometry, audio_coords, video_coords
from trainer.model import BaseModel
from trainer.transformer import Modality, drop_audio_branch, predict_velocity

GOLDEN_05 = golden("05_transformer")
TOLERANCE = 2e-4
STG_BLOCK = 1


def golden_transformer() -> LTX2VideoTransformer3DModel:
    transformer = LTX2VideoTransformer3DModel(**golden_extra("05_transformer")["diffusers_config"])
    prefix = "weights."
    weights = {k.removeprefix(prefix): v for k, v in GOLDEN_05.items() if k.startswith(prefix)}
    transformer.load_state_dict(weights)
    return transformer.eval().requires_grad_(False)


def golden_modality(name: str, sigma: str, *, masked: bool = False) -> Modality:
    """``sigma`` is "a" or "b"; ``masked`` takes the per-token timesteps of the file."""
    modality = Modality(
        tokens=GOLDEN_05[f"in.{name}_tokens"],
        sigma=GOLDEN_05[f"in.sigma_{sigma}"],
        context=GOLDEN_05[f"in.{name}_context"],
        coords=GOLDEN_05[f"in.{name}_positions"],
    )
    if not masked:
        return modality
    timesteps = GOLDEN_05[f"in.{name}_timesteps_masked"]
    modality = replace(modality, keep=timesteps == 0)
    assert torch.equal(modality.timesteps, timesteps)
    return modality


SITUATIONS = {
    # name: (sigma of video, of audio or None, masked, options)
    "joint_equal_sigma": ("a", "a", False, {}),
    "joint_diff_sigma": ("a", "b", False, {}),
    "joint_diff_sigma_masked": ("a", "b", True, {}),
    "video_only": ("a", None, False, {}),
    "video_only_masked": ("a", None, True, {}),
    "stg_block1_video_audio": ("a", "a", False, {"skip_self_attention_blocks": (STG_BLOCK,)}),
    "stg_block1_video_only_branch": (
        "a",
        None,
        False,
        {"skip_self_attention_blocks": (STG_BLOCK,)},
    ),
    "modality_isolated": ("a", "a", False, {"isolate_modalities": True}),
}
OF_JOINT = "stg_block1_video_of_joint"


def check(situation: str, video: Tensor, audio: Tensor | None) -> None:
    for name, result in (("video", video), ("audio", audio)):
        expected = GOLDEN_05.get(f"out.{situation}.{name}")
        assert (result is None) == (expected is None), name
        if expected is not None:
            torch.testing.assert_close(result, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.golden
def test_no_situation_of_the_file_is_left_out() -> None:
    names = {name.split(".")[1] for name in GOLDEN_05 if name.startswith("out.")}
    assert names == {*SITUATIONS, OF_JOINT}


@pytest.mark.golden
@pytest.mark.parametrize("situation", SITUATIONS)
def test_every_situation_is_the_reference(situation: str) -> None:
    video_sigma, audio_sigma, masked, options = SITUATIONS[situation]
    transformer = golden_transformer()
    video = golden_modality("video", video_sigma, masked=masked)
    audio = None if audio_sigma is None else golden_modality("audio", audio_sigma, masked=masked)
    check(situation, *predict_velocity(transformer, video, audio, **options))
    if audio is None:
        drop_audio_branch(transformer)
        check(situation, *predict_velocity(transformer, video, None, **options))


@pytest.mark.golden
def test_skipping_the_video_attention_alone() -> None:
    """The reference can; no mode needs it, so the audio's part of the skip is undone by hand."""
    transformer = golden_transformer()
    attention = transformer.transformer_blocks[STG_BLOCK].audio_attn1
    attention.register_forward_pre_hook(
        lambda module, args, kwargs: (
            args,
            kwargs | {"perturbation_mask": None, "all_perturbed": False},
        ),
        with_kwargs=True,
    )
    video, audio = (golden_modality(name, "a") for name in ("video", "audio"))
    result = predict_velocity(transformer, video, audio, skip_self_attention_blocks=(STG_BLOCK,))
    check(OF_JOINT, *result)


def inputs(*, keep: int = 0, seed: int = 0) -> tuple[Modality, Modality]:
    """Random video and audio for the tiny model; the first ``keep`` tokens of each are given."""
    generator = torch.Generator().manual_seed(seed)
    geometry = VideoGeometry(17, 64, 64, Fraction(24))

    def modality(num_tokens: int, channels: int, width: int, coords: Tensor) -> Modality:
        sigma = torch.rand(1, generator=generator)
        return Modality(
            tokens=torch.randn(1, num_tokens, channels, generator=generator),
            sigma=sigma,
            context=torch.randn(1, 8, width, generator=generator),
            coords=coords,
            keep=(torch.arange(num_tokens) < keep)[None] if keep else None,
        )

    return (
        modality(geometry.num_tokens, 128, 64, video_coords(geometry)),
        modality(18, 32, 32, audio_coords(18)),
    )


@pytest.mark.parametrize(
    ("keep", "tolerance"),
    [
        pytest.param(0, 0.0, id="all generated"),
        # The modulation's matrix product has 2 rows in place of 12, and rounds differently.
        pytest.param(3, 5e-6, id="some given"),
    ],
)
@pytest.mark.parametrize("skip", [(), (2,)], ids=["plain", "stg"])
def test_video_only_is_a_joint_call_that_is_isolated(
    tiny: BaseModel, skip: tuple[int, ...], keep: int, tolerance: float
) -> None:
    joint, alone = tiny.transformer(with_audio=True), tiny.transformer(with_audio=False)
    video, audio = inputs(keep=keep)
    dummy = replace(
        audio,
        tokens=torch.zeros(1, 1, 32),
        keep=torch.ones(1, 1, dtype=torch.bool),
        context=torch.zeros(1, 1, 32),
        coords=audio_coords(1),
    )
    expected, _ = predict_velocity(
        joint, video, audio, isolate_modalities=True, skip_self_attention_blocks=skip
    )
    with_dummy, _ = predict_velocity(
        joint, video, dummy, isolate_modalities=True, skip_self_attention_blocks=skip
    )
    assert torch.equal(expected, with_dummy)
    for transformer in (joint, alone):
        result, none = predict_velocity(transformer, video, None, skip_self_attention_blocks=skip)
        assert none is None
        torch.testing.assert_close(result, expected, atol=tolerance, rtol=0)


def test_no_audio_weight_is_loaded_for_a_video_only_training(tiny: BaseModel) -> None:
    names = [name for name, _ in tiny.transformer(with_audio=False).named_parameters()]
    assert not [name for name in names if "audio" in name or "av_cross" in name]
    assert [name for name in names if ".attn2." in name]


@pytest.mark.parametrize("joint", [False, True], ids=["video", "joint"])
def test_one_timestep_per_sample_is_equal_timesteps_per_token(tiny: BaseModel, joint: bool) -> None:
    transformer = tiny.transformer(with_audio=joint)
    video, audio = inputs()
    each = [
        replace(m, keep=torch.zeros(m.tokens.shape[:2], dtype=torch.bool)) for m in (video, audio)
    ]
    expected = predict_velocity(transformer, each[0], each[1] if joint else None)
    results = predict_velocity(transformer, video, audio if joint else None)
    for result, other in zip(results, expected, strict=True):
        if result is not None:
            torch.testing.assert_close(result, other, atol=1e-5, rtol=0)


def gradients(transformer: LTX2VideoTransformer3DModel, *results: Tensor | None) -> list[Tensor]:
    """Of the first and the last block's queries and of an output of the attention to the text."""
    first, *_, last = transformer.transformer_blocks
    weights = [first.attn1.to_q.weight, last.attn1.to_q.weight, first.attn2.to_out[0].weight]
    loss = sum(result.square().mean() for result in results if result is not None)
    return list(torch.autograd.grad(loss, weights))


def learning(transformer: LTX2VideoTransformer3DModel) -> LTX2VideoTransformer3DModel:
    for block in transformer.transformer_blocks:
        for attention in (block.attn1, block.attn2):
            attention.requires_grad_(True)
    return transformer


def assert_same(ours: list[Tensor], others: list[Tensor]) -> None:
    for one, other in zip(ours, others, strict=True):
        assert one.abs().max() > 1e-4
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize("joint", [False, True], ids=["video", "joint"])
@pytest.mark.parametrize("num_blocks", [1, 4])
def test_recomputing_blocks_changes_no_gradient(
    tiny: BaseModel, joint: bool, num_blocks: int
) -> None:
    transformer = learning(tiny.transformer(with_audio=joint))
    video, audio = inputs(keep=3)
    found = []
    for count in (0, num_blocks):
        checkpoint_blocks(transformer, count)
        results = predict_velocity(transformer, video, audio if joint else None)
        found.append(gradients(transformer, *results))
    assert_same(*found)


@pytest.mark.parametrize("num_blocks", [0, 4], ids=["kept", "recomputed"])
def test_modulation_by_row_has_the_gradients_of_modulation_by_token(
    tiny: BaseModel, num_blocks: int
) -> None:
    """diffusers' own forward modulates every token by itself; ours, without audio, two rows."""
    transformer = learning(tiny.transformer(with_audio=True))
    video, audio = inputs(keep=3)
    by_token, _ = predict_velocity(transformer, video, audio, isolate_modalities=True)
    expected = gradients(transformer, by_token)
    checkpoint_blocks(transformer, num_blocks)
    by_row, _ = predict_velocity(transformer, video, None)
    assert_same(gradients(transformer, by_row), expected)


def num_saved(transformer: LTX2VideoTransformer3DModel, video: Modality) -> int:
    """Elements that the backward pass keeps, storages counted once."""
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        predict_velocity(transformer, video, None)
    return sum(saved.values())


def test_recomputed_blocks_keep_no_activations(tiny: BaseModel) -> None:
    transformer = tiny.transformer(with_audio=False)
    transformer.transformer_blocks[0].attn1.to_q.weight.requires_grad_(True)
    video, _ = inputs()
    counts = []
    for num_blocks in (4, 2, 0):
        checkpoint_blocks(transformer, num_blocks)
        counts.append(num_saved(transformer, video))
    assert counts == sorted(set(counts))


def test_given_tokens_cost_no_memory_of_their_own(tiny: BaseModel) -> None:
    """In each of 4 blocks a second row of 9 parameters and 3 of them plus one, width 64, and once
    12 booleans. Modulated by token, 11 times the rows."""
    transformer = learning(tiny.transformer(with_audio=False))
    (plain, _), (given, _) = inputs(), inputs(keep=3)
    more = num_saved(transformer, given) - num_saved(transformer, plain)
    assert 0 < more <= 4 * (9 + 3) * 64 + 12


def test_the_rate_of_the_clip_matters(tiny: BaseModel) -> None:
    transformer = tiny.transformer(with_audio=False)
    video, _ = inputs()
    slow = video_coords(VideoGeometry(17, 64, 64, Fraction(12)))
    results = [
        predict_velocity(transformer, replace(video, coords=coords), None)[0]
        for coords in (video.coords, slow)
    ]
    assert not torch.equal(*results)


def test_a_call_leaves_no_hook_behind(tiny: BaseModel) -> None:
    transformer = tiny.transformer(with_audio=True)
    predict_velocity(transformer, *inputs())
    assert not transformer.av_cross_attn_video_scale_shift._forward_pre_hooks
    assert not transformer.av_cross_attn_audio_scale_shift._forward_pre_hooks


@pytest.mark.parametrize("block", [-1, 4, 28])
def test_a_block_that_is_not_there_is_refused(tiny: BaseModel, block: int) -> None:
    transformer = tiny.transformer(with_audio=False)
    with pytest.raises(ValueError, match="no such block"):
        predict_velocity(transformer, inputs()[0], None, skip_self_attention_blocks=(block,))
