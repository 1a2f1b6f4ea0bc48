"""How predictions are combined: the reference's guider (golden 07), and the scales of a preview."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from trainer.guidance import Guidance, Passes, preview_guidance
from trainer.spec import ValidationSpec


@pytest.fixture(scope="module")
def predictions(golden_dir: Path) -> dict[str, Tensor]:
    arrays = load_file(golden_dir / "07_sampler.safetensors")
    return {k.removeprefix("guider."): v for k, v in arrays.items() if k.startswith("guider.")}


@pytest.mark.golden
@pytest.mark.parametrize(
    ("out", "modality", "rescale"),
    [
        pytest.param("out_full", True, True, id="full"),
        pytest.param("out_nomod", False, True, id="no-modality"),
        pytest.param("out_norescale", True, False, id="no-rescale"),
    ],
)
def test_it_is_the_reference_guider(
    golden_dir: Path, predictions: dict[str, Tensor], out: str, modality: bool, rescale: bool
) -> None:
    manifest = json.loads((golden_dir / "manifest.json").read_text())
    scales = manifest["files"]["07_sampler.safetensors"]["extra"]["guidance"]
    guidance = Guidance(
        cfg=scales["video_cfg"],
        stg=scales["video_stg"],
        modality=float(scales["video_modality"].split()[0]) if modality else 1.0,
        rescale=scales["rescale"] if rescale else 0.0,
    )
    guided = guidance.combine(
        predictions["cond"],
        uncond=predictions["uncond"],
        perturbed=predictions["ptb"],
        isolated=predictions["mod"] if modality else None,
    )
    torch.testing.assert_close(guided, predictions[out], atol=2e-4, rtol=0)


def test_no_guidance_is_the_conditional_prediction_itself() -> None:
    cond = torch.randn(1, 4, 128, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Guidance(rescale=0.7).combine(cond), cond)


def test_each_sample_of_a_batch_is_rescaled_by_its_own_deviation() -> None:
    generator = torch.Generator().manual_seed(0)
    cond, uncond = (torch.randn(2, 4, 128, generator=generator) for _ in range(2))
    cond[1] *= 5.0
    guidance = Guidance(cfg=3.0, rescale=0.7)
    together = guidance.combine(cond, uncond=uncond)
    for index in range(2):
        alone = guidance.combine(cond[index : index + 1], uncond=uncond[index : index + 1])
        torch.testing.assert_close(together[index : index + 1], alone)


def test_a_missing_prediction_is_not_taken_for_zero() -> None:
    with pytest.raises(ValueError, match="stg guidance is on"):
        Guidance(stg=1.0).combine(torch.zeros(1, 1, 1))


SPEC = ValidationSpec(num_frames=9, frame_rate=24, width=64, height=64)


@pytest.mark.parametrize(
    ("stg_scale", "with_audio", "passes"),
    [
        pytest.param(1.0, True, Passes(True, True, True), id="joint"),
        pytest.param(1.0, False, Passes(True, True, False), id="video-only"),
        pytest.param(0.0, True, Passes(True, False, True), id="joint-without-stg"),
        pytest.param(0.0, False, Passes(True, False, False), id="video-only-without-stg"),
    ],
)
def test_passes_of_a_preview(stg_scale: float, with_audio: bool, passes: Passes) -> None:
    spec = SPEC.model_copy(update={"stg_scale": stg_scale})
    scales = [part for part in preview_guidance(spec, with_audio=with_audio) if part]
    assert Passes.of(*scales) == passes
    assert all(guidance.stg == stg_scale for guidance in scales)


def test_scales_of_a_preview() -> None:
    video, audio = preview_guidance(SPEC, with_audio=True)
    assert video == Guidance(cfg=3.0, stg=1.0, modality=3.0, rescale=0.7)
    assert audio == Guidance(cfg=7.0, stg=1.0, modality=3.0, rescale=0.7)
    video, audio = preview_guidance(SPEC, with_audio=False)
    assert video.modality == 1.0
    assert audio is None
