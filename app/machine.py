"""What a machine needs to train and to generate: torch and a GPU, codecs, the base model.

Every check looks by itself and changes nothing. What is heavy is tried in a process of its own,
because a broken driver can end the process that asks, so none of it needs torch here.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from app.client.text import size
from app.settings import Settings
from trainer.capacity import TINY

PROBE_TIMEOUT_S: Final = 180.0
"""Importing torch from a cold, slow disk takes a minute."""
WORKER_INSTALL: Final = "pip install 'reelsmith[worker]'"
COMPONENTS: Final = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
"""Some of what every folder in diffusers layout of this model has."""
INDEXES: Final = (
    "diffusion_pytorch_model.safetensors.index.json",
    "model.safetensors.index.json",
)
"""Of weights in several files; what is loaded, and no other variant that lies there as well."""
CPU_BUILD: Final = "none: this torch is a CPU build"

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what is so, and what to do about it."""

    state: State
    name: str
    says: str
    advice: str = ""


NO_DRIVER: Final = Finding(
    "warn",
    "gpu",
    "none: a driver is missing or too old",
    "`nvidia-smi` shows what the driver sees.",
)
"""With a torch that was made for GPUs, which no machine has for nothing."""


def unfit(settings: Settings) -> Finding | None:
    """What keeps this machine from any training and generation at all; None where nothing does.

    Takes some seconds, but for ``tiny``, which asks for nothing.
    """
    if settings.model == TINY:
        return None
    lacking = model(settings)
    if lacking.state == "fail":
        return lacking
    found = _torch()
    if found.answer is None:
        return _broken_torch(found)
    _version, cuda, gpus = found.answer
    return too_few(len(gpus), settings.gpus_per_job) if cuda else None


def too_few(num_gpus: int, wanted: int) -> Finding | None:
    """What is wrong with that many, where torch was made for them; None where it is enough.

    >>> too_few(1, 2).says
    '1, and 2 for each job'
    """
    if not num_gpus:
        return NO_DRIVER
    if num_gpus < wanted:
        says = f"{num_gpus}, and {wanted} for each job"
        return Finding("fail", "gpu", says, "Set REELSMITH_GPUS_PER_JOB to what is here.")
    return None


def torch() -> Iterator[Finding]:
    """torch, and the GPU as torch sees it."""
    found = _torch()
    if found.missing:
        yield Finding("warn", "torch", "not installed: no training here", WORKER_INSTALL)
        return
    if found.answer is None:
        yield _broken_torch(found)
        return
    version, cuda, gpus = found.answer
    yield Finding("ok", "torch", f"{version}, {f'CUDA {cuda}' if cuda else 'built without CUDA'}")
    if not gpus:
        yield NO_DRIVER if cuda else Finding("warn", "gpu", CPU_BUILD, "Enough for tiny.")
    for name, memory, capability in gpus:
        if capability < 8:
            yield Finding("warn", "gpu", f"{name} has no bf16", "Use Ampere or newer.")
        else:
            yield Finding("ok", "gpu", f"{name}, {size(memory)}")


def _torch() -> "Probed":
    """``[version, CUDA's or null, [[name, bytes, compute capability's major], ...]]``."""
    return probe(
        "import json, torch\n"
        "c = torch.cuda\n"
        "n = c.device_count() if c.is_available() else 0\n"
        "gpus = [[c.get_device_name(i), c.get_device_properties(i).total_memory,"
        " c.get_device_capability(i)[0]] for i in range(n)]\n"
        "x = [float(torch.ones(8, device=f'cuda:{i}').sum()) for i in range(n)]\n"
        "print(json.dumps([torch.__version__, torch.version.cuda, gpus]))"
    )


def _broken_torch(found: "Probed") -> Finding:
    if found.missing:
        return Finding("fail", "torch", "not installed", WORKER_INSTALL)
    return Finding("fail", "torch", found.error, "Install torch and the driver anew.")


def media() -> Finding:
    """FFmpeg's libraries as PyAV brings them, with the codecs that previews need."""
    found = probe(
        "import json, av\n"
        "lacks = []\n"
        "for name, mode in (('libx264', 'w'), ('aac', 'w'), ('h264', 'r'), ('vp9', 'r')):\n"
        "    try: av.codec.Codec(name, mode)\n"
        "    except Exception: lacks.append(name)\n"
        "v = {k: '.'.join(map(str, n)) for k, n in av.library_versions.items()}\n"
        "print(json.dumps([av.__version__, v, lacks]))"
    )
    if found.missing:
        return Finding("warn", "ffmpeg", "av is not installed: no preparation here", WORKER_INSTALL)
    if found.answer is None:
        return Finding("fail", "ffmpeg", found.error, f"Install av anew: {WORKER_INSTALL}")
    version, parts, lacks = found.answer
    if lacks:
        advice = "Install av from its wheel, which has them."
        return Finding("fail", "ffmpeg", f"av {version} lacks {', '.join(lacks)}", advice)
    return Finding("ok", "ffmpeg", f"av {version}, libavcodec {parts.get('libavcodec')}")


