"""What stays loaded from one job to the next: the transformer, and the text encoder where it fits.

A generation takes seconds to minutes and comes often, so it should not wait for 38 GB to be read
again; a training loads what it needs and lets go of the rest.
"""

import gc
from typing import Final

import torch
from diffusers import LTX2VideoTransformer3DModel

from trainer.adapter import remove_adapter
from trainer.model import BaseModel
from trainer.text import TextEncoder
from trainer.transformer import checkpoint_blocks

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
        self, base: BaseModel, *, with_audio: bool, exact: bool = True
    ) -> LTX2VideoTransformer3DModel:
        """Loaded at most once in a row; never carries an adapter when it is handed out.

        Without ``exact``, a transformer with audio also serves a job without: its video branch
        alone is run, to the same numbers.
        """
        key = _key(base)
        fits = self._with_audio == with_audio or (self._with_audio and not exact)
        if self._transformer is None or key != self._key or not fits:
            self._drop_transformer()
            self._transformer = base.transformer(with_audio=with_audio)
            self._key, self._with_audio = key, with_audio
        restore_base(self._transformer)
        return self._transformer

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
    """As loaded: no adapter, nothing recomputed."""
    remove_adapter(transformer)
    checkpoint_blocks(transformer, 0)


def device_of(name: str) -> torch.device:
    """``auto`` is CUDA where there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def _key(base: BaseModel) -> tuple[str, str, str]:
    return base.id, base.fingerprint, str(base.device)


def collect() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
