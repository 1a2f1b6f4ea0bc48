"""The official single file's configuration, as diffusers' components want it, and back.

What the file's metadata says is taken from there (`config`, a JSON text with a section for each
component); what only shapes tell is read off the shapes; the rest is LTX-2.3's own, and a wrong
guess is found out, because every name and shape is compared before anything is written.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

Shapes = Mapping[str, tuple[int, ...]]
Config = dict[str, Any]

_SAME: Final = (
    "num_layers",
    "num_attention_heads",
    "attention_head_dim",
    "in_channels",
    "out_channels",
    "cross_attention_dim",
    "caption_channels",
    "audio_num_attention_heads",
    "audio_attention_head_dim",
    "audio_in_channels",
    "audio_out_channels",
    "audio_cross_attention_dim",
    "norm_eps",
    "rope_type",
    "timestep_scale_multiplier",
)
_RENAMED: Final = {
    "positional_embedding_theta": "rope_theta",
    "av_ca_timestep_scale_multiplier": "cross_attn_timestep_scale_multiplier",
}
_GENERATOR: Final = {
    "upsample_initial_channel": "hidden_channels",
    "upsample_rates": "upsample_factors",
    "upsample_kernel_sizes": "upsample_kernel_sizes",
    "resblock_kernel_sizes": "resnet_kernel_sizes",
    "resblock_dilation_sizes": "resnet_dilations",
}
_BANDWIDTH: Final = {
    "n_fft": "filter_length",
    "hop_length": "hop_length",
    "win_size": "window_length",
    "num_mels": "num_mel_channels",
    "input_sampling_rate": "input_sampling_rate",
    "output_sampling_rate": "output_sampling_rate",
}
_UPSAMPLE_FACTOR: Final = (2, 2, 1, 2)
"""Of the 2.3 video decoder, in diffusers' order."""


def version_of(metadata: Mapping[str, str], section: Config, names: set[str]) -> str:
    """``2.3``, ``2.0`` or ``2.5``: by what the file says of itself, and else by what is in it."""
    stated = metadata.get("model_version", "")
    if stated.startswith(("2.0", "2.3", "2.5")):
        return stated[:3]
    if section.get("use_keyframes_abs_pos_embedding") or not section.get("ff_bias", True):
        return "2.5"
    if not section.get("use_prompt_adaln_single", True) or any(
        "keyframes_abs_pos_embedding" in name for name in names
    ):
        return "2.5"
    if any(".prompt_adaln_single." in name for name in names):
        return "2.3"
    return "2.0"


def transformer_config(section: Config, shapes: Shapes) -> Config:
    config: Config = {key: section[key] for key in _SAME if key in section}
    config |= {ours: section[key] for key, ours in _RENAMED.items() if key in section}
    if "positional_embedding_max_pos" in section:
        frames, height, width = section["positional_embedding_max_pos"]
        config |= {"pos_embed_max_pos": frames, "base_height": height, "base_width": width}
    if "audio_positional_embedding_max_pos" in section:
        config["audio_pos_embed_max_pos"] = section["audio_positional_embedding_max_pos"][0]
    config["audio_in_channels"] = shapes["audio_proj_in.weight"][1]
    config["rope_type"] = section.get("rope_type", "split")
    config["rope_double_precision"] = section.get("frequencies_precision", "float64") == "float64"
    gated = bool(section.get("apply_gated_attention", True))
    modulated = bool(section.get("cross_attention_adaln", True))
    return config | {
        "gated_attn": gated,
        "audio_gated_attn": gated,
        "cross_attn_mod": modulated,
        "audio_cross_attn_mod": modulated,
        "use_prompt_embeddings": False,
        "perturbed_attn": True,
    }


