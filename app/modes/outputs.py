"""What requests return, with keys turned into URLs: what the workers store as their results."""

from typing import Any, Literal

from pydantic import BaseModel, Field


class File(BaseModel):
    """A file of a result. Reading the result again gives a URL that holds for a week more."""

    url: str = Field(
        description="Where to download it; needs no key.", json_schema_extra={"format": "uri"}
    )
    content_type: str = Field(description="Its media type.")
    file_name: str = Field(description="The name it is downloaded under.")
    file_size: int = Field(description="Bytes.")


class TrainerOutput(BaseModel):
    """The result of every trainer."""

    lora_file: File = Field(description="The trained LoRA, .safetensors.")
    config_file: File = Field(
        description="JSON with the trigger phrase and the training type, for whoever uses the LoRA."
    )
    video: File | None = Field(
        None,
        description="One reel of the previews, MP4; null when `validation` was empty.",
    )
    metrics_file: File | None = Field(None, description="The loss of every step, as JSON lines.")
    debug_dataset: File | None = Field(
        None, description="Archive of the prepared clips; only when `debug_dataset` was true."
    )


class VideoOutput(BaseModel):
    """The result of a generation."""

    video: File = Field(
        description="The generated video, MP4; its URL is a data URI when `sync_mode` was true."
    )
    seed: int = Field(description="The seed that was used.")
    prompt: str = Field(description="The prompt that was used, after any expansion.")


class CheckOutput(BaseModel):
    """The result of a trainer's check: its dataset can be trained on."""

    ok: Literal[True]
    samples: int = Field(description="How many training samples the archive gives.")
    warnings: list[str] = Field(description="Of the dataset, and of each clip by its name.")
    report: dict[str, Any] = Field(description="What became of every file.")
    debug_dataset: File | None = Field(
        None, description="Archive of the prepared clips; only when `debug_dataset` was true."
    )


class SourceCheckOutput(BaseModel):
    """The result of a generation's check: its source and its LoRAs can be used."""

    ok: Literal[True]
    notes: list[str] = Field(description="How the source lies in the canvas, and what is unusual.")
    report: dict[str, Any] = Field(description="What the source and the LoRAs are.")
    estimate: dict[str, Any] = Field(description="As `/estimate` has it, for this very source.")
