"""OpenAPI of each endpoint beside the tables of fal's pages: no difference."""

import json
from typing import Any

import pytest

from app import modes
from app.modes import generation
from tests.app.conftest import Gateway
from tests.app.pages import (
    AUDIO,
    COMMON,
    PROMPT,
    URL,
    Table,
    boolean,
    choice,
    entries,
    integer,
    number,
    served,
)

CORNER: dict[str, Any] = {
    "type": "array",
    "items": {"type": "integer"},
    "minItems": 2,
    "maxItems": 2,
    "required": True,
}

PAGES: dict[str, Table] = {
    "t2v": {
        **COMMON,
        **AUDIO,
        "number_of_steps": integer(2000, 100, 20_000, multipleOf=100),
        "with_audio": {"type": ["boolean", "null"], "default": None},
        "validation": entries(prompt=PROMPT),
    },
    "inpaint": {
        **COMMON,
        "split_input_into_scenes": boolean(False),
        "validation": entries(prompt=PROMPT, video_url=URL, mask_url=URL),
    },
    "outpaint": {
        **COMMON,
        "crop_top_left": CORNER,
        "crop_bottom_right": CORNER,
        "validation": entries(prompt=PROMPT, video_url=URL),
    },
    "extend-suffix": {
        **COMMON,
        **AUDIO,
        "conditioning_frames": integer(8, 8, 121, multipleOf=8),
        "with_audio": boolean(False),
        "validation": entries(prompt=PROMPT, video_url=URL),
    },
    "outpaint/lora": {
        "prompt": PROMPT,
        "video_url": URL,
        "resolution": {
            "type": ["ImageSize", "string"],
            "default": "landscape_16_9",
            "enum": [
                *("square_hd", "square", "portrait_4_3", "portrait_16_9"),
                *("landscape_4_3", "landscape_16_9", "auto"),
            ],
        },
        "aspect_ratio": choice("16:9", "21:9", "16:9", "4:3", "1:1", "3:4", "9:16", "9:21"),
        "output_resolution": choice("720p", "480p", "720p", "1080p"),
        "source_scale": number(0.75, 0.25, 1),
        "video_strength": number(1, 0, 1),
        "num_frames": integer(121, 9, 481),
        "frames_per_second": number(24, 1, 60),
        "num_inference_steps": integer(15, 8, 30),
        "guidance_scale": number(1, 1, 20),
        "generate_audio": boolean(True),
        "negative_prompt": {"type": "string", "default": generation.NEGATIVE_PROMPT},
        # The page gives no range; this one is ours.
        "seed": {**integer(0, 0, 2**53 - 1), "type": ["integer", "null"], "default": None},
        "enable_prompt_expansion": boolean(True),
        "enable_safety_checker": boolean(True),
        "video_quality": choice("high", "low", "medium", "high", "maximum"),
        "video_write_mode": choice("balanced", "fast", "balanced", "small"),
        "sync_mode": boolean(False),
        "loras": {
            "type": "array",
            "minItems": 1,
            "maxItems": 3,
            "required": True,
            "items": {
                "path": URL,
                "scale": number(1, -4, 4),  # ours, too
                "transformer": choice("both", "both", "high", "low"),
            },
        },
    },
}


@pytest.mark.parametrize(
    ("path", "num_fields"), list(zip(PAGES, (23, 20, 22, 24, 20), strict=True))
)
def test_as_the_page_has_it(shared_gateway: Gateway, path: str, num_fields: int) -> None:
    assert served(shared_gateway, path) == PAGES[path]
    assert len(PAGES[path]) == num_fields


@pytest.mark.parametrize("mode", modes.all(), ids=lambda mode: mode.path)
def test_both_urls_take_the_same(shared_gateway: Gateway, mode: Any) -> None:
    assert served(shared_gateway, mode.id) == served(shared_gateway, mode.path)


def test_no_mode_overwrites_the_schemas_of_another() -> None:
    seen: dict[str, Any] = {}
    for mode in modes.all():
        schema = mode.request_model.model_json_schema()
        for name, part in (schema.pop("$defs") | {schema["title"]: schema}).items():
            assert seen.setdefault(name, part) == part, f"{mode.path}: {name} means two things"


def test_every_reference_leads_somewhere(shared_gateway: Gateway) -> None:
    document = shared_gateway.client.get("/openapi.json").json()
    references = set()

    def collect(found: dict[str, Any]) -> dict[str, Any]:
        references.add(found.get("$ref"))
        return found

    json.loads(json.dumps(document), object_hook=collect)
    components = document["components"]
    known = {f"#/components/{kind}/{name}" for kind in components for name in components[kind]}
    assert references - {None} <= known
    assert len(references) > len(modes.all())
