"""Validation previews: what the adapter makes of the validation prompts, while it is trained.

Single-stage samples with the adapter active but unmerged (`ltx-training.md` 2.5, 5.5). Prompts are
encoded before the transformer is loaded, so contexts come in here. What of a clip is given (suffix,
rectangle, mask) comes in as tokens too: a preview then shows the task that the LoRA is trained for.
A preview is written as it is decoded, what was given included: no pixel of the clip is laid over
it, so it shows what the model and its VAE make, seams and all.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Final

from diffusers import LTX2VideoTransformer3DModel

from preprocessing.events import EventLog
from trainer.decode import Decoder
from trainer.guidance import preview_guidance
from trainer.latents import VideoGeometry
from trainer.mp4 import write_clip
from trainer.reel import Preview
from trainer.sampler import Given, build_request, is_finite, sample
from trainer.spec import ValidationSpec
from trainer.text import PromptContext

PREVIEW_CRF: Final = 17
"""x264's constant quality: visually lossless, for judging details."""

_NAME: Final = re.compile(r"step-(?P<step>\d{6,})_prompt-(?P<index>\d+)\.mp4")


@dataclass(frozen=True)
class PreviewPrompt:
    """One validation entry, ready to be sampled. The rest is None for plain text to video."""

    prompt: str
    context: PromptContext
    geometry: VideoGeometry | None = None
    """None: as the validation spec says. A given clip that covers the preview decides it."""
    given_video: Given | None = None
    given_audio: Given | None = None


def preview_steps(num_steps: int, at: Iterable[float]) -> tuple[int, ...]:
    """The steps after which previews are made: these parts of all steps, and always the last one.

    >>> preview_steps(100, (0.25, 0.5, 0.75)), preview_steps(2, (0.25, 0.5))
    ((25, 50, 75, 100), (1, 2))
    """
    steps = {min(num_steps, max(1, round(part * num_steps))) for part in at}
    return tuple(sorted(steps | {num_steps}))


def validation_geometry(spec: ValidationSpec) -> VideoGeometry:
    return VideoGeometry(spec.num_frames, spec.height, spec.width, Fraction(spec.frame_rate))


def make_previews(
    transformer: LTX2VideoTransformer3DModel,
    decoder: Decoder,
    prompts: Sequence[PreviewPrompt],
    negative: PromptContext,
    spec: ValidationSpec,
    *,
    step: int,
    folder: Path,
    events: EventLog,
    with_audio: bool,
    should_stop: Callable[[], bool] | None = None,
) -> list[Preview]:
    """Render every prompt after ``step`` into ``folder``; one `preview` event per file.

    All prompts and steps share the spec's seed, so what differs between two previews of a prompt is
    the adapter. The global random state is left alone. Fewer previews come back when
    ``should_stop`` said so, or when a sample is NaN or Inf: that is logged, and ends no training.
    """
    total = len(prompts) * spec.num_inference_steps
    previews = []
    for index, prompt in enumerate(prompts):
        geometry = prompt.geometry or validation_geometry(spec)
        request = build_request(
            transformer,
            geometry,
            prompt.context,
            negative,
            preview_guidance(spec, with_audio=with_audio),
            num_steps=spec.num_inference_steps,
            seed=spec.seed,
            given_video=prompt.given_video,
            given_audio=prompt.given_audio,
        )
        before = index * spec.num_inference_steps

        def report(done: int, _: int, before: int = before) -> None:
            events.emit("progress", name="preview", done=before + done, total=total)

        latents = sample(transformer, request, on_step=report, should_stop=should_stop)
        if latents is None:
            break
        if not is_finite(latents):
            events.log(
                f"Preview of prompt {index} after step {step} left out: NaN or Inf while sampling",
                level="WARN",
            )
            continue
        clip = decoder.decode(latents, geometry)
        path = folder / f"step-{step:06d}_prompt-{index}.mp4"
        write_clip(
            path,
            clip.frames,
            clip.frame_rate,
            clip.audio,
            crf=PREVIEW_CRF,
            metadata={"title": f"Step {step}, prompt {index}"},
        )
        previews.append(Preview(step, index, prompt.prompt, path))
        events.emit("preview", step=step, index=index, prompt=prompt.prompt, path=str(path))
    return previews


def find_previews(folder: Path, prompts: Sequence[str]) -> list[Preview]:
    """What `make_previews` has left in ``folder`` for these prompts, before a resume included."""
    found = []
    for path in sorted(folder.iterdir()):
        match = _NAME.fullmatch(path.name)
        if match and int(match["index"]) < len(prompts):
            index = int(match["index"])
            found.append(Preview(int(match["step"]), index, prompts[index], path))
    return found
