"""Every kind of condition as a whole job, on real clips: what is given stays given to the last bit.

The samples are taken where `sample` hands them out; what they are compared with is encoded here.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from diffusers import LTX2VideoTransformer3DModel
from safetensors import safe_open
from torch import Tensor

import trainer.preview
from preprocessing.events import EventLog
from preprocessing.latent_mask import latent_keep_mask
from tests.trainer.jobs import (
    Shot,
    make_job,
    make_spec,
    make_validation_spec,
    save_dataset,
    save_validation,
    shoot,
    stages,
)
from trainer.cache import EncodedCache
from trainer.encode import encode_all, encode_audio, encode_video
from trainer.errors import ConditionError
from trainer.examples import Examples, clip_masks
from trainer.footage import Dataset
from trainer.given import open_sources
from trainer.job import Control, JobDir
from trainer.model import BaseModel
from trainer.run import ModelCache, run_job
from trainer.sampler import SampledLatents
from trainer.spec import (
    Condition,
    KeepRectangle,
    Prefix,
    SampleMask,
    Suffix,
    TrainingSpec,
    ValidationSpec,
)

WIDTH, HEIGHT, NUM_FRAMES = 96, 64, 17
GRID = (3, 2, 3)
CELLS = GRID[1] * GRID[2]
"""Tokens of one latent frame."""
SHORT = 9
"""Pixel frames of the shorter of the two validation clips; two latent frames."""
PROMPTS = ("a rabbit in the grass", "a branch above water")


def moving_mask(num_frames: int, phase: int) -> np.ndarray:
    """Keep mask [f, h, w] of a white square on its way over the clip."""
    pixels = np.full((num_frames, HEIGHT, WIDTH), 255, np.uint8)
    for frame in range(num_frames):
        left = (phase + 4 * frame) % 64
        pixels[frame, 32:, left : left + 32] = 0
    return latent_keep_mask(pixels)


RECTANGLE = KeepRectangle(left=33, top=0, right=96, bottom=64, frame_width=96, frame_height=64)


@dataclass(frozen=True)
class Case:
    """A training, and which tokens of its two previews come from where in their clips."""

    condition: Condition
    with_audio: bool
    num_frames: tuple[int, int]
    """Of the previews."""
    video: tuple[np.ndarray, np.ndarray]
    """Kept tokens of each preview, [f, h, w] bool."""
    at_end: bool = False
    """The preview ends with the clip's end; else it begins with its beginning."""
    audio: tuple[int, int] = (0, 0)
    """How many audio latents are kept, of how many."""


def frames_kept(*kept: bool) -> np.ndarray:
    return np.broadcast_to(np.array(kept)[:, None, None], (len(kept), *GRID[1:]))


def rectangle_kept(num_latent_frames: int) -> np.ndarray:
    keep = np.zeros((num_latent_frames, *GRID[1:]), bool)
    keep[:, :, 1:] = True
    return keep


def window_case(condition: Condition, kept: tuple[bool, ...], *, with_audio: bool) -> Case:
    at_end = isinstance(condition, Suffix)
    num_audio = 8 if at_end else 1  # 8 and 1 frames at 25 per second
    return Case(
        condition,
        with_audio,
        (NUM_FRAMES, NUM_FRAMES),
        (frames_kept(*kept), frames_kept(*kept)),
        at_end=at_end,
        audio=(num_audio, 17) if with_audio else (0, 0),
    )


CASES = {
    "inpaint": Case(
        SampleMask(),
        False,
        (NUM_FRAMES, SHORT),
        (moving_mask(NUM_FRAMES, 0), moving_mask(SHORT, 9)),
    ),
    "outpaint": Case(RECTANGLE, False, (NUM_FRAMES, SHORT), (rectangle_kept(3), rectangle_kept(2))),
    "suffix": window_case(Suffix(num_latent_frames=1), (False, False, True), with_audio=False),
    "suffix with sound": window_case(
        Suffix(num_latent_frames=1), (False, False, True), with_audio=True
    ),
    "prefix": window_case(Prefix(num_latent_frames=1), (True, False, False), with_audio=False),
    "prefix with sound": window_case(
        Prefix(num_latent_frames=1), (True, False, False), with_audio=True
    ),
}


