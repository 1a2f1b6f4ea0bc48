"""fal's trainer pages as tables of fields, and the gateway's OpenAPI in the same form.

A field is what JSON Schema says of it: type, default, range, choices. Lengths of text are ours (the
pages give none) and left out.
"""

from typing import Any

from app.modes import common
from tests.app.conftest import Gateway

Table = dict[str, dict[str, Any]]

FACTS = (
    "type",
    "format",
    "default",
    "enum",
    "minimum",
    "maximum",
    "multipleOf",
    "minItems",
    "maxItems",
    "items",
)

URL: dict[str, Any] = {"type": "string", "format": "uri", "required": True}
PROMPT: dict[str, Any] = {"type": "string", "required": True}


def integer(default: int, minimum: int, maximum: int, **more: Any) -> dict[str, Any]:
    return {
        "type": "integer",
        "default": default,
        "minimum": minimum,
        "maximum": maximum,
        **more,
    }


def number(default: float, minimum: float, maximum: float) -> dict[str, Any]:
    return {"type": "number", "default": default, "minimum": minimum, "maximum": maximum}


def choice(default: str, *choices: str) -> dict[str, Any]:
    return {"type": "string", "default": default, "enum": list(choices)}


def boolean(default: bool) -> dict[str, Any]:
    return {"type": "boolean", "default": default}


def entries(**fields: dict[str, Any]) -> dict[str, Any]:
    """``validation``: a list of at most two objects."""
    return {"type": "array", "default": [], "maxItems": 2, "items": fields}


COMMON: Table = {
    "training_data_url": URL,
    "trigger_phrase": {"type": "string", "default": ""},
    "rank": {"type": "integer", "default": 32, "enum": [8, 16, 32, 64, 128]},
    "number_of_steps": integer(2000, 100, 20_000),
    "learning_rate": number(0.0002, 1e-8, 0.1),  # the pages give no range
    "number_of_frames": integer(89, 9, 121),
    "frame_rate": integer(24, 8, 60),
    "resolution": choice("medium", "low", "medium", "high"),
    "aspect_ratio": choice("1:1", "16:9", "1:1", "9:16"),
    "auto_scale_input": boolean(False),
    "split_input_into_scenes": boolean(True),
    "split_input_duration_threshold": number(30.0, 1.0, 60.0),
    "validation_negative_prompt": {"type": "string", "default": common.DEFAULT_NEGATIVE_PROMPT},
    "validation_number_of_frames": integer(89, 9, 121),
    "validation_frame_rate": integer(24, 8, 60),
    "validation_resolution": choice("high", "low", "medium", "high"),
    "validation_aspect_ratio": choice("1:1", "16:9", "1:1", "9:16"),
    "stg_scale": number(1.0, 0.0, 3.0),
    "debug_dataset": boolean(False),
}
"""On every page."""

AUDIO: Table = {"audio_normalize": boolean(True), "audio_preserve_pitch": boolean(True)}


def served(gateway: Gateway, path: str) -> Table:
    """The input of ``POST /{path}``, read out of the gateway's OpenAPI document."""
    document = gateway.client.get("/openapi.json").json()
    body = document["paths"][f"/{path}"]["post"]["requestBody"]
    assert body["required"]
    return _fields(document, body["content"]["application/json"]["schema"])


def _fields(document: dict[str, Any], schema: dict[str, Any]) -> Table:
    schema = _resolved(document, schema)
    required = schema.get("required", [])
    return {
        name: {
            **_facts(document, property),
            **({"required": True} if name in required else {}),
        }
        for name, property in schema["properties"].items()
    }


def _facts(document: dict[str, Any], property: dict[str, Any]) -> dict[str, Any]:
    facts = {name: property[name] for name in FACTS if name in property}
    if "anyOf" in property:
        # An object's name stands for it; its own fields have a test of their own.
        options = property["anyOf"]
        facts["type"] = [o.get("type") or o["$ref"].rpartition("/")[2] for o in options]
        facts |= {name: o[name] for o in options for name in FACTS[3:] if name in o}
    if "$ref" in facts.get("items", {}):
        facts["items"] = _fields(document, facts["items"])
    return facts


def _resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document
    for part in schema["$ref"].removeprefix("#/").split("/"):
        found = found[part]
    return found
