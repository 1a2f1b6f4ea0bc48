"""The names that trainers and programs give the tensors of a LoRA (no torch).

One linear layer of the model has a pair, A [rank, in] and B [out, rank], and perhaps an alpha: the
layer's output grows by ``scale * alpha / rank * B A x``. Without an alpha it is the rank.

    diffusion_model.<module>.lora_A.weight, .lora_B.weight      ltx-trainer, ours, ai-toolkit
    diffusion_model.<module>.lora_down.weight, .lora_up.weight  ComfyUI, with <module>.alpha
    transformer.<module>.lora_A.weight                          diffusers; alphas in the metadata
    base_model.model.<module>.lora_A.weight                     PEFT; also lora_A.<adapter>.weight
    lora_unet_<module with "_">.lora_down.weight                musubi-tuner and other kohya scripts
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from trainer.capacity import NUM_BLOCKS
from trainer.errors import LoraFileError
from trainer.safetensors_header import shown

Part = Literal["A", "B", "alpha"]

EXAMPLE_KEY: Final = "diffusion_model.transformer_blocks.0.attn1.to_q.lora_A.weight"

_PREFIX: Final = re.compile(
    r"(base_model\.model\.)?((model\.)?diffusion_model\.|transformer\.(?!transformer\.))?"
)
_KOHYA_PREFIX: Final = "lora_unet_"
_SUFFIXES: Final[tuple[tuple[re.Pattern[str], Part], ...]] = (
    (re.compile(r"\.lora_A(\.\w+)?\.weight$"), "A"),
    (re.compile(r"\.lora_B(\.\w+)?\.weight$"), "B"),
    (re.compile(r"\.lora[._]down\.weight$"), "A"),
    (re.compile(r"\.lora[._]up\.weight$"), "B"),
    (re.compile(r"\.alpha$"), "alpha"),
)
_OTHER_KINDS: Final = {
    "hada_w": "a LoHa",
    "lokr_w": "a LoKr",
    "dora_scale": "a DoRA",
    "lora_magnitude_vector": "a DoRA",
    "oft_": "an OFT",
    "lora_mid": "a LoCon of convolutions",
    ".diff": "a file of full weight differences",
}

_RENAMED: Final = (
    ("patchify_proj", "proj_in"),
    ("audio_patchify_proj", "audio_proj_in"),
    ("adaln_single", "time_embed"),
    ("audio_adaln_single", "audio_time_embed"),
    ("prompt_adaln_single", "prompt_adaln"),
    ("audio_prompt_adaln_single", "audio_prompt_adaln"),
    ("av_ca_video_scale_shift_adaln_single", "av_cross_attn_video_scale_shift"),
    ("av_ca_audio_scale_shift_adaln_single", "av_cross_attn_audio_scale_shift"),
    ("av_ca_a2v_gate_adaln_single", "av_cross_attn_video_a2v_gate"),
    ("av_ca_v2a_gate_adaln_single", "av_cross_attn_audio_v2a_gate"),
)
"""Top-level modules that the original checkpoint calls otherwise (`ltx-training.md` 2.6); the
blocks' linears have the same names."""

_ATTENTIONS: Final = (
    *("attn1", "attn2", "audio_attn1", "audio_attn2"),
    *("audio_to_video_attn", "video_to_audio_attn"),
)
_ATTENTION_LINEARS: Final = ("to_q", "to_k", "to_v", "to_out.0", "to_gate_logits")
_FEEDFORWARDS: Final = ("ff", "audio_ff")
_EMBEDDINGS: Final = (
    *("time_embed", "prompt_adaln", "audio_time_embed", "audio_prompt_adaln"),
    *("av_cross_attn_video_scale_shift", "av_cross_attn_audio_scale_shift"),
    *("av_cross_attn_video_a2v_gate", "av_cross_attn_audio_v2a_gate"),
)
_EMBEDDING_LINEARS: Final = (
    *("emb.timestep_embedder.linear_1", "emb.timestep_embedder.linear_2", "linear"),
)
_AUDIO_MARKS: Final = ("audio", "av_c")


@dataclass(frozen=True)
class LoraKey:
    """What a tensor is. ``module`` is the model's name for the layer, or kohya's spelling of it."""

    module: str
    part: Part


def parse_key(name: str) -> LoraKey:
    """Read a tensor's name. Raises `LoraFileError` for one of no known form."""
    for pattern, part in _SUFFIXES:
        if match := pattern.search(name):
            module = name[: match.start()]
            return LoraKey(module[_PREFIX.match(module).end() :], part)  # type: ignore[union-attr]
    for mark, kind in _OTHER_KINDS.items():
        if mark in name:
            raise LoraFileError(
                f"this is {kind} (it has the key {shown(name)}), not a LoRA of pairs of low-rank "
                "matrices; convert it to one"
            )
    raise LoraFileError(
        f"unexpected key {shown(name)}; a LoRA for LTX-2.3 has keys such as {EXAMPLE_KEY}"
    )


class ModuleNames:
    """Finds a model's layer by any of the names that LoRA files use for it."""

    def __init__(self, linears: Iterable[str]) -> None:
        self._names = {name: name for name in linears}
        for name in tuple(self._names):
            top, dot, rest = name.partition(".")
            for original, ours in _RENAMED:
                if top == ours:
                    self._names.setdefault(original + dot + rest, name)
        self._kohya = {name.replace(".", "_"): ours for name, ours in self._names.items()}

    def find(self, module: str) -> str | None:
        """The model's own name, or None where it has no such layer."""
        if module.startswith(_KOHYA_PREFIX):
            return self._kohya.get(module.removeprefix(_KOHYA_PREFIX))
        return self._names.get(module)


def ltx_linears() -> list[str]:
    """The names of all linear layers of LTX-2.3's transformer."""
    names = ["proj_in", "proj_out", "audio_proj_in", "audio_proj_out"]
    names += [f"{module}.{linear}" for module in _EMBEDDINGS for linear in _EMBEDDING_LINEARS]
    for block in range(NUM_BLOCKS):
        place = f"transformer_blocks.{block}"
        names += [f"{place}.{name}.{part}" for name in _ATTENTIONS for part in _ATTENTION_LINEARS]
        names += [f"{place}.{ff}.net.{part}" for ff in _FEEDFORWARDS for part in ("0.proj", "2")]
    return names


def is_audio(module: str) -> bool:
    """Whether a layer belongs to the audio branch or to the attention between the branches."""
    return any(mark in module for mark in _AUDIO_MARKS)