@pytest.fixture(scope="module")
def shots(bunny: Path) -> list[Shot]:
    """Two to train on, a long one and a short one to make previews from; 25 fps, with sound."""
    return [
        shoot(bunny, start=start, num_frames=length, with_audio=True)
        for start, length in ((0, NUM_FRAMES), (20, NUM_FRAMES), (40, NUM_FRAMES), (60, SHORT))
    ]


@pytest.fixture(scope="module")
def models() -> ModelCache:
    return ModelCache()


@dataclass
class Samples:
    """What `sample` gave, in order, and by which model."""

    latents: list[SampledLatents] = field(default_factory=list)
    transformer: LTX2VideoTransformer3DModel | None = None


@pytest.fixture
def samples(monkeypatch: pytest.MonkeyPatch) -> Samples:
    """Looks at the results of the real sampler."""
    seen, real = Samples(), trainer.preview.sample

    def look(transformer: LTX2VideoTransformer3DModel, *args: Any, **options: Any) -> Any:
        result = real(transformer, *args, **options)
        seen.latents.append(result)
        seen.transformer = transformer
        return result

    monkeypatch.setattr(trainer.preview, "sample", look)
    return seen


def preview_spec(num_frames: int = NUM_FRAMES) -> ValidationSpec:
    return make_validation_spec(
        PROMPTS, num_frames=num_frames, frame_rate=25, width=WIDTH, height=HEIGHT, at=(1.0,)
    )


def spec_of(condition: Condition, **changes: Any) -> TrainingSpec:
    settings = {"num_steps": 2, "conditions": (condition,), "validation": preview_spec()}
    return make_spec(**(settings | changes))


def set_up(root: Path, shots: list[Shot], case: Case, cache: Path, **changes: Any) -> JobDir:
    """A job on the first two shots, with previews from the other two."""
    if not case.with_audio:
        shots = [replace(shot, sound=None) for shot in shots]
    masked = isinstance(case.condition, SampleMask)
    training_masks = [moving_mask(NUM_FRAMES, phase) for phase in (16, 40)]
    return make_job(
        root / "job",
        save_dataset(root / "dataset", shots[:2], training_masks if masked else None),
        cache,
        spec=spec_of(case.condition, **changes),
        validation_clips=save_validation(
            root / "validation", shots[2:], case.video if masked else None
        ),
    )


def pictures(path: Path) -> Iterator[np.ndarray]:
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")


@pytest.mark.parametrize("name", CASES)
def test_a_conditioned_training_from_dataset_to_reel(
    tmp_path: Path,
    shots: list[Shot],
    cache: Path,
    tiny: BaseModel,
    models: ModelCache,
    samples: Samples,
    name: str,
) -> None:
    case = CASES[name]
    directory = set_up(tmp_path, shots, case, cache)
    result = run_job(directory.root, models)
    assert result.status == "completed", result.error

    previews = sorted(directory.previews.iterdir())
    assert [sum(1 for _ in pictures(path)) for path in previews] == list(case.num_frames)
    assert directory.reel.stat().st_size > 0
    assert {"check", "reel"} <= set(stages(directory))

    with safe_open(directory.lora, framework="pt") as file:
        attentions = {key.split(".")[3] for key in file.keys()}  # noqa: SIM118
    parameters = [key for key, _ in samples.transformer.named_parameters()]
    if case.with_audio:
        assert "audio_attn1" in attentions
    else:
        assert attentions == {"attn1", "attn2"}
        assert not [key for key in parameters if "audio" in key or "av_cross" in key]

    (condition,) = json.loads(directory.config.read_text())["conditions"]
    assert condition["kind"] == case.condition.kind

    video_vae, audio_vae = tiny.video_vae(), tiny.audio_vae()
    for shot, latents, keep in zip(shots[2:], samples.latents, case.video, strict=True):
        clip = encode_video(shot.frames, video_vae)
        check_given(latents.video, clip, torch.from_numpy(keep.copy()).flatten(), case.at_end)
        assert (latents.audio is not None) == case.with_audio
        if latents.audio is not None:
            sound = encode_audio(
                torch.from_numpy(shot.sound),
                48000,
                audio_vae,
                num_frames=len(shot.frames),
                frame_rate=shot.frame_rate,
            )
            num_kept, length = case.audio
            keep_sound = torch.zeros(length, dtype=torch.bool)
            keep_sound[-num_kept if case.at_end else 0 :][:num_kept] = True
            check_given(latents.audio, sound, keep_sound, case.at_end)


