"""The check that a finished LoRA file is what was trained, before a job may say "completed"."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Final

import torch
from diffusers import LTX2Pipeline, LTX2VideoTransformer3DModel
from peft.tuners.lora import LoraLayer
from torch import Tensor

from trainer.adapter import adapter_state, remove_adapter
from trainer.errors import ArtifactError, LoraFileError
from trainer.latents import VideoGeometry, audio_coords, num_audio_latents, video_coords
from trainer.lora_file import LoraFile, check_fits, file_state, load_lora
from trainer.sampler import precision_of
from trainer.transformer import Modality, predict_velocity

TOLERANCE: Final = 0.0
"""Largest difference of a velocity. The file holds the adapter rounded to bf16; compared is the
adapter in memory with the same rounding, at the same shapes and dtypes, so nothing may differ."""

PROBE_GEOMETRY: Final = VideoGeometry(num_frames=9, height=64, width=64, frame_rate=Fraction(24))
"""Small, and yet with two latent frames, rows and columns."""
PROBE_TEXT_TOKENS: Final = 8
PROBE_SIGMA: Final = 0.5


def check_artifact(
    path: Path,
    trained: LTX2VideoTransformer3DModel,
    fresh: Callable[[], LTX2VideoTransformer3DModel],
) -> None:
    """Raise `ArtifactError` unless the file at ``path`` gives what ``trained``'s adapter gives.

    It must hold the adapter's tensors and no others, none NaN or Inf, not every B zero. Then it is
    read once more by diffusers' own LoRA loader, into the base model that ``fresh()`` returns, and
    the two models must agree on one fixed input to `TOLERANCE`.

    ``fresh`` is called after ``trained`` was run for the last time. It opens the base model again,
    or, where there is no room for two, removes the adapter from ``trained`` and returns that. Its
    model is without an adapter before and after.
    """
    adapter = adapter_state(trained)
    expected = file_state(adapter)
    try:
        lora = load_lora(path)
    except (LoraFileError, OSError) as error:
        raise ArtifactError(f"The finished LoRA can't be read back: {error}") from error
    _check_tensors(lora, expected)
    with _rounded(adapter):
        in_memory = _probe(trained, with_audio=lora.has_audio)
    base = fresh()
    try:
        check_fits(lora, base)
        _load_as_users_do(path, base)
        from_file = _probe(base, with_audio=lora.has_audio)
    except LoraFileError as error:
        raise ArtifactError(f"The finished LoRA does not fit its base model: {error}") from error
    finally:
        remove_adapter(base)
    for name, ours, theirs in zip(("video", "audio"), in_memory, from_file, strict=False):
        difference = (ours - theirs).abs().max().item()
        if not difference <= TOLERANCE:  # NaN is not
            raise ArtifactError(
                f"The finished LoRA changes the {name} output by other amounts than the trained "
                f"adapter does: they differ by up to {difference:.3g}"
            )


def _check_tensors(lora: LoraFile, expected: Mapping[str, Tensor]) -> None:
    if differing := lora.state.keys() ^ expected.keys():
        raise ArtifactError(
            f"The finished LoRA has other tensors than the adapter, such as {min(differing)}"
        )
    for key, tensor in expected.items():
        if lora.state[key].dtype != tensor.dtype or not torch.equal(lora.state[key], tensor):
            raise ArtifactError(f"The finished LoRA's {key} is not what was trained")
    if not any(bool(lora.state[f"{module}.lora_B.weight"].any()) for module in lora.modules):
        raise ArtifactError(
            "The finished LoRA changes nothing: every lora_B is zero. Train longer, or with a "
            "higher learning rate."
        )


@contextmanager
def _rounded(adapter: Mapping[str, Tensor]) -> Iterator[None]:
    """The live adapter at the file's precision, for as long as the block lasts."""
    exact = {key: tensor.clone() for key, tensor in adapter.items()}
    try:
        for tensor in adapter.values():
            tensor.copy_(tensor.to(torch.bfloat16))
        yield
    finally:
        for key, tensor in adapter.items():
            tensor.copy_(exact[key])


def _load_as_users_do(path: Path, transformer: LTX2VideoTransformer3DModel) -> None:
    """What `LTX2Pipeline.load_lora_weights` does, with float32 adapters as in training."""
    state, metadata = LTX2Pipeline.lora_state_dict(
        str(path.parent),
        weight_name=path.name,
        use_safetensors=True,
        local_files_only=True,
        return_lora_metadata=True,
    )
    LTX2Pipeline.load_lora_into_transformer(
        state, transformer=transformer, adapter_name="finished", metadata=metadata
    )
    for module in transformer.modules():
        if isinstance(module, LoraLayer):
            for linear in (*module.lora_A.values(), *module.lora_B.values()):
                # Where the base layer is on the host, diffusers puts its adapter there too.
                linear.to(transformer.proj_in.weight.device, torch.float32)


@torch.inference_mode()
def _probe(transformer: LTX2VideoTransformer3DModel, *, with_audio: bool) -> list[Tensor]:
    """The velocities [1, N, 128] (and [1, T, C] with audio) on one fixed input."""
    device = transformer.proj_in.weight.device
    config = transformer.config
    generator = torch.Generator().manual_seed(0)

    def modality(num_tokens: int, channels: int, text_width: int, coords: Tensor) -> Modality:
        sigma = torch.full((1,), PROBE_SIGMA, device=device)
        context = torch.randn(1, PROBE_TEXT_TOKENS, text_width, generator=generator)
        return Modality(
            tokens=torch.randn(1, num_tokens, channels, generator=generator).to(device),
            sigma=sigma,
            context=context.to(device, transformer.proj_in.weight.dtype),
            coords=coords.to(device),
        )

    video = modality(
        PROBE_GEOMETRY.num_tokens,
        config.in_channels,
        config.cross_attention_dim,
        video_coords(PROBE_GEOMETRY),
    )
    audio = None
    if with_audio:
        num_latents = num_audio_latents(PROBE_GEOMETRY.num_frames, PROBE_GEOMETRY.frame_rate)
        audio = modality(
            num_latents,
            config.audio_in_channels,
            config.audio_cross_attention_dim,
            audio_coords(num_latents),
        )
    with precision_of(transformer):
        velocities = predict_velocity(transformer, video, audio)
    return [velocity.float() for velocity in velocities if velocity is not None]