def transformer_section(config: Config, connectors: Config) -> Config:
    """What `transformer_config` and `connectors_config` read."""
    section: Config = {key: config[key] for key in _SAME}
    section |= {key: config[ours] for key, ours in _RENAMED.items()}
    return section | {
        "positional_embedding_max_pos": [
            config["pos_embed_max_pos"],
            config["base_height"],
            config["base_width"],
        ],
        "audio_positional_embedding_max_pos": [config["audio_pos_embed_max_pos"]],
        "frequencies_precision": "float64" if config["rope_double_precision"] else "float32",
        "apply_gated_attention": config["gated_attn"],
        "cross_attention_adaln": config["cross_attn_mod"],
        "caption_proj_before_connector": True,
        "connector_num_layers": connectors["video_connector_num_layers"],
        "connector_num_attention_heads": connectors["video_connector_num_attention_heads"],
        "connector_attention_head_dim": connectors["video_connector_attention_head_dim"],
        "audio_connector_num_attention_heads": connectors["audio_connector_num_attention_heads"],
        "audio_connector_attention_head_dim": connectors["audio_connector_attention_head_dim"],
        "connector_num_learnable_registers": connectors["video_connector_num_learnable_registers"],
        "connector_positional_embedding_max_pos": [connectors["connector_rope_base_seq_len"]],
        "connector_apply_gated_attention": connectors["video_gated_attn"],
    }


