"""The fields that all modes share, on t2v: defaults, ranges, types (`fal-protocol.md` 3.1)."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from app import modes
from app.errors import InvalidInput
from app.modes import common
from app.requests import files
from preprocessing import manifest
from preprocessing.rules import AudioPolicy

URL = "https://example.com/clips.zip"
T2V = modes.by_path("t2v")

DEFAULTS = {
    "trigger_phrase": "",
    "rank": 32,
    "number_of_steps": 2000,
    "learning_rate": 0.0002,
    "number_of_frames": 89,
    "frame_rate": 24,
    "resolution": "medium",
    "aspect_ratio": "1:1",
    "auto_scale_input": False,
    "split_input_into_scenes": True,
    "split_input_duration_threshold": 30.0,
    "with_audio": None,
    "audio_normalize": True,
    "audio_preserve_pitch": True,
    "validation": [],
    "validation_negative_prompt": common.DEFAULT_NEGATIVE_PROMPT,
    "validation_number_of_frames": 89,
    "validation_frame_rate": 24,
    "validation_resolution": "high",
    "validation_aspect_ratio": "1:1",
    "stg_scale": 1.0,
    "debug_dataset": False,
}
"""All 23 fields but the required one, as the page has them."""


def parse(**fields: Any) -> Any:
    return T2V.request_model.model_validate_json(json.dumps({"training_data_url": URL, **fields}))


def test_t2v_has_the_pages_23_fields_and_defaults() -> None:
    assert parse().model_dump() == {"training_data_url": URL, **DEFAULTS}
    assert len(T2V.request_model.model_fields) == 23


def test_only_the_archive_is_required() -> None:
    required = [
        name for name, field in T2V.request_model.model_fields.items() if field.is_required()
    ]
    assert required == ["training_data_url"]


def test_negative_prompt_is_that_of_diffusers() -> None:
    utils = pytest.importorskip("diffusers.pipelines.ltx2.utils")
    assert common.DEFAULT_NEGATIVE_PROMPT == utils.DEFAULT_NEGATIVE_PROMPT


GOOD = [
    ("rank", 8),
    ("rank", 128),
    ("number_of_steps", 100),
    ("number_of_steps", 20_000),
    ("learning_rate", 1e-8),
    ("learning_rate", 0.1),
    ("number_of_frames", 9),
    ("number_of_frames", 121),
    ("frame_rate", 8),
    ("frame_rate", 60),
    ("split_input_duration_threshold", 1),
    ("split_input_duration_threshold", 60.0),
    ("with_audio", True),
    ("with_audio", False),
    ("stg_scale", 0),
    ("stg_scale", 3.0),
    ("validation", [{"prompt": "a"}, {"prompt": "b", "video_url": "ignored"}]),
    ("trigger_phrase", "x" * 500),
    ("validation_negative_prompt", "a\nb"),
    ("training_data_url", "http://user:pw@127.0.0.1:8000/files/a.zip?x=%20#y"),
    ("trigger_phrase", "日本語 \U0001f600"),
]


@pytest.mark.parametrize(("field", "value"), GOOD, ids=lambda value: str(value)[:30])
def test_accepted(field: str, value: Any) -> None:
    kept = getattr(parse(**{field: value}), field)
    if field != "validation":
        assert kept == value


BAD: list[tuple[str, Any, str]] = [
    # A9: integers are integers
    ("number_of_steps", 99, "multiple_of"),
    ("number_of_steps", 20_001, "multiple_of"),
    ("number_of_steps", 20_100, "less_than_equal"),
    ("number_of_steps", 150, "multiple_of"),
    ("number_of_steps", 2000.0, "int_type"),
    ("number_of_steps", 2000.5, "int_type"),
    ("number_of_steps", "2000", "int_type"),
    ("number_of_steps", True, "int_type"),
    ("number_of_steps", None, "int_type"),
    ("number_of_steps", -(2**63) - 1, "multiple_of"),
    # A10
    ("rank", 7, "literal_error"),
    ("rank", 33, "literal_error"),
    ("rank", 32.0, "int_type"),
    ("rank", "32", "int_type"),
    ("rank", True, "int_type"),
    ("resolution", "MEDIUM", "literal_error"),
    ("resolution", 1, "literal_error"),
    ("aspect_ratio", "1:1 ", "literal_error"),
    ("aspect_ratio", "4:3", "literal_error"),
    ("validation_resolution", "ultra", "literal_error"),
    ("validation_aspect_ratio", None, "literal_error"),
    # A11
    ("number_of_frames", 8, "greater_than_equal"),
    ("number_of_frames", 122, "less_than_equal"),
    ("number_of_frames", 89.0, "int_type"),
    ("validation_number_of_frames", 0, "greater_than_equal"),
    ("frame_rate", 7, "greater_than_equal"),
    ("frame_rate", 61, "less_than_equal"),
    ("frame_rate", "24", "int_type"),
    ("validation_frame_rate", 23.976, "int_type"),
    # A12
    ("learning_rate", 0, "greater_than_equal"),
    ("learning_rate", -1e-4, "greater_than_equal"),
    ("learning_rate", 1e-300, "greater_than_equal"),
    ("learning_rate", 1, "less_than_equal"),
    ("learning_rate", 1e6, "less_than_equal"),
    ("learning_rate", "0.0002", "float_type"),
    ("learning_rate", True, "float_type"),
    ("split_input_duration_threshold", 0.9, "greater_than_equal"),
    ("split_input_duration_threshold", 60.1, "less_than_equal"),
    ("stg_scale", -0.1, "greater_than_equal"),
    ("stg_scale", 3.01, "less_than_equal"),
    # booleans
    ("auto_scale_input", 1, "bool_type"),
    ("auto_scale_input", "true", "bool_type"),
    ("split_input_into_scenes", None, "bool_type"),
    ("with_audio", "auto", "bool_type"),
    ("audio_normalize", "yes", "bool_type"),
    ("audio_preserve_pitch", 0, "bool_type"),
    ("debug_dataset", [], "bool_type"),
    # A13
    ("validation", [{"prompt": str(n)} for n in range(3)], "sequence_too_long"),
    ("validation", None, "list_type"),
    ("validation", {}, "list_type"),
    ("validation", [{}], "missing"),
    ("validation", ["a prompt"], "model_type"),
    ("validation", [{"prompt": None}], "string_type"),
    ("validation", [{"prompt": "x" * 5_001}], "string_too_long"),
    # A6, A14
    ("trigger_phrase", "x" * 501, "string_too_long"),
    ("trigger_phrase", "\U0001f600" * 10_000, "string_too_long"),
    ("trigger_phrase", "a\x00b", "value_error"),
    ("trigger_phrase", "a\nb", "value_error"),
    ("trigger_phrase", "a\u2028b", "value_error"),
    ("trigger_phrase", "a\x85b", "value_error"),
    ("trigger_phrase", None, "string_type"),
    ("validation", [{"prompt": "a\x00"}], "value_error"),
    ("validation", [{"prompt": "\x1b[2J"}], "value_error"),
    ("validation_negative_prompt", "x" * 10_000, "string_too_long"),
    # the archive's address
    ("training_data_url", "", "url_scheme"),
    ("training_data_url", "clips.zip", "url_scheme"),
    ("training_data_url", "file:///etc/passwd", "url_scheme"),
    ("training_data_url", "ftp://example.com/a.zip", "url_scheme"),
    ("training_data_url", "https://", "url_parsing"),
    ("training_data_url", "https://[::1", "url_parsing"),
    ("training_data_url", "https://a:99999/x", "url_parsing"),
    ("training_data_url", "https://a b/x", "url_parsing"),
    ("training_data_url", "https://a\\@b/x", "url_parsing"),
    ("training_data_url", "https://a/x\r\nHost: b", "value_error"),
    ("training_data_url", "https://a/" + "x" * 8_192, "string_too_long"),
    ("training_data_url", 7, "string_type"),
    ("training_data_url", None, "string_type"),
]


@pytest.mark.parametrize(("field", "value", "type"), BAD, ids=lambda value: repr(value)[:40])
def test_refused(field: str, value: Any, type: str) -> None:
    with pytest.raises(ValidationError) as caught:
        parse(**{field: value})
    (detail,) = InvalidInput.of(caught.value).details
    assert detail["type"] == type
    assert detail["loc"][:2] == ["body", field]
    assert detail["url"].endswith(type)
    assert len(json.dumps(detail, allow_nan=False)) < 1_000


@pytest.mark.parametrize(
    ("field", "value", "ctx"),
    [
        ("number_of_steps", 0, {"ge": 100}),
        ("number_of_steps", 150, {"multiple_of": 100}),
        ("frame_rate", 61, {"le": 60}),
        ("validation", [{"prompt": "a"}] * 3, {"max_length": 2}),
        ("rank", 33, {"expected": "8, 16, 32, 64 or 128"}),
    ],
)
def test_ctx_says_what_would_be_right(field: str, value: Any, ctx: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        parse(**{field: value})
    assert InvalidInput.of(caught.value).details[0]["ctx"] == ctx


def test_every_default_survives_its_own_rules() -> None:
    request = parse(**DEFAULTS)
    assert T2V.parse(request.model_dump(mode="json")) == request


@pytest.mark.parametrize(("given", "used"), [(9, 9), (10, 9), (90, 89), (120, 113), (121, 121)])
def test_frames_are_snapped_down(given: int, used: int) -> None:
    request = parse(number_of_frames=given, validation_number_of_frames=given)
    assert T2V.dataset_rule(request).num_frames == used
    assert T2V.training_spec(request).validation.num_frames == used


@pytest.mark.parametrize(
    ("resolution", "sizes"),
    [
        ("low", [(512, 288), (512, 512), (288, 512)]),
        ("medium", [(768, 448), (768, 768), (448, 768)]),
        ("high", [(960, 544), (960, 960), (544, 960)]),
    ],
)
def test_pixel_sizes(resolution: str, sizes: list[tuple[int, int]]) -> None:
    for aspect_ratio, size in zip(("16:9", "1:1", "9:16"), sizes, strict=True):
        request = parse(
            resolution=resolution,
            aspect_ratio=aspect_ratio,
            validation_resolution=resolution,
            validation_aspect_ratio=aspect_ratio,
        )
        rule, previews = T2V.dataset_rule(request), T2V.training_spec(request).validation
        assert (rule.width, rule.height) == size
        assert (previews.width, previews.height) == size


@pytest.mark.parametrize(
    ("with_audio", "policy"),
    [(None, AudioPolicy.AUTO), (True, AudioPolicy.REQUIRED), (False, AudioPolicy.OFF)],
)
def test_audio_policy(with_audio: bool | None, policy: AudioPolicy) -> None:
    assert T2V.dataset_rule(parse(with_audio=with_audio)).audio == policy


def test_t2v_rule_and_spec_carry_the_request() -> None:
    request = parse(
        trigger_phrase="  tronl0g0 ",
        rank=8,
        number_of_steps=300,
        learning_rate=0.001,
        frame_rate=30,
        auto_scale_input=True,
        split_input_into_scenes=False,
        split_input_duration_threshold=5,
        audio_normalize=False,
        audio_preserve_pitch=False,
        validation=[{"prompt": "one"}, {"prompt": "two"}],
        validation_negative_prompt="bad",
        validation_frame_rate=12,
        stg_scale=0,
    )
    rule, spec = T2V.dataset_rule(request), T2V.training_spec(request)
    assert rule.trigger_phrase == spec.trigger_phrase == "tronl0g0"
    assert (rule.frame_rate, rule.auto_scale, rule.split_scenes) == (30, True, False)
    assert rule.split_threshold_s == 5.0
    assert (rule.audio_normalize, rule.audio_preserve_pitch) == (False, False)
    assert (spec.training_type, spec.rank, spec.num_steps) == ("t2v", 8, 300)
    assert (spec.learning_rate, spec.conditions) == (0.001, ())
    assert [entry.prompt for entry in spec.validation.prompts] == ["one", "two"]
    assert (spec.validation.negative_prompt, spec.validation.frame_rate) == ("bad", 12)
    assert spec.validation.stg_scale == 0


@pytest.mark.parametrize(("steps", "units"), [(100, 100), (2000, 2000)])
def test_billable_units(steps: int, units: int) -> None:
    assert T2V.billable_units(parse(number_of_steps=steps)) == units


def test_unknown_keys_are_ignored_and_the_last_of_two_counts() -> None:
    body = f'{{"training_data_url": "{URL}", "rank": 8, "__proto__": {{}}, "rank": 16}}'
    assert T2V.request_model.model_validate_json(body).rank == 16


def test_the_reports_name_is_that_of_preprocessing() -> None:
    assert files.REPORT_FILE == manifest.REPORT_FILE
