"""The official single file, ``ltx-2.3-22b-dev.safetensors``, into diffusers' folders, and back.

Everything but the text encoder is in the file; that is a folder of its own (Gemma 3, with its
tokenizer). The converted folder is made once, beside the trainer's other caches, and takes as much
disk as the file. Nothing is computed: bytes keep their values.
"""

import fcntl
import json
import shutil
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    FlowMatchEulerDiscreteScheduler,
    LTX2VideoTransformer3DModel,
)
from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2VocoderWithBWE

from trainer.errors import ModelError
from trainer.official_config import CONFIGS, transformer_section, version_of, vocoder_section
from trainer.official_names import COMPONENTS, to_diffusers, to_official
from trainer.stored import Stored, read_folder, read_header, write_file, write_shards

SHARD_BYTES: Final = 5 * 10**9
SOURCE_FILE: Final = "source.json"
"""In a converted folder: what it was made of."""
_CLASSES: Final[dict[str, Any]] = {
    "transformer": LTX2VideoTransformer3DModel,
    "connectors": LTX2TextConnectors,
    "vae": AutoencoderKLLTX2Video,
    "audio_vae": AutoencoderKLLTX2Audio,
    "vocoder": LTX2VocoderWithBWE,
}
_LIBRARIES: Final = {"connectors": "ltx2", "vocoder": "ltx2"}
"""Where `model_index.json` says a class is; diffusers itself otherwise."""