def connectors_config(section: Config, shapes: Shapes) -> Config:
    """From the transformer's section, where the file keeps it."""
    video, audio = shapes["video_text_proj_in.weight"], shapes["audio_text_proj_in.weight"]
    channels = section.get("caption_channels", 3840)
    heads = section.get("connector_num_attention_heads", 32)
    gated = bool(section.get("connector_apply_gated_attention", True))
    config: Config = {
        "caption_channels": channels,
        "text_proj_in_factor": video[1] // channels,
        "connector_rope_base_seq_len": section.get(
            "connector_positional_embedding_max_pos", [4096]
        )[0],
        "rope_theta": section.get("positional_embedding_theta", 10000.0),
        "rope_double_precision": section.get("frequencies_precision", "float64") == "float64",
        "rope_type": section.get("rope_type", "split"),
        "per_modality_projections": True,
        "video_hidden_dim": video[0],
        "audio_hidden_dim": audio[0],
        "proj_bias": "video_text_proj_in.bias" in shapes,
    }
    sides = {
        "video": (heads, video[0] // heads),
        "audio": (section.get("audio_connector_num_attention_heads", heads), None),
    }
    for side, (num_heads, head_width) in sides.items():
        width = head_width or audio[0] // num_heads
        config |= {
            f"{side}_connector_num_attention_heads": num_heads,
            f"{side}_connector_attention_head_dim": width,
            f"{side}_connector_num_layers": count(shapes, f"{side}_connector.transformer_blocks"),
            f"{side}_connector_num_learnable_registers": section.get(
                "connector_num_learnable_registers", 128
            ),
            f"{side}_gated_attn": gated,
        }
    return config


def vae_config(section: Config, shapes: Shapes) -> Config:
    def inputs(name: str) -> int:
        return shapes[f"{name}.conv.weight"][1]

    num_blocks = count(shapes, "encoder.down_blocks")
    blocks = range(num_blocks)
    down = [f"encoder.down_blocks.{i}" for i in blocks]
    up = [f"decoder.up_blocks.{i}" for i in blocks]
    # A block's width is what the next one takes.
    encoder = [inputs(f"{name}.downsamplers.0.conv") for name in down[1:]]
    decoder = [inputs(f"{name}.upsamplers.0.conv") for name in up[1:]]
    ends = [*decoder, inputs("decoder.conv_out")]
    factors = _UPSAMPLE_FACTOR[::-1]
    return {
        "latent_channels": shapes["latents_mean"][0],
        "block_out_channels": [*encoder, inputs("encoder.conv_out")],
        "layers_per_block": [
            *(count(shapes, f"{name}.resnets") for name in down),
            count(shapes, "encoder.mid_block.resnets"),
        ],
        "decoder_block_out_channels": [
            width * factor for width, factor in zip(ends, factors, strict=True)
        ][::-1],
        "decoder_layers_per_block": [
            count(shapes, "decoder.mid_block.resnets"),
            *(count(shapes, f"{name}.resnets") for name in up),
        ][::-1],
        "down_block_types": ["LTX2VideoDownBlock3D"] * num_blocks,
        "spatio_temporal_scaling": [True] * num_blocks,
        "decoder_spatio_temporal_scaling": [True] * num_blocks,
        "decoder_inject_noise": [False] * (num_blocks + 1),
        "downsample_type": ["spatial", "temporal", "spatiotemporal", "spatiotemporal"],
        "upsample_type": ["spatiotemporal", "spatiotemporal", "temporal", "spatial"],
        "upsample_residual": [False] * num_blocks,
        "upsample_factor": list(_UPSAMPLE_FACTOR),
        "timestep_conditioning": False,
        "encoder_causal": True,
        "decoder_causal": False,
        "encoder_spatial_padding_mode": "zeros",
        "decoder_spatial_padding_mode": "zeros",
        "spatial_compression_ratio": 32,
        "temporal_compression_ratio": 8,
    }


def audio_vae_config(section: Config, shapes: Shapes) -> Config:
    return {
        "base_channels": shapes["encoder.conv_in.conv.weight"][0],
        "in_channels": shapes["encoder.conv_in.conv.weight"][1],
        "output_channels": shapes["decoder.conv_out.conv.weight"][0],
        "latent_channels": shapes["decoder.conv_in.conv.weight"][1],
        "num_res_blocks": count(shapes, "encoder.down.0.block"),
    }


def vocoder_config(section: Config, shapes: Shapes) -> Config:
    config: Config = {}
    for part, prefix, module in (
        ("vocoder", "", "vocoder"),
        ("bwe", "bwe_", "bwe_generator"),
    ):
        known = section.get(part, {})
        config |= {
            f"{prefix}{ours}": known[key] for key, ours in _GENERATOR.items() if key in known
        }
        config[f"{prefix}in_channels"] = shapes[f"{module}.conv_in.weight"][1]
        config[f"{prefix}out_channels"] = shapes[f"{module}.conv_out.weight"][0]
        config[f"{prefix}final_bias"] = f"{module}.conv_out.bias" in shapes
    known = section.get("bwe", {})
    return config | {ours: known[key] for key, ours in _BANDWIDTH.items() if key in known}


def vocoder_section(config: Config) -> Config:
    """What `vocoder_config` reads."""
    fixed = {"resblock": "AMP1", "activation": "snakebeta", "use_tanh_at_final": False}
    plain = {key: config[ours] for key, ours in _GENERATOR.items()}
    bandwidth = {key: config[f"bwe_{ours}"] for key, ours in _GENERATOR.items()}
    bandwidth |= {key: config[ours] for key, ours in _BANDWIDTH.items()}
    return {
        "vocoder": fixed | plain | {"use_bias_at_final": config["final_bias"]},
        "bwe": fixed | bandwidth | {"use_bias_at_final": config["bwe_final_bias"]},
    }


CONFIGS: Final[dict[str, tuple[str, Callable[[Config, Shapes], Config]]]] = {
    # component: section of the metadata's config, its reader
    "transformer": ("transformer", transformer_config),
    "connectors": ("transformer", connectors_config),
    "vae": ("vae", vae_config),
    "audio_vae": ("audio_vae", audio_vae_config),
    "vocoder": ("vocoder", vocoder_config),
}


def count(shapes: Shapes, prefix: str) -> int:
    """How many numbered modules lie under ``prefix``."""
    begin = prefix + "."
    numbers = {name[len(begin) :].split(".")[0] for name in shapes if name.startswith(begin)}
    return len(numbers)
