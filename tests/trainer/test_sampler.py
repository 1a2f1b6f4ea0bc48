"""The sampler: the reference's numbers (golden 07), given tokens, and what it leaves alone."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from diffusers import LTX2VideoTransformer3DModel
from safetensors.torch import load_file
from torch import Tensor

from tests.conftest import GOLDEN
from trainer.guidance import NO_GUIDANCE, Guidance, stg_block
from trainer.latents import VideoGeometry
from trainer.sampler import (
    TERMINAL_SIGMA,
    Given,
    SampledLatents,
    SampleRequest,
    Stream,
    build_request,
    sample,
    sigma_schedule,
)
from trainer.text import PromptContext

TOLERANCE = 2e-4
"""The README's for 07: a random transformer in float32."""

RUNS = load_file(GOLDEN / "07_sampler.safetensors")
RUN_NAMES = sorted(key.removesuffix(".v.init") for key in RUNS if key.endswith(".v.init"))
SCHEDULES = sorted(key for key in RUNS if key.startswith("sigmas_"))


@dataclass(frozen=True)
class Reference:
    """The model and the settings that made the golden runs."""

    transformer: LTX2VideoTransformer3DModel
    inputs: dict[str, Tensor]
    settings: dict[str, object]

    def stream(self, run: str, side: str, guidance: Guidance) -> Stream:
        """``side`` is ``v`` or ``a``."""
        name = {"v": "video", "a": "audio"}[side]
        keep = RUNS[f"{run}.{side}.denoise_mask"][0, :, 0] == 0
        clean = RUNS[f"{run}.{side}.clean"]
        return Stream(
            noise=RUNS[f"{run}.{side}.init"],
            coords=self.inputs[f"in.{name}_positions"][:1],
            positive=self.inputs[f"in.{name}_context"][:1],
            negative=RUNS[f"neg_{name}_context"],
            guidance=guidance,
            given=Given(keep, clean) if keep.any() else None,
        )

    def request(self, run: str) -> SampleRequest:
        scales: Mapping[str, object] = self.settings["guidance"]  # type: ignore[assignment]
        has_audio = f"{run}.a.init" in RUNS
        video = Guidance(
            cfg=float(str(scales["video_cfg"])),
            stg=float(str(scales["video_stg"])),
            modality=float(str(scales["video_modality"]).split()[0]) if has_audio else 1.0,
            rescale=float(str(scales["rescale"])),
        )
        audio = Guidance(
            cfg=float(str(scales["audio_cfg"])),
            stg=float(str(scales["audio_stg"])),
            modality=float(str(scales["audio_modality"])),
            rescale=float(str(scales["rescale"])),
        )
        return SampleRequest(
            video=self.stream(run, "v", video),
            audio=self.stream(run, "a", audio) if has_audio else None,
            num_steps=int(str(self.settings["steps"])),
            stg_blocks=tuple(scales["stg_blocks"]),  # type: ignore[arg-type]
        )


@pytest.fixture(scope="module")
def reference(golden_dir: Path) -> Reference:
    files = json.loads((golden_dir / "manifest.json").read_text())["files"]
    settings = files["07_sampler.safetensors"]["extra"]
    weights_of = f"{settings['weights']}.safetensors"
    arrays = load_file(golden_dir / weights_of)
    transformer = LTX2VideoTransformer3DModel(**files[weights_of]["extra"]["diffusers_config"])
    weights = {k.removeprefix("weights."): v for k, v in arrays.items() if k.startswith("weights.")}
    transformer.load_state_dict(weights)
    return Reference(transformer.eval().requires_grad_(False), arrays, settings)


def run(reference: Reference, request: SampleRequest) -> SampledLatents:
    latents = sample(reference.transformer, request)
    assert latents is not None
    return latents


@pytest.mark.golden
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_is_the_reference(name: str) -> None:
    numbers = re.fullmatch(r"sigmas_steps(\d+)(?:_tokens(\d+))?", name)
    assert numbers
    given = [int(number) for number in numbers.groups() if number]
    torch.testing.assert_close(sigma_schedule(*given), RUNS[name], atol=2e-7, rtol=0)


