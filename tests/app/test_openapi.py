"""OpenAPI of each endpoint beside the tables of fal's pages: no difference."""

import json
from typing import Any

import pytest

from app import modes
from tests.app.conftest import Gateway
from tests.app.pages import AUDIO, COMMON, PROMPT, URL, Table, boolean, entries, integer, served

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
}


@pytest.mark.parametrize(("path", "num_fields"), list(zip(PAGES, (23, 20, 22, 24), strict=True)))
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
