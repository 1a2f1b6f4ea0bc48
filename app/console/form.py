"""A form out of an endpoint's JSON schema: nothing here knows an endpoint by name.

Which drawing helps with which fields is told by what the endpoint conditions on
(`trainer.spec.Condition`): a rectangle, a mask, one end of a clip.
"""

from dataclasses import dataclass, field
from typing import Any, Final

from app.modes.base import AnyMode, AnyTraining, Training
from app.modes.common import FRAME_SIZES

ARCHIVE: Final = "training_data_url"
GROUPS: Final = (
    ("What it learns", ("trigger_phrase", "crop_top_left", "crop_bottom_right",
                        "conditioning_frames")),
    ("Training", ("number_of_steps", "rank", "learning_rate")),
    ("Clips", ("resolution", "aspect_ratio", "number_of_frames", "frame_rate", "with_audio",
               "auto_scale_input", "split_input_into_scenes", "split_input_duration_threshold",
               "audio_normalize", "audio_preserve_pitch", "debug_dataset")),
    ("Previews", ("validation", "validation_resolution", "validation_aspect_ratio",
                  "validation_number_of_frames", "validation_frame_rate", "stg_scale",
                  "validation_negative_prompt")),
)  # fmt: skip
"""Headings and the fields below them; what no group names comes under `OTHER`."""
WITHOUT_ARCHIVE: Final = (
    ("What to make", ("prompt", "video_url", "loras")),
    ("The video", ("resolution", "aspect_ratio", "output_resolution", "source_scale",
                   "video_strength", "num_frames", "frames_per_second", "generate_audio")),
)  # fmt: skip
"""The same where nothing is trained."""
OTHER: Final = "More"
ADVANCED: Final = frozenset(
    {
        "split_input_into_scenes", "split_input_duration_threshold", "audio_normalize",
        "audio_preserve_pitch", "debug_dataset", "validation_resolution",
        "validation_aspect_ratio", "validation_number_of_frames", "validation_frame_rate",
        "stg_scale", "validation_negative_prompt", "output_resolution",
    }
)  # fmt: skip
"""Shown on demand: their defaults are seldom changed."""
TRAIN_ONLY: Final = ("Training", "Previews")
"""Groups that a check of a dataset has no use for."""
LONG_TEXT: Final = 1_000
"""Fields that take so many characters get several lines."""


