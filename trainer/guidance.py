"""Guidance of a sample: how several predictions of one step become one (`ltx-training.md` 2.5).

All predictions are of x0 (the clean tokens), not of the velocity, [B, N, 128].
"""

from dataclasses import dataclass
from typing import Final

from torch import Tensor

from trainer.spec import ValidationSpec

STG_BLOCK: Final = 28
"""The block whose self-attention LTX-2.3 skips for STG (1.7)..."""
STG_BLOCK_OF: Final = 48
"""... of so many."""


def stg_block(num_layers: int) -> int:
    """The block to perturb for STG: 28 of 48, and the same depth in a smaller model.

    >>> [stg_block(n) for n in (48, 4, 2, 1)]
    [28, 2, 1, 0]
    """
    if num_layers < 1:
        raise ValueError(f"a transformer has at least 1 block, not {num_layers}")
    return num_layers * STG_BLOCK // STG_BLOCK_OF


@dataclass(frozen=True)
class Guidance:
    """Guidance scales of one modality. The defaults are no guidance at all."""

    cfg: float = 1.0
    """Away from the negative prompt; 1 is off."""
    stg: float = 0.0
    """Away from the prediction with one self-attention skipped; 0 is off."""
    modality: float = 1.0
    """Away from the prediction that can't see the other modality; 1 is off."""
    rescale: float = 0.0
    """How much of the conditional prediction's standard deviation is restored, in [0, 1]."""

    def combine(
        self,
        cond: Tensor,
        *,
        uncond: Tensor | None = None,
        perturbed: Tensor | None = None,
        isolated: Tensor | None = None,
    ) -> Tensor:
        """The guided x0. A prediction may be missing where its scale is off; it is then not read.

        The standard deviation is taken over all tokens and channels of each sample. Raises
        `ValueError` where a scale is on and its prediction is missing.
        """
        terms = (
            ("cfg", self.cfg - 1.0, uncond),
            ("stg", self.stg, perturbed),
            ("modality", self.modality - 1.0, isolated),
        )
        active = [(name, weight, other) for name, weight, other in terms if weight != 0.0]
        guided = cond
        for name, weight, other in active:
            if other is None:
                raise ValueError(f"{name} guidance is on, but its prediction was not made")
            guided = guided + weight * (cond - other)
        if not active or self.rescale == 0.0:
            return guided
        token_axes = tuple(range(1, cond.ndim))
        ratio = cond.std(token_axes, keepdim=True) / guided.std(token_axes, keepdim=True)
        return guided * (self.rescale * ratio + (1.0 - self.rescale))


NO_GUIDANCE: Final = Guidance()


@dataclass(frozen=True)
class Passes:
    """Which forward passes beside the conditional one a step needs."""

    uncond: bool
    perturbed: bool
    isolated: bool

    @classmethod
    def of(cls, *guidances: Guidance) -> "Passes":
        """A pass serves both modalities, so it is made where either of them wants it."""
        return cls(
            uncond=any(guidance.cfg != 1.0 for guidance in guidances),
            perturbed=any(guidance.stg != 0.0 for guidance in guidances),
            isolated=any(guidance.modality != 1.0 for guidance in guidances),
        )


def num_passes(spec: ValidationSpec, *, with_audio: bool) -> int:
    """Forward passes of one sampling step of a preview: 3 on video alone, 4 with sound."""
    video, audio = preview_guidance(spec, with_audio=with_audio)
    passes = Passes.of(video, *([] if audio is None else [audio]))
    return 1 + passes.uncond + passes.perturbed + passes.isolated


def plain_guidance(scale: float, *, with_audio: bool) -> tuple[Guidance, Guidance | None]:
    """Classifier-free guidance alone, the same for video and audio: 1 is none."""
    guidance = Guidance(cfg=scale)
    return guidance, guidance if with_audio else None


def preview_guidance(spec: ValidationSpec, *, with_audio: bool) -> tuple[Guidance, Guidance | None]:
    """The scales of a preview, for video and for audio (None without an audio branch).

    ``stg_scale`` serves both. Without audio there is no other modality to be guided by.
    """
    video = Guidance(
        cfg=spec.video_guidance_scale,
        stg=spec.stg_scale,
        modality=spec.modality_scale if with_audio else 1.0,
        rescale=spec.rescale,
    )
    if not with_audio:
        return video, None
    audio = Guidance(
        cfg=spec.audio_guidance_scale,
        stg=spec.stg_scale,
        modality=spec.modality_scale,
        rescale=spec.rescale,
    )
    return video, audio