def check_given(sampled: Tensor, clip: Tensor, keep: Tensor, at_end: bool) -> None:
    """Kept tokens of ``sampled`` [1, N, C] are the clip's, bit by bit; the others are not."""
    assert sampled.shape[1] == len(keep)
    num_shared = min(len(keep), clip.shape[1])
    shared = slice(-num_shared, None) if at_end else slice(0, num_shared)
    sampled, clip, keep_shared = sampled[0, shared], clip[0, shared], keep[shared]
    assert keep_shared.sum() == keep.sum() > 0
    assert torch.equal(sampled[keep_shared], clip[keep_shared])
    assert not (sampled[~keep_shared] == clip[~keep_shared]).any(dim=-1).any()


def test_a_released_training_goes_on_to_the_same_weights(
    tmp_path: Path, shots: list[Shot], cache: Path, tiny: BaseModel, models: ModelCache
) -> None:
    """Released in its fourth step, with a mask of its own for each clip."""
    case = CASES["inpaint"]
    no_previews = make_validation_spec()
    spec = {"num_steps": 6, "validation": no_previews}
    whole, first, second = (
        set_up(tmp_path / name, shots, case, cache, **spec) for name in ("whole", "first", "second")
    )
    assert run_job(whole.root, models).status == "completed"

    calls = iter(range(100))

    def release_in_the_fourth_step(*_: object) -> None:
        if next(calls) == 3:
            first.tell(Control.RELEASE)

    transformer = models.transformer(tiny, with_audio=False)
    handle = transformer.proj_in.register_forward_pre_hook(release_in_the_fourth_step)
    result = run_job(first.root, models)
    handle.remove()
    assert (result.status, result.step) == ("released", 4)
    checkpoint = first.checkpoints / "step-000004"
    second.create(second.load().model_copy(update={"resume_from": checkpoint}))
    assert run_job(second.root, models).status == "completed"
    assert second.lora.read_bytes() == whole.lora.read_bytes()
    assert second.metrics.read_bytes() == whole.metrics.read_bytes()


def test_each_sample_brings_its_own_mask(
    tmp_path: Path, shots: list[Shot], cache: Path, tiny: BaseModel, models: ModelCache
) -> None:
    masks = [moving_mask(NUM_FRAMES, phase) for phase in (0, 32)]
    assert not np.array_equal(*masks)
    silent = [replace(shot, sound=None) for shot in shots[:2]]
    folder = save_dataset(tmp_path / "dataset", silent, masks)
    job = make_job(tmp_path / "job", folder, cache, spec=make_spec(num_steps=1))
    assert run_job(job.root, models).status == "completed"  # fills the cache
    dataset = Dataset(folder)
    spec = make_spec(conditions=(SampleMask(),))
    examples = Examples(dataset, EncodedCache(cache, tiny), spec, tiny.device)
    for index in (0, 1, 0):
        expected = torch.from_numpy(masks[index]).flatten()[None]
        assert torch.equal(examples[index].video.keep, expected)

    other = save_dataset(tmp_path / "other", silent, masks[::-1])
    assert Dataset(other).hash != dataset.hash
    assert [clip.hash for clip in Dataset(other).footage] == [clip.hash for clip in dataset.footage]


