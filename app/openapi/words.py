"""What the page of a training says, and what that of a generation: all that differs by kind."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.modes.base import (
    MIN_BILLABLE_UNITS,
    AnyGeneration,
    AnyMode,
    AnyTraining,
    Generation,
    Training,
)
from app.modes.canvas import Canvas
from preprocessing.rules import MASK_IMAGE_EXTENSIONS, MASK_SUFFIX, DatasetRule


@dataclass(frozen=True)
class Words:
    """Parts of a page."""

    kind: str
    price: str
    heading: str
    """Of ``files``."""
    files: list[str]
    """What has to be behind the URLs, in Markdown lines."""
    bad_files: str
    """How files that can't be used end, as a list item."""
    uploads: Mapping[str, str]
    """Variable -> file, in the Python example."""
    arguments: Mapping[str, Any]
    """In the Python example; `Name`s are variables."""
    result: str
    """The field whose URL the examples print."""


class Name(str):
    """A Python variable among the values of an example."""

    def __repr__(self) -> str:
        return str(self)


def words_of(mode: AnyMode, example: Mapping[str, Any], required: Mapping[str, Any]) -> Words:
    """For ``mode``, whose page recommends ``example``."""
    match mode:
        case Training():
            return _of_training(mode, mode.parse(dict(example)), required)
        case Generation():
            return _of_generation(mode, mode.parse(dict(example)), required)
    raise AssertionError(f"{mode.path} has no page")


def _of_training(mode: AnyTraining, request: Any, required: Mapping[str, Any]) -> Words:
    others = {name: value for name, value in required.items() if name != "training_data_url"}
    return Words(
        kind="training; it takes minutes to hours, so submit it and follow its status",
        price=(
            f"fal asks ${mode.price_per_unit} per step, and at least {MIN_BILLABLE_UNITS} steps: "
            f"${mode.price_per_unit * 1000:.2f} for 1000 steps. This service counts the same units "
            "(header `x-fal-billable-units` of the result) and charges nothing; a failed training "
            "counts as 0."
        ),
        heading="Dataset",
        files=_dataset(mode.dataset_rule(request)),
        bad_files=(
            "- A dataset that can't be trained on: the request becomes COMPLETED with `error`, and "
            "its result is that 422. `{response_url}/report` says what became of every clip."
        ),
        uploads={"url": "clips.zip"},
        arguments={"training_data_url": Name("url"), **others},
        result="lora_file",
    )


def _of_generation(mode: AnyGeneration, request: Any, required: Mapping[str, Any]) -> Words:
    canvas = Canvas(1280, 720)
    units = canvas.megapixels(121)
    return Words(
        kind="generation; submit it and follow its status",
        price=(
            f"fal asks ${mode.price_per_unit} per megapixel of width x height x frames, rounded "
            f"up: 121 frames at 1280x720 are {units} megapixels, "
            f"${mode.price_per_unit * units:.4f}. "
            "This service counts the same units (header `x-fal-billable-units` of the result) and "
            "charges nothing; a failed generation counts as 0."
        ),
        heading="Source and LoRAs",
        files=[
            "- The source: one video, by URL. Its whole picture is kept, scaled into the canvas.",
            "- LoRAs: one to three `.safetensors` files for LTX-2.3, by URL, at most 3 GB each. "
            "`lora_file.url` of a training here is one; keys as ComfyUI, diffusers and PEFT name "
            "them are read as well. A file that was fetched before is not fetched again.",
        ],
        bad_files=(
            "- A source or a LoRA that can't be used: the request becomes COMPLETED with `error`, "
            "and its result is that 422, with the field of the file to blame. "
            "`{response_url}/report` says what was found."
        ),
        uploads={"video": "clip.mp4", "lora": "lora.safetensors"},
        arguments={
            **required,
            "video_url": Name("video"),
            "loras": [{"path": Name("lora"), "scale": 1}],
        },
        result="video",
    )


def _dataset(rule: DatasetRule) -> list[str]:
    """What has to be in the archive."""
    lines = ["One `.zip`, by URL; subfolders are fine.", ""]
    lines.append(f"- Videos: {_listed(rule.video_extensions)}")
    if rule.image_extensions:
        lines.append(
            f"- Or images: {_listed(rule.image_extensions)}. Only videos or only images: a mixed "
            "archive is refused."
        )
    else:
        lines.append("- No images.")
    if rule.masks:
        lines.append(
            f"- A mask for every video `clip01.mp4`: `clip01{MASK_SUFFIX}` with the ending "
            f"{_listed(MASK_IMAGE_EXTENSIONS)} for all frames, or {_listed(rule.video_extensions)} "
            "frame by frame. White is regenerated, black is kept."
        )
    lines.append(
        "- Captions: `clip01.txt` beside `clip01.mp4`. Optional and strongly recommended; without "
        "one the trigger phrase alone is the caption."
    )
    if rule.unique_names:
        lines.append("- Base names are unique in the whole archive, subfolders included.")
    lines.append(
        "- Videos with fewer than `number_of_frames` frames at `frame_rate` are dropped, unless "
        "`auto_scale_input` is on."
    )
    lines.append("- Ten clips or more are advised.")
    return lines


def _listed(extensions: tuple[str, ...]) -> str:
    return ", ".join(f"`{extension}`" for extension in extensions)
