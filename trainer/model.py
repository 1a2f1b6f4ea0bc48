"""The base model: a folder in diffusers layout, of which one component at a time is loaded. The
official single file is converted to one, once (`single_file.py`).

`BaseModel.open` looks only at configs, so a wrong model is refused before a byte of weights is read
(`ltx-training.md` 1.7, 2.6). Only LTX-2.3 fits: 2.0 and 2.5 have other modulation and other text
sides, and their LoRAs are not interchangeable.
"""

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    FlowMatchEulerDiscreteScheduler,
    LTX2VideoTransformer3DModel,
)
from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2VocoderWithBWE
from diffusers.utils import logging as diffusers_logging
from torch import nn
from transformers import AutoTokenizer, Gemma3ForConditionalGeneration
from transformers.utils import logging as transformers_logging

from trainer.capacity import TINY, model_id
from trainer.errors import ModelError
from trainer.offload import offload_blocks
from trainer.quantised import Precision
from trainer.single_file import converted_folder
from trainer.text import TextEncoder
from trainer.tiny import tiny_folder
from trainer.transformer import drop_audio_branch
from trainer.weights import TransformerPlacer, load_into

EXAMPLE_MODEL = "diffusers/LTX-2.3-Diffusers"

_COMPONENTS = (
    "scheduler",
    "vae",
    "audio_vae",
    "text_encoder",
    "tokenizer",
    "connectors",
    "transformer",
    "vocoder",
)
_LTX_2_3 = {"gated_attn": True, "cross_attn_mod": True, "rope_type": "split"}
"""What an LTX-2.3 transformer's config says, besides `use_prompt_embeddings` false."""

_ENCODING_BYTES = 4 * 10**9
"""Left free beside the text encoder for its work on one prompt."""

_FINGERPRINT_BYTES = 65536
"""Of each end of a weight file. Whole files are 44 GB; two trainings never agree in both ends."""


class BaseModel:
    """A model that is known to be LTX-2.3. Every loader reads one component; the caller frees it.

    Weights go straight to the device, in bf16 on CUDA and fp32 on the CPU; the audio VAE and the
    vocoder are fp32 everywhere, as in the reference. All are frozen and in eval mode.
    """

    def __init__(self, id: str, folder: Path, device: torch.device) -> None:
        self.id = id
        self.folder = folder
        self.device = device
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.is_tiny = id == TINY
        _check_configs(id, folder)

    @classmethod
    def open(
        cls,
        name: str,
        cache: Path,
        device: torch.device | str,
        *,
        text_encoder: Path | None = None,
    ) -> "BaseModel":
        """``name`` is ``tiny`` (built into ``cache`` on first use), a folder, a hub id, or the
        official file (converted into ``cache`` on first use), to which ``text_encoder``, a folder
        with Gemma 3 and its tokenizer, belongs.

        Raises `ModelError` when it is not there, lacks components, or is not LTX-2.3.
        """
        device = torch.device(device)
        diffusers_logging.disable_progress_bar()
        transformers_logging.disable_progress_bar()
        if name == TINY:
            return cls(TINY, tiny_folder(cache), device)
        folder = Path(name).expanduser()
        if folder.is_dir():
            return cls(model_id(name), folder, device)
        if folder.suffix == ".safetensors" and folder.is_file():
            return cls(folder.name, converted_folder(folder, text_encoder, cache), device)
        return cls(name, _download(name), device)

    @property
    def version_info(self) -> str:
        """For config.json: which weights exactly."""
        return f"LTX-2.3, {self.id}, {self.fingerprint}"

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all configs and of every weight file's size and ends (12 hex digits)."""
        digest = hashlib.sha256()
        for path in sorted(self.folder.rglob("*")):
            if path.suffix not in (".json", ".safetensors") or ".cache" in path.parts:
                continue
            size = path.stat().st_size
            digest.update(f"{path.relative_to(self.folder).as_posix()} {size}\n".encode())
            with path.open("rb") as file:
                digest.update(file.read(_FINGERPRINT_BYTES))
                if size > _FINGERPRINT_BYTES:
                    file.seek(max(_FINGERPRINT_BYTES, size - _FINGERPRINT_BYTES))
                    digest.update(file.read())
        return digest.hexdigest()[:12]

    @cached_property
    def num_blocks(self) -> int:
        config = _config(self.folder / "transformer" / "config.json") or {}
        return int(config["num_layers"])

    def weight_bytes(self, *components: str) -> int:
        """Size of these components on disk."""
        files = (file for name in components for file in (self.folder / name).glob("*.safetensors"))
        return sum(file.stat().st_size for file in files)

    def text_encoder(self) -> TextEncoder:
        gemma = Gemma3ForConditionalGeneration.from_pretrained(
            self.folder / "text_encoder", dtype=self.dtype, **self._where_gemma_goes()
        )
        return TextEncoder(
            AutoTokenizer.from_pretrained(self.folder / "tokenizer"),
            _frozen(gemma),
            self._load(LTX2TextConnectors, "connectors", self.dtype),
        )

    def video_vae(self) -> AutoencoderKLLTX2Video:
        return self._load(AutoencoderKLLTX2Video, "vae", self.dtype)

    def audio_vae(self) -> AutoencoderKLLTX2Audio:
        return self._load(AutoencoderKLLTX2Audio, "audio_vae", torch.float32)

    def vocoder(self) -> LTX2VocoderWithBWE:
        return self._load(LTX2VocoderWithBWE, "vocoder", torch.float32)

    def scheduler(self) -> FlowMatchEulerDiscreteScheduler:
        return FlowMatchEulerDiscreteScheduler.from_pretrained(self.folder / "scheduler")

    def transformer(
        self, *, with_audio: bool, precision: Precision = "full", num_offloaded: int = 0
    ) -> LTX2VideoTransformer3DModel:
        """Without audio its audio weights (11.7 of 38 GB) are not even read.

        ``num_offloaded`` blocks have their weights on the host (`offload.py`); run them only with
        every block recomputed, or without gradients.
        """
        folder = self.folder / "transformer"
        with torch.device("meta"):
            config = LTX2VideoTransformer3DModel.load_config(folder)
            transformer = LTX2VideoTransformer3DModel.from_config(config)
        if not with_audio:
            drop_audio_branch(transformer)
        place = TransformerPlacer(transformer, precision, num_offloaded)
        load_into(transformer, folder, self.device, self.dtype, place=place)
        offload_blocks(transformer, num_offloaded, self.device)
        return _frozen(transformer)

    def _where_gemma_goes(self) -> dict[str, Any]:
        """All of it to the device; where it does not fit, its layers come in turn from the host."""
        if self.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.device)
            room = free - self.weight_bytes("connectors") - _ENCODING_BYTES
            if room < self.weight_bytes("text_encoder"):
                index = self.device.index or 0
                return {"device_map": "auto", "max_memory": {index: max(0, room), "cpu": 10**12}}
        return {"device_map": {"": self.device}}

    def _load(self, kind: Any, component: str, dtype: torch.dtype) -> Any:
        module = kind.from_pretrained(self.folder / component, torch_dtype=dtype)
        return _frozen(module.to(self.device))