def test_a_mask_that_leaves_nothing_is_refused_by_name(tmp_path: Path, shots: list[Shot]) -> None:
    masks = [moving_mask(NUM_FRAMES, 0), np.ones(GRID, bool)]
    dataset = Dataset(save_dataset(tmp_path / "dataset", shots[:2], masks))
    clip_masks(dataset.footage[0], (SampleMask(),))
    with pytest.raises(ConditionError, match=r"^1\.mp4: .* nothing is left to generate"):
        clip_masks(dataset.footage[1], (SampleMask(),))


REFUSED = {
    "no folder": (Suffix(num_latent_frames=1), "none were prepared"),
    "an empty folder": (RECTANGLE, "none were prepared"),
    "a clip too few": (Suffix(num_latent_frames=1), "2 validation prompts and 1 clips"),
    "another size": (RECTANGLE, "clip 1 is 64x96, but previews are 96x64"),
    "shorter than the suffix": (Suffix(num_latent_frames=2), "clip 2 has 9 frames, but 16 of it"),
    "shorter than the prefix": (Prefix(num_latent_frames=3), "clip 2 has 9 frames, but 17 of it"),
    "no sound": (Suffix(num_latent_frames=1), "clip 2 has no sound"),
    "no mask": (SampleMask(), "clip 1: This training needs a mask"),
    "nothing to generate": (SampleMask(), "clip 2: .* nothing is left to generate"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_bad_preview_clips_are_refused_by_number(
    tmp_path: Path, shots: list[Shot], fault: str
) -> None:
    condition, message = REFUSED[fault]
    clips, masks, folder = shots[2:], None, tmp_path / "validation"
    match fault:
        case "no folder":
            folder = None
        case "an empty folder":
            folder = tmp_path
        case "a clip too few":
            clips = clips[:1]
        case "another size":
            clips = [replace(clip, frames=clip.frames.transpose(0, 2, 1, 3)) for clip in clips]
        case "no sound":
            clips = [clips[0], replace(clips[1], sound=None)]
        case "nothing to generate":
            masks = [moving_mask(NUM_FRAMES, 0), np.ones((2, *GRID[1:]), bool)]
    if folder == tmp_path / "validation":
        save_validation(folder, clips, masks)
    spec = spec_of(condition, validation=preview_spec(num_frames=25))
    with pytest.raises(ConditionError, match=message):
        open_sources(folder, spec, with_audio=True)
    without_prompts = spec.model_copy(update={"validation": make_validation_spec()})
    assert open_sources(folder, without_prompts, with_audio=True) == []
    assert open_sources(folder, make_spec(prompts=PROMPTS), with_audio=True) == []


def test_a_bad_clip_ends_the_job_before_anything_is_encoded(
    tmp_path: Path, shots: list[Shot], cache: Path, models: ModelCache
) -> None:
    directory = set_up(tmp_path, shots[:3], CASES["suffix"], cache)
    result = run_job(directory.root, models)
    assert (result.status, result.error_type) == ("failed", "invalid_condition")
    assert result.users_fault
    assert "one clip with each prompt" in result.error
    assert not {"encode_text", "encode_latents"} & set(stages(directory))


def test_preview_clips_are_encoded_once(tmp_path: Path, shots: list[Shot], tiny: BaseModel) -> None:
    """The second preview has the first one's clip, and another training finds it again."""
    save_validation(tmp_path / "validation", [shots[3], shots[3]])
    cache = EncodedCache(tmp_path / "cache", tiny)
    lengths = []
    for condition in (RECTANGLE, Suffix(num_latent_frames=1)):
        sources = open_sources(tmp_path / "validation", spec_of(condition), with_audio=True)
        with EventLog(tmp_path / "events.jsonl") as events:
            clips = [source.clip for source in sources]
            encode_all(clips, [], tiny, cache, events, between=lambda: None)
        lengths.append(len((tmp_path / "events.jsonl").read_text().splitlines()))
    assert len(list((tmp_path / "cache/latents").iterdir())) == 1
    assert lengths[0] == lengths[1] == 3  # begin, the one clip, end