@pytest.mark.golden
@pytest.mark.parametrize("name", RUN_NAMES)
def test_run_is_the_reference(reference: Reference, name: str) -> None:
    latents = run(reference, reference.request(name))
    torch.testing.assert_close(latents.video, RUNS[f"{name}.v.final"], atol=TOLERANCE, rtol=0)
    if f"{name}.a.final" in RUNS:
        assert latents.audio is not None
        torch.testing.assert_close(latents.audio, RUNS[f"{name}.a.final"], atol=TOLERANCE, rtol=0)
    else:
        assert latents.audio is None


@pytest.mark.parametrize("name", [n for n in RUN_NAMES if not n.startswith("t2v")])
def test_given_tokens_come_out_bit_by_bit(reference: Reference, name: str) -> None:
    request = reference.request(name)
    given = request.video.given
    assert given is not None
    assert 0 < given.keep.sum() < given.keep.numel()
    # Other noise under the given tokens must not matter either.
    noise = torch.where(given.keep[:, None], torch.full_like(given.clean, 7.0), request.video.noise)
    latents = run(reference, replace(request, video=replace(request.video, noise=noise)))
    assert torch.equal(latents.video[:, given.keep], given.clean[:, given.keep])
    assert torch.equal(latents.video, run(reference, request).video)


def test_given_audio_is_kept_too(reference: Reference) -> None:
    request = reference.request(next(name for name in RUN_NAMES if f"{name}.a.init" in RUNS))
    assert request.audio is not None
    keep = torch.arange(request.audio.noise.shape[1]) % 3 == 0
    clean = torch.randn(request.audio.noise.shape, generator=torch.Generator().manual_seed(1))
    audio = replace(request.audio, given=Given(keep, clean))
    latents = run(reference, replace(request, audio=audio))
    assert latents.audio is not None
    assert torch.equal(latents.audio[:, keep], clean[:, keep])
    assert not torch.equal(latents.audio[:, ~keep], clean[:, ~keep])


def test_given_tokens_are_seen_by_the_others(reference: Reference) -> None:
    request = reference.request(next(name for name in RUN_NAMES if name.startswith("suffix")))
    given = request.video.given
    assert given is not None
    other = replace(request.video, given=Given(given.keep, given.clean + 1.0))
    free = ~given.keep
    before = run(reference, request).video[:, free]
    after = run(reference, replace(request, video=other)).video[:, free]
    assert (before - after).abs().max() > 1e-3


def test_schedule_falls_to_zero_through_the_terminal_sigma() -> None:
    sigmas = sigma_schedule(30)
    assert sigmas[0] == pytest.approx(1.0, abs=1e-6)
    assert sigmas[-2] == pytest.approx(TERMINAL_SIGMA, abs=1e-6)
    assert sigmas[-1] == 0.0
    assert (sigmas.diff() < 0).all()
    assert sigma_schedule(1).tolist() == [pytest.approx(1.0, abs=1e-6), 0.0]
    with pytest.raises(ValueError, match="at least 1"):
        sigma_schedule(0)


@pytest.mark.parametrize(
    ("video", "audio", "passes"),
    [
        pytest.param(NO_GUIDANCE, NO_GUIDANCE, 1, id="off"),
        pytest.param(Guidance(cfg=3.0), None, 2, id="cfg"),
        pytest.param(Guidance(cfg=3.0, stg=1.0), None, 3, id="video-only"),
        pytest.param(Guidance(stg=1.0), Guidance(stg=1.0), 2, id="stg"),
        pytest.param(NO_GUIDANCE, Guidance(modality=3.0), 2, id="modality-of-audio-only"),
        pytest.param(
            Guidance(3.0, 1.0, 3.0, 0.7), Guidance(7.0, 1.0, 3.0, 0.7), 4, id="everything"
        ),
    ],
)
def test_passes_that_change_nothing_are_not_run(
    reference: Reference, video: Guidance, audio: Guidance | None, passes: int
) -> None:
    joint = reference.request(next(name for name in RUN_NAMES if f"{name}.a.init" in RUNS))
    assert joint.audio is not None
    request = replace(
        joint,
        video=replace(joint.video, guidance=video),
        audio=replace(joint.audio, guidance=audio) if audio else None,
    )
    block = reference.transformer.transformer_blocks[0]
    # Self-attention runs in every pass, with or without audio.
    calls: list[None] = []
    handle = block.attn1.register_forward_hook(lambda *_: calls.append(None))
    try:
        run(reference, request)
    finally:
        handle.remove()
    assert len(calls) == passes * request.num_steps


