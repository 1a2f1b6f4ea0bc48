"""`/extend-prefix`: its fields, bad and good bodies through HTTP, and what a request means."""

from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from pydantic import ValidationError

from app import modes
from preprocessing.rules import AudioPolicy
from tests.app import pages
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
from trainer.spec import Prefix

PATH = "extend-prefix"
MODE = modes.by_path(PATH)
KEPT, FRAMES, PREVIEW_FRAMES = (
    "conditioning_frames",
    "number_of_frames",
    "validation_number_of_frames",
)


def test_as_the_protocol_has_it(shared_gateway: Gateway) -> None:
    assert pages.served(shared_gateway, PATH) == {
        **pages.COMMON,
        **pages.AUDIO,
        KEPT: pages.integer(9, 9, 121),
        "with_audio": pages.boolean(False),
        "validation": pages.entries(prompt=pages.PROMPT, video_url=pages.URL),
    }
    assert MODE.price_per_unit == Decimal("0.0061")


BAD = [
    wrong(KEPT, 1, "greater_than_equal", "9"),
    wrong(KEPT, 8, "greater_than_equal", "9"),
    wrong(KEPT, 10, "value_error", "use 9 or 17"),
    wrong(KEPT, 16, "value_error", "use 9 or 17"),
    wrong(KEPT, 120, "value_error", "use 113 or 121"),
    wrong(KEPT, 122, "less_than_equal", "121"),
    wrong(KEPT, 9.0, "int_type", "integer"),
    wrong(KEPT, "9", "int_type", "integer"),
    Bad("89 of 89", {KEPT: 89, PREVIEW_FRAMES: 121}, KEPT, "less_than", "to 97"),
    Bad("9 of 9", {FRAMES: 9}, KEPT, "less_than", "raise number_of_frames to 17"),
    Bad("the whole preview", {KEPT: 17, PREVIEW_FRAMES: 24}, PREVIEW_FRAMES, "greater_than", "25"),
    wrong("with_audio", None, "bool_type", "boolean"),
    wrong_entry(PROMPT, "video_url", "missing", "required"),
]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.id)
def test_refused(shared_gateway: Gateway, bad: Bad) -> None:
    check_refused(shared_gateway, PATH, bad)


def test_advice_stays_within_the_limits(shared_gateway: Gateway) -> None:
    details = refused(shared_gateway, PATH, {KEPT: 121, FRAMES: 121, PREVIEW_FRAMES: 121})
    assert len(details) == 2
    for detail in details:
        assert detail["msg"].endswith("Lower conditioning_frames.")


GOOD: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("the default", {KEPT: MISSING, "with_audio": MISSING}, {KEPT: 9, "with_audio": False}),
    ("81 of 89", {KEPT: 81}, {KEPT: 81}),
    ("9 of 17", {FRAMES: 17, PREVIEW_FRAMES: 24}, {FRAMES: 17, PREVIEW_FRAMES: 17}),
    ("two previews", {"validation": [VIDEO] * 2}, {"validation": [VIDEO] * 2}),
]


@pytest.mark.parametrize(("changes", "stored"), [r[1:] for r in GOOD], ids=[r[0] for r in GOOD])
def test_accepted(shared_gateway: Gateway, changes: dict[str, Any], stored: dict[str, Any]) -> None:
    kept = accepted(shared_gateway, PATH, changes)
    assert {name: kept[name] for name in stored} == stored


@pytest.mark.parametrize("frames", [9, 17, 89, 121])
def test_exactly_what_the_trainer_can_use_is_accepted(frames: int) -> None:
    geometry = VideoGeometry(frames, height=32, width=64, frame_rate=Fraction(24))
    for kept in range(9, 122, 8):
        latents = (kept - 1) // 8 + 1
        changes = {KEPT: kept, FRAMES: frames, PREVIEW_FRAMES: frames}
        try:
            (condition,) = MODE.training_spec(parsed(PATH, **changes)).conditions
        except ValidationError:
            with pytest.raises(ConditionError):
                keep_masks((Prefix(num_latent_frames=latents),), geometry, num_audio_tokens=None)
        else:
            video = keep_masks((condition,), geometry, num_audio_tokens=None).video
            assert video.sum().item() == latents * 2


@pytest.mark.parametrize(("kept", "latents"), [(9, 2), (17, 3), (25, 4), (81, 11)])
def test_the_first_latent_frame_is_one_pixel_frame(kept: int, latents: int) -> None:
    request = parsed(PATH, **{KEPT: kept})
    assert MODE.training_spec(request).conditions == (Prefix(num_latent_frames=latents),)
    rule = MODE.validation_rule(request)
    assert (rule.anchor, rule.min_frames) == ("start", kept)


@pytest.mark.parametrize(
    ("with_audio", "policy"), [(True, AudioPolicy.REQUIRED), (False, AudioPolicy.OFF)]
)
def test_sound(with_audio: bool, policy: AudioPolicy) -> None:
    request = parsed(PATH, with_audio=with_audio)
    assert MODE.dataset_rule(request).audio == policy
    assert MODE.validation_rule(request).with_audio == with_audio
