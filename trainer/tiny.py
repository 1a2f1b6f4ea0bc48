"""The tiny model: LTX-2.3 with every real component and the real geometry, random, 5 M parameters.

Its pictures are noise. It is there so that the whole service runs for real, in seconds, on a CPU
(`ltx-training.md` 2.7). The folder has diffusers' layout; `LTX2Pipeline.from_pretrained` reads it.
"""

import hashlib
import os
import shutil
from importlib.metadata import version
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    FlowMatchEulerDiscreteScheduler,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
)
from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2VocoderWithBWE
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, PreTrainedTokenizerFast

_SEED = 0
_SPECIAL_TOKENS = ("pad_token", "eos_token", "bos_token", "unk_token")
_PAD, _EOS, _BOS = 0, 1, 2
_CAPTION_CHANNELS = 32
_TEXT_LAYERS = 2
_VIDEO_WIDTH, _AUDIO_WIDTH = 64, 32
_LATENT_STD = 0.26
"""What both VAEs give on noise, measured."""


def tiny_folder(cache: Path) -> Path:
    """The tiny model's folder under ``cache``, built on first use.

    Its name carries a hash of this file and of the libraries that draw the weights, so a changed
    builder never meets an old folder. Two processes may build at once; one of them wins.
    """
    folder = cache / f"tiny-{_builder_hash()}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    aside = cache / f".{folder.name}.{os.getpid()}.part"
    try:
        build_tiny(aside)
        aside.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def build_tiny(folder: Path) -> None:
    """Write the tiny model to ``folder``: the same weights on every call. About 2 s, 22 MB."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        pipeline = LTX2Pipeline(
            tokenizer=_tokenizer(),
            text_encoder=_text_encoder(),
            connectors=_connectors(),
            transformer=_transformer(),
            vae=_vae(),
            audio_vae=_audio_vae(),
            vocoder=LTX2VocoderWithBWE(
                hidden_channels=64,
                bwe_hidden_channels=32,
                resnet_kernel_sizes=[3],
                resnet_dilations=[[1, 3, 5]],
                bwe_resnet_kernel_sizes=[3],
                bwe_resnet_dilations=[[1, 3, 5]],
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(
                use_dynamic_shifting=True,
                base_shift=0.95,
                max_shift=2.05,
                base_image_seq_len=1024,
                max_image_seq_len=4096,
                shift_terminal=0.1,
            ),
        )
    pipeline.save_pretrained(folder)


def _builder_hash() -> str:
    parts = [Path(__file__).read_bytes()]
    parts += [version(name).encode() for name in ("torch", "diffusers", "transformers")]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]


def _tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens: 4 special ones and 256, no merges."""
    special = {name: f"<{name.removesuffix('_token')}>" for name in _SPECIAL_TOKENS}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: i for i, symbol in enumerate([*special.values(), *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=special["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", _BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, padding_side="left", model_max_length=1024, **special
    )


def _text_encoder() -> Gemma3ForConditionalGeneration:
    text = {
        "vocab_size": 264,
        "hidden_size": _CAPTION_CHANNELS,
        "num_hidden_layers": _TEXT_LAYERS,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "intermediate_size": 64,
        "max_position_embeddings": 2048,
        "sliding_window": 512,
        "query_pre_attn_scalar": 16,
        "pad_token_id": _PAD,
        "eos_token_id": _EOS,
        "bos_token_id": _BOS,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=4,
        boi_token_index=260,
        eoi_token_index=261,
        image_token_index=262,
    )
    return Gemma3ForConditionalGeneration(config).eval()


def _connectors() -> LTX2TextConnectors:
    return LTX2TextConnectors(
        caption_channels=_CAPTION_CHANNELS,
        text_proj_in_factor=_TEXT_LAYERS + 1,
        video_connector_num_attention_heads=4,
        video_connector_attention_head_dim=_VIDEO_WIDTH // 4,
        video_connector_num_layers=1,
        video_gated_attn=True,
        audio_connector_num_attention_heads=4,
        audio_connector_attention_head_dim=_AUDIO_WIDTH // 4,
        audio_connector_num_layers=1,
        audio_gated_attn=True,
        rope_type="split",
        per_modality_projections=True,
        video_hidden_dim=_VIDEO_WIDTH,
        audio_hidden_dim=_AUDIO_WIDTH,
        proj_bias=True,
    )


def _transformer() -> LTX2VideoTransformer3DModel:
    return LTX2VideoTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=_VIDEO_WIDTH // 4,
        cross_attention_dim=_VIDEO_WIDTH,
        gated_attn=True,
        cross_attn_mod=True,
        audio_in_channels=32,
        audio_out_channels=32,
        audio_num_attention_heads=4,
        audio_attention_head_dim=_AUDIO_WIDTH // 4,
        audio_cross_attention_dim=_AUDIO_WIDTH,
        audio_gated_attn=True,
        audio_cross_attn_mod=True,
        num_layers=4,
        caption_channels=_CAPTION_CHANNELS,
        rope_type="split",
        use_prompt_embeddings=False,
        perturbed_attn=True,
    )


def _with_statistics(
    vae: AutoencoderKLLTX2Video | AutoencoderKLLTX2Audio,
) -> AutoencoderKLLTX2Video | AutoencoderKLLTX2Audio:
    """Give a random VAE latent statistics near those of its latents, different in every channel."""
    vae.latents_mean.normal_(0.0, _LATENT_STD / 4)
    vae.latents_std.uniform_(_LATENT_STD / 2, _LATENT_STD * 3 / 2)
    return vae


def _vae() -> AutoencoderKLLTX2Video:
    down = ("spatial", "temporal", "spatiotemporal", "spatiotemporal")
    vae = AutoencoderKLLTX2Video(
        block_out_channels=(16, 16, 16, 16),
        decoder_block_out_channels=(8, 16, 16, 32),
        layers_per_block=(0, 1, 1, 1, 1),  # The first works at the latents' width: a second each.
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True,) * 4,
        decoder_spatio_temporal_scaling=(True,) * 4,
        decoder_inject_noise=(False,) * 5,
        downsample_type=down,
        upsample_type=down[::-1],
        upsample_residual=(False,) * 4,
        upsample_factor=(2, 2, 1, 2),
        decoder_causal=False,
        decoder_spatial_padding_mode="zeros",
        spatial_compression_ratio=32,
        temporal_compression_ratio=8,
    )
    return _with_statistics(vae)


def _audio_vae() -> AutoencoderKLLTX2Audio:
    # diffusers sizes the latent statistics by base_channels, though they are per packed channel:
    # base_channels must equal latent_channels * 16 (2.4 c).
    vae = AutoencoderKLLTX2Audio(base_channels=32, latent_channels=2, num_res_blocks=1)
    return _with_statistics(vae)
