"""`/inpaint`: bad and good bodies through HTTP, and what a request means."""

from typing import Any

import pytest

from app import modes
from preprocessing.rules import AudioPolicy
from tests.app.asking import (
    MASKED,
    MISSING,
    PROMPT,
    VIDEO,
    Bad,
    accepted,
    check_refused,
    parsed,
    wrong,
    wrong_entry,
)
from tests.app.conftest import Gateway
from trainer.spec import SampleMask

PATH = "inpaint"
MODE = modes.by_path(PATH)


def with_url(name: str, url: Any, type: str, says: str = "") -> Bad:
    return wrong_entry({**MASKED, name: url}, name, type, says)


BAD = [
    wrong("training_data_url", MISSING, "missing", "required"),
    wrong("number_of_steps", 99, "greater_than_equal", "100"),
    wrong("number_of_steps", 20_001, "less_than_equal", "20000"),
    wrong("number_of_frames", 8, "greater_than_equal", "9"),
    wrong("split_input_into_scenes", 0, "bool_type", "boolean"),
    wrong("split_input_duration_threshold", 61, "less_than_equal", "60"),
    wrong("validation", None, "list_type", "array"),
    wrong("validation", MASKED, "list_type", "array"),
    wrong("validation", ["https://a/b"], "model_type", loc="validation.0"),
    wrong("validation", [MASKED] * 3, "sequence_too_long", "2"),
    wrong("validation", [MASKED, VIDEO], "missing", loc="validation.1.mask_url"),
    wrong_entry(VIDEO, "mask_url", "missing", "required"),
    wrong_entry({**PROMPT, "mask_url": "https://a/b"}, "video_url", "missing", "required"),
    wrong_entry({**MASKED, "prompt": None}, "prompt", "string_type"),
    wrong_entry({**MASKED, "prompt": "x" * 900_000}, "prompt", "string_too_long", "5000"),
    with_url("mask_url", None, "string_type"),
    with_url("mask_url", 7, "string_type"),
    with_url("mask_url", [], "string_type"),
    with_url("mask_url", "mask.png", "url_scheme", "https://"),
    with_url("mask_url", "file:///mask.png", "url_scheme", "https://"),
    with_url("mask_url", "https://a/\u202e\x00", "value_error", "U+0000"),
    with_url("video_url", "", "url_scheme", "https://"),
    with_url("video_url", "https://a/b c", "url_parsing", "spaces"),
    with_url("video_url", "https://a/" + "x" * 900_000, "string_too_long", "8192"),
]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.id)
def test_refused(shared_gateway: Gateway, bad: Bad) -> None:
    check_refused(shared_gateway, PATH, bad)


GOOD: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("steps between hundreds", {"number_of_steps": 150}, {"number_of_steps": 150}),
    ("90 frames", {"number_of_frames": 90}, {"number_of_frames": 89}),
    ("no previews", {"validation": MISSING}, {"validation": []}),
    ("the same preview twice", {"validation": [MASKED] * 2}, {"validation": [MASKED] * 2}),
    ("no splitting by default", {}, {"split_input_into_scenes": False}),
    ("splitting", {"split_input_into_scenes": True}, {"split_input_into_scenes": True}),
]


@pytest.mark.parametrize(("changes", "stored"), [r[1:] for r in GOOD], ids=[r[0] for r in GOOD])
def test_accepted(shared_gateway: Gateway, changes: dict[str, Any], stored: dict[str, Any]) -> None:
    kept = accepted(shared_gateway, PATH, changes)
    assert {name: kept[name] for name in stored} == stored


def test_sound_is_no_field_of_it(shared_gateway: Gateway) -> None:
    kept = accepted(shared_gateway, PATH, {"with_audio": "?", "audio_normalize": 7})
    assert not [name for name in kept if "audio" in name]


@pytest.mark.parametrize("splitting", [True, False])
def test_what_it_asks_of_an_archive(splitting: bool) -> None:
    rule = MODE.dataset_rule(parsed(PATH, split_input_into_scenes=splitting))
    assert rule.masks
    assert rule.unique_names
    assert not rule.split_scenes
    assert rule.audio == AudioPolicy.OFF
    assert rule.video_extensions == (".mp4", ".mov", ".avi", ".mkv", ".webm")
    assert rule.image_extensions == ()


def test_what_it_trains_and_previews() -> None:
    request = parsed(PATH)
    assert MODE.training_spec(request).conditions == (SampleMask(),)
    rule = MODE.validation_rule(request)
    assert (rule.masks, rule.with_audio, rule.anchor) == (True, False, "start")
    (source,) = MODE.validation_sources(request)
    assert source.video_url == "https://example.com/source.mp4"
    assert source.mask_url == "https://example.com/mask.png"
