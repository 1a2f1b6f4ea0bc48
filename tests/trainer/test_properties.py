"""The twelve properties that need no oracle (`ltx-training.md` 7.4): which test is which.

Most stand with the part that they are about; those that join several parts are here.
"""

import importlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import LTX2Pipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from preprocessing.latent_mask import latent_keep_mask
from tests.trainer.test_transformer import assert_same, inputs, learning
from trainer.adapter import adapter_state, add_adapter, load_adapter_state
from trainer.blocks import Branch, run_block
from trainer.conditions import keep_masks
from trainer.errors import ConditionError
from trainer.guidance import Guidance
from trainer.latents import VideoGeometry
from trainer.lora_file import LoraMetadata, save_lora
from trainer.model import BaseModel
from trainer.sampler import Given, build_request, sample
from trainer.spec import KeepRectangle, SampleMask
from trainer.text import PromptContext
from trainer.transformer import Modality, predict_velocity

PROPERTIES = {
    "1 video-only is joint and isolated": (
        "test_transformer.test_video_only_is_a_joint_call_that_is_isolated",
    ),
    "2 the loss is local, given tokens are seen": (
        "test_flow.test_kept_predictions_do_not_reach_loss_or_gradient",
        "test_flow.test_kept_tokens_are_seen_clean",
    ),
    "3 given tokens leave the sampler as they came": (
        "test_sampler.test_given_tokens_come_out_bit_by_bit",
        "test_sampler.test_given_audio_is_kept_too",
        "test_modes.test_a_conditioned_training_from_dataset_to_reel",
        "test_properties.test_given_tokens_are_exact_in_a_bf16_model",
    ),
    "4 a suffix is its trailing pixel frames": (
        "test_conditions.test_a_suffix_is_the_mask_of_its_trailing_pixel_frames",
        "test_conditions.test_suffixes_are_the_reference_suffixes",
    ),
    "5 static, white and one-frame masks": (
        "test_properties.test_a_static_mask_is_the_same_in_every_latent_frame",
        "test_properties.test_a_white_mask_keeps_nothing",
        "test_properties.test_an_edit_of_one_frame_edits_one_latent_frame",
    ),
    "6 rectangles scale, and are never empty or full": (
        "test_conditions.test_a_rectangle_scales_with_the_frame",
        "test_properties.test_a_rectangle_is_never_empty_or_full",
    ),
    "7 sigmas have the reference's statistics": (
        "test_timesteps.test_the_distribution_is_the_reference_distribution",
        "test_timesteps.test_audio_and_video_sigmas_are_independent",
    ),
    "8 a LoRA is nothing at step 0 and at strength 0, and is what was saved": (
        "test_properties.test_a_fresh_adapter_changes_no_output",
        "test_lora_file.test_diffusers_gives_what_the_trainer_gives",
        "test_properties.test_strength_0_is_the_base_model",
    ),
    "9 it learns, and a resume changes nothing": (
        "test_loop.test_a_fixed_clip_is_learned",
        "test_run.test_kill_9_changes_nothing",
        "test_run.test_five_interruptions_change_nothing",
        "test_modes.test_a_released_training_goes_on_to_the_same_weights",
    ),
    "10 the rate moves positions, not latents": (
        "test_encode.test_the_rate_changes_positions_not_latents",
        "test_transformer.test_the_rate_of_the_clip_matters",
    ),
    "11 gradients do not depend on how they are computed": (
        "test_transformer.test_recomputing_blocks_changes_no_gradient",
        "test_transformer.test_modulation_by_row_has_the_gradients_of_modulation_by_token",
        "test_properties.test_a_traced_block_has_the_same_gradients",
    ),
    "12 tones and silence": (
        "test_audio.test_a_tone_has_the_same_mel_at_every_rate",
        "test_audio.test_silence_is_the_floor",
    ),
}


@pytest.mark.parametrize("name", PROPERTIES)
def test_the_table_names_tests_that_are_there(name: str) -> None:
    for test in PROPERTIES[name]:
        module, _, function = test.partition(".")
        assert callable(getattr(importlib.import_module(f"tests.trainer.{module}"), function))


WIDTH, HEIGHT = 96, 64
GEOMETRY = VideoGeometry(25, HEIGHT, WIDTH, Fraction(24))


def kept(pixels: np.ndarray) -> Tensor:
    """[F, H, W] with 255 = keep -> what a training keeps, [f, h, w]."""
    mask = torch.from_numpy(latent_keep_mask(pixels))
    masks = keep_masks([SampleMask()], GEOMETRY, num_audio_tokens=None, sample_mask=mask)
    return masks.video.view(4, 2, 3)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_static_mask_is_the_same_in_every_latent_frame(seed: int) -> None:
    cells = np.random.default_rng(seed).random((2, 3)) < 0.5
    cells[0, 0], cells[1, 2] = True, False
    picture = np.kron(cells, np.full((32, 32), 255)).astype(np.uint8)
    grid = kept(np.broadcast_to(picture, (25, HEIGHT, WIDTH)))
    assert torch.equal(grid, torch.from_numpy(cells).expand(4, 2, 3))


def test_a_white_mask_keeps_nothing() -> None:
    assert not latent_keep_mask(np.zeros((25, HEIGHT, WIDTH), np.uint8)).any()
    with pytest.raises(ConditionError, match="Nothing of the clip"):
        kept(np.zeros((25, HEIGHT, WIDTH), np.uint8))