def converted_folder(file: Path, text_encoder: Path | None, cache: Path) -> Path:
    """The folder under ``cache`` that ``file`` was or now is converted to.

    Raises `ModelError` for a file that is no whole LTX-2.3, and where the text encoder is missing.
    """
    text_encoder = _text_folder(file, text_encoder)
    stat = file.stat()
    source = {
        "file": file.name,
        "bytes": stat.st_size,
        "changed_ns": stat.st_mtime_ns,
        "text_encoder": str(text_encoder.resolve()),
    }
    name = f"{file.stem}-{stat.st_size}"
    folder = cache / "converted" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    # One process converts; the others wait, and find what it made.
    with (cache / "converted.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder.is_dir() and json.loads((folder / SOURCE_FILE).read_text()) == source):
            _convert(file, text_encoder, folder, source)
    return folder


def _convert(file: Path, text_encoder: Path, folder: Path, source: dict[str, Any]) -> None:
    """Make ``folder``, at once whole. Only one process does this at a time."""
    for killed in folder.parent.glob(".*.part"):
        shutil.rmtree(killed, ignore_errors=True)
    aside = folder.with_name(f".{folder.name}.part")
    aside.mkdir()
    try:
        _check_room(file, aside)
        to_folder(file, aside)
        for part in ("text_encoder", "tokenizer"):
            inside = text_encoder / part
            (aside / part).symlink_to((inside if inside.is_dir() else text_encoder).resolve())
        (aside / SOURCE_FILE).write_text(json.dumps(source, indent=2))
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def to_folder(file: Path, folder: Path, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Write the file's components to ``folder``, without text encoder and tokenizer."""
    tensors, metadata = read_header(file)
    config = _config_of(file, metadata)
    _check_version(file, tensors, metadata, config)
    parts: dict[str, dict[str, Stored]] = {component: {} for component in COMPONENTS}
    for name, stored in tensors.items():
        if (place := to_diffusers(name)) is not None:
            parts[place[0]][place[1]] = stored
    index: dict[str, Any] = {"_class_name": "LTX2Pipeline"}
    for component, stored_here in parts.items():
        section, read = CONFIGS[component]
        shapes = {name: stored.shape for name, stored in stored_here.items()}
        try:
            component_config = read(config.get(section, {}), shapes)
        except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
            raise ModelError(
                f"{file.name} lacks what its {component} is known by ({error}). Use the whole "
                "ltx-2.3-22b-dev.safetensors."
            ) from error
        kind = _CLASSES[component]
        with torch.device("meta"):
            module = kind.from_config(component_config)
        _check_fits(file, component, module, shapes)
        module.save_config(folder / component)
        write_shards(
            folder / component,
            "diffusion_pytorch_model",
            stored_here,
            max_bytes=shard_bytes,
        )
        index[component] = [_LIBRARIES.get(component, "diffusers"), kind.__name__]
    _scheduler().save_pretrained(folder / "scheduler")
    index |= {
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Gemma3ForConditionalGeneration"],
        "tokenizer": ["transformers", "GemmaTokenizerFast"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))


def to_single_file(folder: Path, file: Path) -> None:
    """The other way: components in diffusers layout to one file in the official naming."""
    tensors: dict[str, Stored] = {}
    configs = {}
    for component in COMPONENTS:
        configs[component] = json.loads((folder / component / "config.json").read_text())
        for name, stored in read_folder(folder / component).items():
            tensors[to_official(component, name)] = stored
    config = {
        "transformer": transformer_section(configs["transformer"], configs["connectors"]),
        "vocoder": vocoder_section(configs["vocoder"]),
    }
    metadata = {"model_version": "2.3.0", "config": json.dumps(config)}
    write_file(file, tensors, metadata)


def _text_folder(file: Path, text_encoder: Path | None) -> Path:
    if text_encoder is None:
        raise ModelError(
            f"{file.name} holds no text encoder. Set REELSMITH_TEXT_ENCODER to a folder with "
            "Gemma 3 (google/gemma-3-12b-it-qat-q4_0-unquantized) and its tokenizer."
        )
    for folder in (text_encoder, text_encoder / "text_encoder"):
        if (folder / "config.json").is_file():
            kinds = json.loads((folder / "config.json").read_text()).get("architectures", [])
            if "Gemma3ForConditionalGeneration" in kinds:
                return text_encoder
            raise ModelError(
                f"The text encoder {text_encoder.name} is {', '.join(kinds) or 'unknown'}; LTX-2.3 "
                "was trained with Gemma 3 12B (Gemma3ForConditionalGeneration)."
            )
    raise ModelError(f"The text encoder's folder {text_encoder.name} has no config.json.")


def _config_of(file: Path, metadata: dict[str, str]) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads(metadata["config"])
    except (KeyError, ValueError) as error:
        raise ModelError(
            f"{file.name} says nothing of its architecture (no config in its metadata), so it is "
            "no official checkpoint. Use ltx-2.3-22b-dev.safetensors, or a folder in diffusers "
            "layout."
        ) from error
    return config


def _check_version(
    file: Path, tensors: dict[str, Stored], metadata: dict[str, str], config: dict[str, Any]
) -> None:
    version = version_of(metadata, config.get("transformer", {}), set(tensors))
    if version != "2.3":
        raise ModelError(
            f"{file.name} is LTX-{version}; only LTX-2.3 can be trained, and LoRAs do not carry "
            "over between the versions. Use ltx-2.3-22b-dev.safetensors."
        )
    if any(stored.dtype.startswith("F8") for stored in tensors.values()):
        raise ModelError(
            f"{file.name} holds weights that are quantised already. Train on the bf16 file, "
            "ltx-2.3-22b-dev.safetensors; REELSMITH_BASE_PRECISION=fp8 quantises it when loading."
        )


def _check_fits(
    file: Path, component: str, module: torch.nn.Module, shapes: dict[str, tuple[int, ...]]
) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    differing = sorted(
        name for name in expected.keys() | shapes.keys() if expected.get(name) != shapes.get(name)
    )
    if differing:
        name = differing[0]
        raise ModelError(
            f"{file.name} does not fit the {component} of LTX-2.3 in {len(differing)} tensors: "
            f"{to_official(component, name)} is {shapes.get(name, 'missing')}, and should be "
            f"{expected.get(name, 'absent')}. Download it again."
        )


def _check_room(file: Path, folder: Path) -> None:
    needed, free = file.stat().st_size, shutil.disk_usage(folder).free
    if free < needed:
        raise ModelError(
            f"Converting {file.name} takes {needed / 1e9:.0f} GB of disk once, and "
            f"{free / 1e9:.0f} GB are free. Make room, or use a folder in diffusers layout."
        )


def _scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.95,
        max_shift=2.05,
        base_image_seq_len=1024,
        max_image_seq_len=4096,
        shift_terminal=0.1,
    )