def model(settings: Settings) -> Finding:
    """The base model is here, whole, and LTX-2.3. What is downloaded when it is needed, or the rest
    of it, is no failure."""
    try:
        return _model(settings)
    except OSError as error:  # not this user's to read, or a mount whose server has gone
        advice = "Mount it again, or let this user read it."
        return Finding("fail", "model", f"{settings.model}: {error.strerror}", advice)


def _model(settings: Settings) -> Finding:
    name = settings.model
    if name == TINY:
        return Finding("ok", "model", "tiny: everything works, its pictures are noise")
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _model_folder(folder)
    if folder.suffix == ".safetensors" and folder.is_file():
        return _model_file(folder, settings.text_encoder)
    if not re.fullmatch(r"[A-Za-z0-9_-][\w.-]*/[\w.-]+", name):
        advice = "Set REELSMITH_MODEL to a folder, a hub id or tiny."
        return Finding("fail", "model", f"{name} is no folder here and no hub id", advice)
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    cached = hub / f"models--{name.replace('/', '--')}" / "snapshots"
    download = f"Download it now: `hf download {name}`."
    lacks = None
    for snapshot in sorted(cached.glob("*")):
        lacks = _incomplete(snapshot)
        if lacks is None:
            return _version(snapshot)
    if lacks is not None:
        return Finding("warn", "model", f"{lacks}; the next training downloads the rest", download)
    says = f"{name} is not in {hub}: the first training downloads it"
    return Finding("warn", "model", says, download)


def _model_file(file: Path, text_encoder: Path | None) -> Finding:
    """The official single file, to which the text encoder must be named."""
    if text_encoder is None or not text_encoder.is_dir():
        advice = "Set REELSMITH_TEXT_ENCODER to a folder with Gemma 3 and its tokenizer."
        return Finding("fail", "model", f"{file.name} holds no text encoder", advice)
    says = f"{file.name}: the first training converts it, once; that takes as much disk again"
    return Finding("ok", "model", says)


def _model_folder(folder: Path) -> Finding:
    """It is LTX-2.3 in diffusers layout, with every weight file its indexes name."""
    if lacks := _incomplete(folder):
        advice = "Download the model again, such as diffusers/LTX-2.3-Diffusers."
        return Finding("fail", "model", lacks, advice)
    return _version(folder)


def _incomplete(folder: Path) -> str | None:
    """What a folder in diffusers layout lacks; None for nothing."""
    lacks = [part for part in COMPONENTS if not (folder / part).is_dir()]
    if not (folder / "model_index.json").is_file() or lacks:
        return f"{folder} lacks {', '.join(lacks) or 'model_index.json'}: it is no whole model"
    for index in sorted(folder / part / name for part in COMPONENTS for name in INDEXES):
        if not index.is_file():
            continue
        try:
            files = set(json.loads(index.read_text())["weight_map"].values())
        except (ValueError, KeyError, AttributeError):
            return f"{index} can't be read"
        if gone := sorted(name for name in files if not (index.parent / name).is_file()):
            return f"{index.parent} lacks {gone[0]}"
    if not any((folder / "transformer").glob("*.safetensors")):
        return f"{folder / 'transformer'} has no weights"
    return None


def _version(folder: Path) -> Finding:
    """Which LTX it is, is for the trainer to say: there is one place that knows."""
    found = probe(
        "import json, sys\nfrom pathlib import Path\n"
        "from trainer.errors import ModelError\nfrom trainer.model import BaseModel\n"
        "try: answer = BaseModel.open(sys.argv[1], Path('.'), 'cpu').version_info\n"
        "except ModelError as error: answer = {'refused': str(error)}\n"
        "print(json.dumps(answer))",
        str(folder),
    )
    if found.answer is None:
        says = f"{folder} is whole; that it is LTX-2.3 was not checked ({found.error})"
        return Finding("warn", "model", says, WORKER_INSTALL if found.missing else "")
    if isinstance(found.answer, dict):
        return Finding("fail", "model", found.answer["refused"])
    return Finding("ok", "model", f"{found.answer}")


@dataclass(frozen=True)
class Probed:
    answer: Any
    error: str = ""
    missing: bool = False
    """A module is not installed."""


def probe(code: str, *args: str) -> Probed:
    """Run ``code`` in a Python of its own; its last line of stdout is JSON."""
    command = [sys.executable, "-W", "ignore", "-c", code, *args]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PROBE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Probed(None, f"did not load within {PROBE_TIMEOUT_S:.0f} s")
    lines = done.stderr.strip().splitlines()
    if done.returncode == 0:
        return Probed(json.loads(done.stdout.strip().splitlines()[-1]))
    last = lines[-1] if lines else f"ended with {done.returncode}"
    return Probed(None, last, missing=last.startswith("ModuleNotFoundError"))