@pytest.mark.parametrize("frame", range(25))
def test_an_edit_of_one_frame_edits_one_latent_frame(frame: int) -> None:
    pixels = np.full((25, HEIGHT, WIDTH), 255, np.uint8)
    pixels[frame] = 0
    edited = (~kept(pixels)).flatten(1)
    assert edited.any(dim=1).nonzero().flatten().tolist() == [-(-frame // 8)]
    assert edited.all(dim=1).sum() == 1


SIDES = st.integers(1, 12).map(lambda cells: 32 * cells)


@settings(max_examples=200, deadline=None)
@given(frame=st.tuples(SIDES, SIDES), preview=st.tuples(SIDES, SIDES), data=st.data())
def test_a_rectangle_is_never_empty_or_full(
    frame: tuple[int, int], preview: tuple[int, int], data: st.DataObject
) -> None:
    """Either it is refused, or something is kept and something is left; in whole columns and rows
    whose edges are the scaled ones, floored."""
    (width, height), (shown_width, shown_height) = frame, preview
    left, right = sorted(data.draw(st.tuples(*[st.integers(0, width)] * 2)))
    top, bottom = sorted(data.draw(st.tuples(*[st.integers(0, height)] * 2)))
    rectangle = KeepRectangle(
        left=left,
        top=top,
        right=max(1, right),
        bottom=max(1, bottom),
        frame_width=width,
        frame_height=height,
    )
    geometry = VideoGeometry(9, shown_height, shown_width, Fraction(24))
    columns = range(left * shown_width // width // 32, rectangle.right * shown_width // width // 32)
    rows = range(
        top * shown_height // height // 32, rectangle.bottom * shown_height // height // 32
    )
    num_kept = 2 * len(columns) * len(rows)
    try:
        masks = keep_masks([rectangle], geometry, num_audio_tokens=None)
    except ConditionError:
        assert num_kept in (0, geometry.num_tokens)
    else:
        grid = masks.video.view(2, geometry.latent_height, geometry.latent_width)
        assert 0 < grid.sum() == num_kept < geometry.num_tokens
        assert grid[:, rows.start : rows.stop, columns.start : columns.stop].all()


def test_given_tokens_are_exact_in_a_bf16_model(tiny: BaseModel) -> None:
    """The model's dtype is its own business: what is sampled is float32."""
    transformer = tiny.transformer(with_audio=False).to(torch.bfloat16)
    generator = torch.Generator().manual_seed(4)
    clean = torch.randn(1, GEOMETRY.num_tokens, 128, generator=generator)
    keep = torch.arange(GEOMETRY.num_tokens) % 3 == 0
    context = PromptContext(torch.randn(8, 64, generator=generator), torch.zeros(8, 32))
    request = build_request(
        transformer,
        GEOMETRY,
        context,
        context,
        (Guidance(cfg=3.0, stg=1.0, rescale=0.7), None),
        num_steps=2,
        seed=1,
        given_video=Given(keep, clean),
    )
    latents = sample(transformer, request)
    assert torch.equal(latents.video[:, keep], clean[:, keep])
    assert not (latents.video[:, ~keep] == clean[:, ~keep]).any()


def velocity(transformer: torch.nn.Module, video: Modality) -> Tensor:
    with torch.no_grad():
        return predict_velocity(transformer, video, None)[0]


def test_a_fresh_adapter_changes_no_output(tiny: BaseModel) -> None:
    transformer = tiny.transformer(with_audio=False)
    video, _ = inputs(keep=3)
    before = velocity(transformer, video)
    add_adapter(transformer, 8, False)
    assert torch.equal(velocity(transformer, video), before)


def test_strength_0_is_the_base_model(tiny: BaseModel, tmp_path: Path) -> None:
    """As a user of diffusers would set it."""
    transformer = tiny.transformer(with_audio=False)
    video, _ = inputs(keep=3)
    base = velocity(transformer, video)
    add_adapter(transformer, 4, False)
    generator = torch.Generator().manual_seed(1)
    noise = {
        key: torch.randn(tensor.shape, generator=generator) * 0.1
        for key, tensor in adapter_state(transformer).items()
    }
    load_adapter_state(transformer, noise)
    metadata = LoraMetadata("t2v", 4, 1, 64, 64, 9, "24", False)
    save_lora(tmp_path / "lora.safetensors", adapter_state(transformer), metadata)

    pipeline = LTX2Pipeline.from_pretrained(
        tiny.folder, transformer=tiny.transformer(with_audio=False)
    )
    pipeline.load_lora_weights(
        str(tmp_path), weight_name="lora.safetensors", adapter_name="finished"
    )
    assert not torch.equal(velocity(pipeline.transformer, video), base)
    pipeline.set_adapters("finished", 0.0)
    assert torch.equal(velocity(pipeline.transformer, video), base)


# torch's own tracer makes an instance of every autograd function that it meets.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_traced_block_has_the_same_gradients(tiny: BaseModel) -> None:
    """What `torch.compile` makes of a block, one whole graph, run without code generation: inductor
    agrees to 1e-9 but needs half a minute of a C++ compiler, and nothing here compiles."""
    transformer = learning(tiny.transformer(with_audio=False))
    block = transformer.transformer_blocks[0]
    video, _ = inputs(keep=3)
    generator = torch.Generator().manual_seed(5)
    hidden, rows, text_rows = (
        torch.randn(1, count, width, generator=generator)
        for count, width in ((video.tokens.shape[1], 64), (2, 9 * 64), (1, 2 * 64))
    )
    hidden.requires_grad_(True)
    rope = transformer.rope(video.coords, device="cpu")
    branch = Branch(video.context, rows, text_rows, rope, video.keep)
    traced = torch.compile(run_block, backend="aot_eager", fullgraph=True)
    found = []
    for run in (run_block, traced):
        result, _ = run(block, hidden, None, branch, None)
        weights = [hidden, block.attn1.to_q.weight, block.attn2.to_out[0].weight]
        found.append(list(torch.autograd.grad(result.square().mean(), weights)))
    assert_same(*found)
