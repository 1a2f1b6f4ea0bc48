"""What stays loaded from one job to the next: the transformer, and the text encoder where it fits.

A generation takes seconds to minutes and comes often, so it should not wait for 38 GB to be read
again; a training loads what it needs and lets go of the rest.
"""

import gc
import os
from typing import Final

import torch
from diffusers import LTX2VideoTransformer3DModel

from trainer.adapter import remove_adapter
from trainer.execution import checkpoint_blocks, compile_blocks
from trainer.job import GenerateJob, Job, JobDir
from trainer.model import BaseModel
from trainer.plan import Plan
from trainer.policy import sampling_plan
from trainer.quantised import quantised_to
from trainer.text import TextEncoder

_ENCODER_HEADROOM_BYTES: Final = 8 * 10**9
"""Activations of an encoder at work, beside its weights."""

_SAMPLING_BYTES: Final = 40 * 10**9
"""What sampling and decoding of a long 1080p clip may take beside all weights: the text encoder
stays only where so much is free."""

_SMALL_BYTES: Final = 10**9
"""A text encoder of fewer bytes (the tiny model's) is kept on the CPU too."""


class ModelCache:
    """Keeps the last job's frozen transformer for the next one of the same kind, and the text
    encoder of generations."""

    def __init__(self) -> None:
        self._key: tuple[str, str, str] | None = None
        self._with_audio = False
        self._transformer: LTX2VideoTransformer3DModel | None = None
        self._text_encoder: tuple[tuple[str, str, str], TextEncoder] | None = None

    def transformer(
        self,
        base: BaseModel,
        *,
        with_audio: bool,
        exact: bool = True,
        plan: Plan | None = None,
    ) -> LTX2VideoTransformer3DModel:
        """Loaded at most once in a row; never carries an adapter when it is handed out. Its base is
        as precise as ``plan`` says; None: as it can be for sampling on this device.

        Without ``exact``, a transformer with audio also serves a job without: its video branch
        alone is run, to the same numbers.
        """
        plan = plan or sampling_plan(base.device, base.num_blocks, with_audio=with_audio)
        if not self.has(base, with_audio=with_audio, exact=exact, plan=plan):
            self._drop_transformer()
            self._transformer = base.transformer(
                with_audio=with_audio, precision=plan.precision, num_offloaded=plan.num_offloaded
            )
            self._key, self._with_audio = _key(base), with_audio
        assert self._transformer is not None
        restore_base(self._transformer)
        return self._transformer

    def has(self, base: BaseModel, *, with_audio: bool, plan: Plan, exact: bool = True) -> bool:
        """Whether `transformer` would load nothing."""
        fits = self._with_audio == with_audio or (self._with_audio and not exact)
        return (
            self._transformer is not None
            and self._key == _key(base)
            and fits
            and quantised_to(self._transformer) == plan.precision
        )

    def text_encoder(self, base: BaseModel) -> TextEncoder:
        """Loaded when it is first asked for; `spare_text_encoder` says how long it stays."""
        key = _key(base)
        if self._text_encoder is None or self._text_encoder[0] != key:
            self._text_encoder = None
            self.make_room(base)
            self._text_encoder = key, base.text_encoder()
        return self._text_encoder[1]

    def spare_text_encoder(self, base: BaseModel) -> None:
        """After encoding: let go of the text encoder unless sampling will have room beside it."""
        if self._text_encoder is None:
            return
        if base.device.type != "cuda":
            keep = base.weight_bytes("text_encoder", "connectors") < _SMALL_BYTES
        else:
            needed = _SAMPLING_BYTES
            if self._transformer is None:
                needed += base.weight_bytes("transformer")
            keep = torch.cuda.mem_get_info(base.device)[0] > needed
        if not keep:
            self.drop_text_encoder()

    def drop_text_encoder(self) -> None:
        self._text_encoder = None
        collect()

    def make_room(self, base: BaseModel) -> None:
        """Before encoding: let go of the transformer where the encoders would not fit beside it."""
        if self._transformer is None or base.device.type != "cuda":
            return
        needed = base.weight_bytes("text_encoder", "connectors") + _ENCODER_HEADROOM_BYTES
        if torch.cuda.mem_get_info(base.device)[0] < needed:
            self._drop_transformer()

    def clear(self) -> None:
        self._text_encoder = None
        self._drop_transformer()

    def _drop_transformer(self) -> None:
        self._transformer = self._key = None
        collect()


def restore_base(transformer: LTX2VideoTransformer3DModel) -> None:
    """As loaded: no adapter, nothing recomputed or compiled."""
    remove_adapter(transformer)
    checkpoint_blocks(transformer, 0)
    compile_blocks(transformer, None)


def open_model(job: Job | GenerateJob, directory: JobDir) -> BaseModel:
    """The base model that ``job`` names, on its device."""
    return BaseModel.open(
        job.model,
        directory.root / job.cache,
        device_of(job.device),
        text_encoder=job.text_encoder,
    )


def device_of(name: str) -> torch.device:
    """``auto`` is CUDA where there is one; of several, the one `torchrun` gave this process."""
    if name == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device(name)


def _key(base: BaseModel) -> tuple[str, str, str]:
    return base.id, base.fingerprint, str(base.device)


def collect() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
