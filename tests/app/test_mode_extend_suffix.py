"""`/extend-suffix`: the kept window in requests through HTTP, and what it becomes."""

from fractions import Fraction
from typing import Any

import pytest
from pydantic import ValidationError

from app import modes
from preprocessing.rules import AudioPolicy
from tests.app.asking import (
    MISSING,
    PROMPT,
    VIDEO,
    Bad,
    accepted,
    check_refused,
    parsed,
    refused,
    wrong,
    wrong_entry,
)
from tests.app.conftest import Gateway
from trainer.conditions import keep_masks
from trainer.errors import ConditionError
from trainer.latents import VideoGeometry
from trainer.spec import Suffix

PATH = "extend-suffix"
MODE = modes.by_path(PATH)
KEPT, FRAMES, PREVIEW_FRAMES = (
    "conditioning_frames",
    "number_of_frames",
    "validation_number_of_frames",
)

BAD = [
    wrong(KEPT, 0, "greater_than_equal", "8"),
    wrong(KEPT, -8, "greater_than_equal", "8"),
    wrong(KEPT, 9, "multiple_of", "8"),
    wrong(KEPT, 12, "multiple_of", "8"),
    wrong(KEPT, 121, "multiple_of", "8"),
    wrong(KEPT, 128, "less_than_equal", "121"),
    wrong(KEPT, 10**20, "less_than_equal", "121"),
    wrong(KEPT, 8.0, "int_type", "integer"),
    wrong(KEPT, "8", "int_type", "integer"),
    wrong(KEPT, True, "int_type", "integer"),
    wrong(KEPT, None, "int_type", "integer"),
    Bad(
        "the whole training clip",
        {KEPT: 96, PREVIEW_FRAMES: 121},
        KEPT,
        "less_than",
        "raise number_of_frames to 97",
    ),
    Bad("88 of 88", {KEPT: 88, FRAMES: 88}, KEPT, "less_than", "training clips of 81 frames"),
    Bad("16 of 16", {KEPT: 16, FRAMES: 16}, KEPT, "less_than", "raise number_of_frames to 17"),
    Bad("16 of 9", {KEPT: 16, FRAMES: 9}, KEPT, "less_than", "Lower conditioning_frames"),
    Bad(
        "the whole preview",
        {KEPT: 96, FRAMES: 121},
        PREVIEW_FRAMES,
        "greater_than",
        "raise validation_number_of_frames to 97",
    ),
    Bad(
        "previews nobody asked for",
        {KEPT: 24, PREVIEW_FRAMES: 24, "validation": []},
        PREVIEW_FRAMES,
        "greater_than",
        "Previews of 17 frames",
    ),
    wrong("with_audio", None, "bool_type", "boolean"),
    wrong("with_audio", 1, "bool_type", "boolean"),
    wrong("audio_normalize", None, "bool_type", "boolean"),
    wrong("audio_preserve_pitch", "yes", "bool_type", "boolean"),
    wrong("number_of_steps", 99, "greater_than_equal", "100"),
    wrong("validation", [VIDEO] * 3, "sequence_too_long", "2"),
    wrong_entry(PROMPT, "video_url", "missing", "required"),
    wrong_entry({**VIDEO, "video_url": ""}, "video_url", "url_scheme", "https://"),
    wrong_entry({**VIDEO, "video_url": {"url": "https://a/b"}}, "video_url", "string_type"),
]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.id)
def test_refused(shared_gateway: Gateway, bad: Bad) -> None:
    check_refused(shared_gateway, PATH, bad)


def test_both_counts_that_are_too_small_are_named(shared_gateway: Gateway) -> None:
    details = refused(shared_gateway, PATH, {KEPT: 96})
    assert [(detail["loc"], detail["ctx"]) for detail in details] == [
        (["body", KEPT], {"lt": 89}),
        (["body", PREVIEW_FRAMES], {"gt": 96}),
    ]


GOOD: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("the default", {KEPT: MISSING}, {KEPT: 8}),
    ("88 of 89", {KEPT: 88}, {KEPT: 88}),
    ("8 of 9", {FRAMES: 9, PREVIEW_FRAMES: 16}, {FRAMES: 9, PREVIEW_FRAMES: 9}),
    ("120 of 121", {KEPT: 120, FRAMES: 121, PREVIEW_FRAMES: 121}, {KEPT: 120}),
    ("90 frames", {FRAMES: 90}, {FRAMES: 89}),
    ("no sound by default", {"with_audio": MISSING}, {"with_audio": False}),
    ("sound", {"with_audio": True}, {"with_audio": True}),
    ("steps between hundreds", {"number_of_steps": 19_999}, {"number_of_steps": 19_999}),
    ("two previews", {"validation": [VIDEO] * 2}, {"validation": [VIDEO] * 2}),
]


@pytest.mark.parametrize(("changes", "stored"), [r[1:] for r in GOOD], ids=[r[0] for r in GOOD])
def test_accepted(shared_gateway: Gateway, changes: dict[str, Any], stored: dict[str, Any]) -> None:
    kept = accepted(shared_gateway, PATH, changes)
    assert {name: kept[name] for name in stored} == stored


@pytest.mark.parametrize("frames", [9, 17, 89, 121])
def test_exactly_what_the_trainer_can_use_is_accepted(frames: int) -> None:
    geometry = VideoGeometry(frames, height=32, width=64, frame_rate=Fraction(24))
    for kept in range(8, 121, 8):
        changes = {KEPT: kept, FRAMES: frames, PREVIEW_FRAMES: frames}
        try:
            (condition,) = MODE.training_spec(parsed(PATH, **changes)).conditions
        except ValidationError:
            with pytest.raises(ConditionError):
                keep_masks((Suffix(num_latent_frames=kept // 8),), geometry, num_audio_tokens=None)
        else:
            video = keep_masks((condition,), geometry, num_audio_tokens=None).video
            assert video.sum().item() == kept // 8 * 2


@pytest.mark.parametrize(("kept", "latents"), [(8, 1), (16, 2), (24, 3), (88, 11)])
def test_pixel_frames_are_not_latent_frames(kept: int, latents: int) -> None:
    request = parsed(PATH, **{KEPT: kept})
    assert MODE.training_spec(request).conditions == (Suffix(num_latent_frames=latents),)
    assert MODE.validation_rule(request).min_frames == kept


@pytest.mark.parametrize(
    ("with_audio", "policy"), [(True, AudioPolicy.REQUIRED), (False, AudioPolicy.OFF)]
)
def test_sound(with_audio: bool, policy: AudioPolicy) -> None:
    request = parsed(PATH, with_audio=with_audio, audio_normalize=False, audio_preserve_pitch=False)
    rule, previews = MODE.dataset_rule(request), MODE.validation_rule(request)
    assert (rule.audio, rule.audio_normalize, rule.audio_preserve_pitch) == (policy, False, False)
    assert (previews.with_audio, previews.audio_normalize) == (with_audio, False)


def test_what_it_asks_of_its_videos() -> None:
    request = parsed(PATH)
    rule = MODE.dataset_rule(request)
    assert rule.image_extensions == ()
    assert rule.video_extensions == (".mp4", ".mov", ".avi", ".mkv")
    assert rule.split_scenes
    assert (rule.masks, rule.unique_names) == (False, False)
    assert MODE.validation_rule(request).anchor == "end"
