"""What the official single file calls its tensors, and what diffusers calls them
(`ltx-training.md` 2.6).

Both ways: names are cut at their dots, and each part has one name there and one here.
"""

from typing import Final

COMPONENTS: Final = ("transformer", "connectors", "vae", "audio_vae", "vocoder")

_MODEL: Final = "model.diffusion_model."
_PARTS: Final[dict[str, dict[str, str]]] = {
    "transformer": {
        "patchify_proj": "proj_in",
        "audio_patchify_proj": "audio_proj_in",
        "adaln_single": "time_embed",
        "audio_adaln_single": "audio_time_embed",
        "prompt_adaln_single": "prompt_adaln",
        "audio_prompt_adaln_single": "audio_prompt_adaln",
        "av_ca_video_scale_shift_adaln_single": "av_cross_attn_video_scale_shift",
        "av_ca_audio_scale_shift_adaln_single": "av_cross_attn_audio_scale_shift",
        "av_ca_a2v_gate_adaln_single": "av_cross_attn_video_a2v_gate",
        "av_ca_v2a_gate_adaln_single": "av_cross_attn_audio_v2a_gate",
        "scale_shift_table_a2v_ca_video": "video_a2v_cross_attn_scale_shift_table",
        "scale_shift_table_a2v_ca_audio": "audio_a2v_cross_attn_scale_shift_table",
        "q_norm": "norm_q",
        "k_norm": "norm_k",
    },
    "connectors": {
        "video_embeddings_connector": "video_connector",
        "audio_embeddings_connector": "audio_connector",
        "transformer_1d_blocks": "transformer_blocks",
        "q_norm": "norm_q",
        "k_norm": "norm_k",
    },
    "vae": {"res_blocks": "resnets"},
    "audio_vae": {},
    "vocoder": {
        "resblocks": "resnets",
        "conv_pre": "conv_in",
        "conv_post": "conv_out",
        "act_post": "act_out",
        "ups": "upsamplers",
    },
}
_WHOLE: Final[dict[str, dict[str, str]]] = {
    "connectors": {
        "text_embedding_projection.video_aggregate_embed": "video_text_proj_in",
        "text_embedding_projection.audio_aggregate_embed": "audio_text_proj_in",
    },
    "vae": {
        "per_channel_statistics.mean-of-means": "latents_mean",
        "per_channel_statistics.std-of-means": "latents_std",
        # In the file, what scales between two blocks is a block itself.
        **{f"encoder.down_blocks.{2 * i}": f"encoder.down_blocks.{i}" for i in range(4)},
        **{
            f"encoder.down_blocks.{2 * i + 1}": f"encoder.down_blocks.{i}.downsamplers.0"
            for i in range(4)
        },
        "encoder.down_blocks.8": "encoder.mid_block",
        "decoder.up_blocks.0": "decoder.mid_block",
        **{
            f"decoder.up_blocks.{2 * i + 1}": f"decoder.up_blocks.{i}.upsamplers.0"
            for i in range(4)
        },
        **{f"decoder.up_blocks.{2 * i + 2}": f"decoder.up_blocks.{i}" for i in range(4)},
    },
    "audio_vae": {
        "per_channel_statistics.mean-of-means": "latents_mean",
        "per_channel_statistics.std-of-means": "latents_std",
    },
}
"""Beginnings of names; the longest that fits counts."""
_LOWPASS: Final = ("downsample.lowpass.filter", "downsample.filter")
_UNUSED: Final = "per_channel_statistics."
"""Of both VAEs; only two of these are needed."""


def to_diffusers(name: str) -> tuple[str, str] | None:
    """The component and the name there. None: nothing that is needed.

    >>> to_diffusers("model.diffusion_model.transformer_blocks.3.attn1.q_norm.weight")
    ('transformer', 'transformer_blocks.3.attn1.norm_q.weight')
    >>> to_diffusers("vae.encoder.down_blocks.3.conv.conv.weight")
    ('vae', 'encoder.down_blocks.1.downsamplers.0.conv.conv.weight')
    """
    component, rest = _split(name)
    if component is None:
        return None
    rest = _begin(rest, _WHOLE.get(component, {}))
    if component in ("vae", "audio_vae") and rest.startswith(_UNUSED):
        return None
    if component == "vocoder":
        rest = rest.replace(*_LOWPASS)
    parts = _PARTS[component]
    return component, ".".join(parts.get(part, part) for part in rest.split("."))


def to_official(component: str, name: str) -> str:
    """The other way.

    >>> to_official("vocoder", "bwe_generator.upsamplers.0.weight")
    'vocoder.bwe_generator.ups.0.weight'
    """
    name = _begin(name, {ours: theirs for theirs, ours in _WHOLE.get(component, {}).items()})
    parts = {ours: theirs for theirs, ours in _PARTS[component].items()}
    name = ".".join(parts.get(part, part) for part in name.split("."))
    if component == "vocoder":
        name = name.replace(_LOWPASS[1], _LOWPASS[0])
    if component in ("vae", "audio_vae", "vocoder"):
        return f"{component}.{name}"
    return name if name.startswith("text_embedding_projection.") else _MODEL + name


def _split(name: str) -> tuple[str | None, str]:
    if name.startswith("text_embedding_projection."):
        return "connectors", name
    if name.startswith(_MODEL):
        rest = name.removeprefix(_MODEL)
        connectors = ("video_embeddings_connector.", "audio_embeddings_connector.")
        return ("connectors" if rest.startswith(connectors) else "transformer"), rest
    component, _, rest = name.partition(".")
    return (component if component in ("vae", "audio_vae", "vocoder") else None), rest


def _begin(name: str, beginnings: dict[str, str]) -> str:
    for old in sorted(beginnings, key=len, reverse=True):
        if name == old or name.startswith(old + "."):
            return beginnings[old] + name[len(old) :]
    return name