def _frozen(module: nn.Module) -> Any:
    return module.eval().requires_grad_(False)


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        # Configs first: a model of another version is refused before its weights are fetched.
        configs = ("*.json", "*/*.json")
        _check_configs(name, Path(snapshot_download(name, allow_patterns=list(configs))))
        folders = [f"{component}/*" for component in _COMPONENTS]
        return Path(snapshot_download(name, allow_patterns=["model_index.json", *folders]))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"The model {name!r} is neither a folder here nor could it be downloaded "
            f"({type(error).__name__}). Give a folder in diffusers layout, the official "
            f".safetensors file, {TINY!r}, or a hub id such as {EXAMPLE_MODEL}; a gated model "
            "needs a token."
        ) from error


def _check_configs(id: str, folder: Path) -> None:
    """Refuse by name what is not LTX-2.3 in diffusers layout."""
    index = _config(folder / "model_index.json")
    if index is None:
        raise ModelError(
            f"{id} has no model_index.json, so it is not in diffusers layout. Use a converted "
            f"folder such as {EXAMPLE_MODEL}, or name the official .safetensors file itself."
        )
    transformer = _config(folder / "transformer" / "config.json") or {}
    connectors = _config(folder / "connectors" / "config.json") or {}
    if version := _foreign_version(index, transformer, connectors):
        raise ModelError(
            f"{id} is {version}; only LTX-2.3 can be trained, and LoRAs do not carry over "
            f"between the versions. Use {EXAMPLE_MODEL}."
        )
    if missing := [name for name in _COMPONENTS if not (folder / name).is_dir()]:
        raise ModelError(f"{id} lacks {', '.join(missing)}. Download the whole model.")


def _foreign_version(
    index: dict[str, Any], transformer: dict[str, Any], connectors: dict[str, Any]
) -> str | None:
    if transformer.get("_class_name") != LTX2VideoTransformer3DModel.__name__:
        return f"not an LTX-2 model ({transformer.get('_class_name') or 'no transformer config'})"
    if (
        not transformer.get("ff_bias", True)
        or not transformer.get("use_prompt_adaln_single", True)
        or transformer.get("use_keyframes_abs_pos_embedding", False)
        or "Gemma4" in str(index.get("text_encoder"))
    ):
        return "LTX-2.5"
    if transformer.get("use_prompt_embeddings", True) or not connectors.get(
        "per_modality_projections", False
    ):
        return "LTX-2.0"
    if wrong := {
        key: transformer.get(key)
        for key, value in _LTX_2_3.items()
        if transformer.get(key) != value
    }:
        return f"an unknown LTX-2 variant ({wrong})"
    return None


def _config(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ModelError(f"{path.name} of the model can't be read: {error}") from error