@dataclass
class Tiny:
    """A request as callers make it, on the golden model."""

    transformer: LTX2VideoTransformer3DModel
    context: PromptContext
    geometry: VideoGeometry

    def request(self, seed: int) -> SampleRequest:
        guidance = (Guidance(cfg=3.0, stg=1.0), Guidance(cfg=7.0, stg=1.0))
        return build_request(
            self.transformer,
            self.geometry,
            self.context,
            self.context,
            guidance,
            num_steps=2,
            seed=seed,
        )


@pytest.fixture
def tiny(reference: Reference) -> Tiny:
    context = PromptContext(
        reference.inputs["in.video_context"][0], reference.inputs["in.audio_context"][0]
    )
    geometry = VideoGeometry(num_frames=9, height=64, width=96, frame_rate=Fraction(24))
    return Tiny(reference.transformer, context, geometry)


def test_a_seed_means_the_same_sample_and_the_global_state_stays(tiny: Tiny) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = sample(tiny.transformer, tiny.request(seed=1))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    second = sample(tiny.transformer, tiny.request(seed=1))
    third = sample(tiny.transformer, tiny.request(seed=2))
    assert first is not None
    assert second is not None
    assert third is not None
    assert first.audio is not None
    assert second.audio is not None
    assert torch.equal(first.video, second.video)
    assert torch.equal(first.audio, second.audio)
    assert not torch.equal(first.video, third.video)
    assert first.video.shape == (1, tiny.geometry.num_tokens, 128)
    assert first.audio.shape == (1, 9, tiny.transformer.config.audio_in_channels)


def test_training_goes_on_after_a_sample(tiny: Tiny) -> None:
    """Nothing the sampler leaves behind may be an inference tensor."""
    request = tiny.request(seed=1)
    parameter = tiny.transformer.proj_in.weight.requires_grad_(True)
    try:
        with torch.autocast("cpu", torch.bfloat16, enabled=True):
            sample(tiny.transformer, request)
            tiny.transformer.proj_in(request.video.noise).float().sum().backward()
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0
    finally:
        parameter.grad = None
        parameter.requires_grad_(False)


def test_it_reports_every_step_and_stops_when_told(tiny: Tiny) -> None:
    steps: list[tuple[int, int]] = []
    request = replace(tiny.request(seed=1), num_steps=3)
    stopped = sample(
        tiny.transformer,
        request,
        on_step=lambda done, total: steps.append((done, total)),
        should_stop=lambda: len(steps) == 2,
    )
    assert stopped is None
    assert steps == [(1, 3), (2, 3)]


def test_the_stg_block_lies_at_the_depth_of_the_real_one() -> None:
    assert [stg_block(count) for count in (48, 4, 2, 1)] == [28, 2, 1, 0]


def test_what_would_pass_in_silence_is_refused(tiny: Tiny) -> None:
    request = tiny.request(seed=1)
    with pytest.raises(ValueError, match="stg_blocks is empty"):
        sample(tiny.transformer, replace(request, stg_blocks=()))
    with pytest.raises(ValueError, match="no such block"):
        sample(tiny.transformer, replace(request, stg_blocks=(28,)))
    with pytest.raises(ValueError, match="video has no negative"):
        sample(tiny.transformer, replace(request, video=replace(request.video, negative=None)))