@dataclass(frozen=True)
class Field:
    """One input."""

    name: str
    kind: str
    """``text``, ``lines``, ``url``, ``integer``, ``number``, ``choice``, ``tristate``, ``yesno``,
    ``corner``, ``entries`` or ``lora``."""
    help: str
    default: Any
    required: bool
    choices: tuple[Any, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    step: float | None = None
    snaps_to: str = ""
    """``8k+1`` where the service snaps a count of frames down; empty else."""
    fields: "tuple[Field, ...]" = ()
    """Of an entry, where it is a list of them."""
    max_items: int | None = None
    advanced: bool = False


@dataclass(frozen=True)
class Group:
    title: str
    fields: tuple[Field, ...] = field(default_factory=tuple)

    @property
    def plain(self) -> tuple[Field, ...]:
        return tuple(one for one in self.fields if not one.advanced)

    @property
    def advanced(self) -> tuple[Field, ...]:
        return tuple(one for one in self.fields if one.advanced)


@dataclass(frozen=True)
class Form:
    archive: Field | None
    """The dataset, where the endpoint takes one."""
    groups: tuple[Group, ...]
    hint: str
    """What belongs into the dataset."""
    frame_sizes: dict[str, tuple[int, int]]
    """``resolution/aspect_ratio`` -> width and height in pixels."""


def form_of(mode: AnyMode, *, check: bool = False) -> Form:
    """The form of ``mode``; for a check of its dataset only what shapes that."""
    fields = {one.name: one for one in fields_of(mode.request_model.model_json_schema())}
    archive = fields.pop(ARCHIVE, None)
    groups = []
    for title, names in GROUPS if archive else WITHOUT_ARCHIVE:
        if found := tuple(fields.pop(name) for name in names if name in fields):
            groups.append(Group(title, found))
    if fields:
        groups.append(Group(OTHER, tuple(fields.values())))
    if check:
        groups = [group for group in groups if group.title not in TRAIN_ONLY]
    sizes = {f"{resolution}/{ratio}": size for (resolution, ratio), size in FRAME_SIZES.items()}
    return Form(archive, tuple(groups), _hint(mode) if isinstance(mode, Training) else "", sizes)


def _hint(mode: AnyTraining) -> str:
    """Out of the rule that the mode's own example asks of a dataset."""
    rule = mode.dataset_rule(_example(mode))
    clips = "Clips or images" if rule.image_extensions else "Clips"
    masks = (
        " for each its mask, named like it with _mask (an image or a video)," if rule.masks else ""
    )
    return f"{clips},{masks} and captions as .txt files of the same names."


def _example(mode: AnyMode) -> Any:
    return mode.request_model.model_validate(mode.request_model.model_json_schema()["examples"][0])


def fields_of(schema: dict[str, Any], definitions: dict[str, Any] | None = None) -> list[Field]:
    """One for each property of a JSON schema of an object."""
    definitions = definitions or schema.get("$defs", {})
    required = schema.get("required", ())
    return [
        _field(name, part, definitions, name in required)
        for name, part in schema["properties"].items()
    ]


def _field(name: str, part: dict[str, Any], definitions: dict[str, Any], required: bool) -> Field:
    whole = _resolved(part, definitions)
    nullable = any(option.get("type") == "null" for option in whole.get("anyOf", ()))
    options = [one for one in whole.get("anyOf", ()) if one.get("type") != "null"]
    if options:
        # Of a choice or something of one's own, the choice.
        option = next((one for one in options if "enum" in one), options[0])
        whole = {**_resolved(option, definitions), **whole}
    kind = _kind(whole, nullable)
    item = _resolved(whole.get("items", {}), definitions)
    return Field(
        name=name,
        kind=kind,
        help=whole.get("description", ""),
        default=whole.get("default"),
        required=required,
        choices=tuple(whole.get("enum", ())),
        minimum=whole.get("minimum", whole.get("exclusiveMinimum")),
        maximum=whole.get("maximum", whole.get("exclusiveMaximum")),
        step=whole.get("multipleOf") or (1 if kind == "integer" else None),
        snaps_to="8k+1" if "8k + 1" in whole.get("description", "") else "",
        fields=tuple(fields_of(item, definitions)) if kind == "entries" else (),
        max_items=whole.get("maxItems"),
        advanced=name in ADVANCED,
    )


def _kind(part: dict[str, Any], nullable: bool) -> str:
    if "enum" in part:
        return "choice"
    type = part.get("type")
    if type == "boolean":
        return "tristate" if nullable else "yesno"
    if type == "array":
        return "entries" if part.get("items", {}).keys() & {"$ref", "properties"} else "corner"
    if type in ("integer", "number"):
        return str(type)
    if part.get("format") == "uri":
        return "url"
    return "lines" if part.get("maxLength", 0) >= LONG_TEXT else "text"


def _resolved(part: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    reference = part.get("$ref") or next(
        (one["$ref"] for one in part.get("allOf", ()) if "$ref" in one), None
    )
    if reference is None:
        return part
    return {**definitions[reference.rpartition("/")[2]], **part}


def drawing_of(mode: AnyMode) -> str:
    """What is drawn over a frame of one's own clip: the kind of the mode's condition, or nothing.

    Asked of the mode's own example, which every mode has.
    """
    if not isinstance(mode, Training):
        return ""
    conditions = mode.training_spec(_example(mode)).conditions
    return str(conditions[0].kind) if conditions else ""
