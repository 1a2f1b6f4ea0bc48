"""Every mode of the registry, whatever it is called, through the same checks."""

import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from app import modes
from app.modes.base import AnyGeneration, AnyMode, AnyTraining
from app.modes.canvas import Canvas
from preprocessing.rules import AudioPolicy
from tests.app.asking import GENERATIONS, TRAININGS, example
from tests.app.conftest import Gateway, row

every_mode = pytest.mark.parametrize("mode", modes.all(), ids=lambda mode: mode.path)
every_training = pytest.mark.parametrize("mode", TRAININGS, ids=lambda mode: mode.path)
every_generation = pytest.mark.parametrize("mode", GENERATIONS, ids=lambda mode: mode.path)


def post(gateway: Gateway, path: str, body: dict[str, Any]) -> Any:
    return gateway.client.post(f"/{path}", json=body)


@every_mode
def test_it_is_whole(mode: AnyMode) -> None:
    assert modes.by_path(mode.path) is mode
    assert mode.id == f"{mode.app}/{mode.path}"
    assert mode.app.count("/") == 1
    assert mode.price_per_unit > Decimal(0)
    assert mode.title
    assert mode.summary
    schema = mode.request_model.model_json_schema()
    for part in (schema, *schema["$defs"].values()):
        for name, field in part["properties"].items():
            assert field.get("description"), f"{part['title']}.{name} has no help text"


@every_mode
def test_its_example_is_accepted_and_stored_as_sent(gateway: Gateway, mode: AnyMode) -> None:
    body = example(mode)
    for path in (mode.path, mode.id):
        reply = post(gateway, path, body)
        assert reply.status_code == 200, reply.text
        stored = row(gateway.database, reply.json()["request_id"])
        assert (stored.mode, stored.endpoint) == (mode.path, mode.id)
        assert {name: stored.input[name] for name in body} == body
        request = mode.parse(stored.input)
        assert request.model_dump(mode="json") == stored.input


REFUSED: list[tuple[str, dict[str, Any], list[str | int], str]] = [
    ("no archive", {"training_data_url": None}, ["training_data_url"], "string_type"),
    ("no steps", {"number_of_steps": 0}, ["number_of_steps"], "greater_than_equal"),
    ("20,100 steps", {"number_of_steps": 20_100}, ["number_of_steps"], "less_than_equal"),
    ("rank 33", {"rank": 33}, ["rank"], "literal_error"),
    ("121 frames and one", {"number_of_frames": 122}, ["number_of_frames"], "less_than_equal"),
    ("text for a rate", {"frame_rate": "24"}, ["frame_rate"], "int_type"),
    ("no learning", {"learning_rate": 0}, ["learning_rate"], "greater_than_equal"),
    ("guidance 4", {"stg_scale": 4}, ["stg_scale"], "less_than_equal"),
    ("4:3", {"aspect_ratio": "4:3"}, ["aspect_ratio"], "literal_error"),
]


@every_training
@pytest.mark.parametrize(
    ("change", "loc", "type"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_what_no_training_takes(
    shared_gateway: Gateway,
    mode: AnyTraining,
    change: dict[str, Any],
    loc: list[str | int],
    type: str,
) -> None:
    reply = post(shared_gateway, mode.path, {**example(mode), **change})
    assert reply.status_code == 422
    (detail,) = reply.json()["detail"]
    assert detail["loc"] == ["body", *loc]
    assert detail["type"] == type
    assert reply.headers["x-fal-billable-units"] == "0"


@every_training
def test_three_previews_are_too_many(shared_gateway: Gateway, mode: AnyTraining) -> None:
    body = example(mode)
    body["validation"] *= 3
    (detail,) = post(shared_gateway, mode.path, body).json()["detail"]
    assert detail["loc"] == ["body", "validation"]
    assert detail["type"] == "sequence_too_long"
    assert detail["ctx"] == {"max_length": 2}


@every_training
def test_every_part_of_a_preview_is_required(shared_gateway: Gateway, mode: AnyTraining) -> None:
    (entry,) = example(mode)["validation"]
    for missing in entry:
        broken = {name: value for name, value in entry.items() if name != missing}
        body = {**example(mode), "validation": [entry, broken]}
        (detail,) = post(shared_gateway, mode.path, body).json()["detail"]
        assert detail["loc"] == ["body", "validation", 1, missing]
        assert detail["type"] == "missing"


@every_training
def test_one_request_means_the_same_everywhere(mode: AnyTraining) -> None:
    request = mode.request_model.model_validate(
        {
            **example(mode),
            "trigger_phrase": " tr1gger ",
            "rank": 8,
            "number_of_steps": 300,
            "learning_rate": 0.001,
            "number_of_frames": 96,
            "frame_rate": 30,
            "auto_scale_input": True,
            "validation_number_of_frames": 56,
            "validation_frame_rate": 12,
            "validation_resolution": "medium",
            "validation_negative_prompt": "bad",
            "stg_scale": 0.0,
        }
    )
    rule, spec = mode.dataset_rule(request), mode.training_spec(request)
    assert (rule.num_frames, rule.frame_rate, rule.width, rule.height) == (89, 30, 768, 768)
    assert rule.auto_scale
    assert rule.trigger_phrase == spec.trigger_phrase == "tr1gger"
    assert spec.training_type == mode.path
    assert (spec.rank, spec.num_steps, spec.learning_rate) == (8, 300, 0.001)
    previews = spec.validation
    assert [prompt.prompt for prompt in previews.prompts] == [
        entry.prompt for entry in request.validation
    ]
    assert (previews.num_frames, previews.frame_rate) == (49, 12)
    assert (previews.width, previews.height) == (768, 768)
    assert (previews.negative_prompt, previews.stg_scale) == ("bad", 0)
    assert mode.billable_units(request) == 300


@every_training
def test_sources_go_with_the_previews(mode: AnyTraining) -> None:
    body = example(mode)
    (entry,) = body["validation"]
    request = mode.request_model.model_validate(
        {**body, "validation": [entry, {**entry, "prompt": "another"}]}
    )
    rule, sources = mode.validation_rule(request), mode.validation_sources(request)
    previews = mode.training_spec(request).validation
    if rule is None:
        assert sources == []
        assert "video_url" not in entry
        return
    assert [source.video_url for source in sources] == [entry["video_url"]] * 2
    assert [source.mask_url for source in sources] == [entry.get("mask_url")] * 2
    assert rule.masks == ("mask_url" in entry)
    assert (rule.width, rule.height) == (previews.width, previews.height)
    assert (rule.num_frames, rule.frame_rate) == (previews.num_frames, previews.frame_rate)
    assert not rule.with_audio or mode.dataset_rule(request).audio == AudioPolicy.REQUIRED


@every_training
def test_without_previews_nothing_is_fetched(mode: AnyTraining) -> None:
    request = mode.request_model.model_validate({**example(mode), "validation": []})
    assert mode.validation_rule(request) is None
    assert mode.validation_sources(request) == []


@every_training
def test_a_training_is_billed_by_its_steps(mode: AnyTraining) -> None:
    for steps, units in ((100, 100), (300, 300), (20_000, 20_000)):
        body = {**example(mode), "number_of_steps": steps}
        assert mode.billable_units(mode.request_model.model_validate(body)) == units


@every_generation
def test_a_generation_is_billed_by_its_pixels(mode: AnyGeneration) -> None:
    units = mode.billable_units(Canvas(1280, 720), 121)
    assert (units, round(mode.price_per_unit * units, 4)) == (112, Decimal("0.2696"))


@every_generation
def test_a_generation_says_what_it_needs(mode: AnyGeneration) -> None:
    """An estimate without the stand-ins is one of the same request."""
    body = example(mode)
    assert mode.stand_ins.keys() == set(mode.request_model.model_json_schema()["required"])
    request = mode.request_model.model_validate({**body, "seed": None})
    spec = mode.generation_spec(request, Canvas(640, 384), 7, ())
    assert (spec.width, spec.height, spec.seed, spec.loras) == (640, 384, 7, ())
    assert (spec.num_frames, spec.frame_rate) == (request.num_frames, request.frame_rate)
    assert spec.prompt == body["prompt"]


def test_paths_ids_and_titles_are_unique() -> None:
    for names in zip(*((mode.path, mode.id, mode.title) for mode in modes.all()), strict=True):
        assert len(set(names)) == len(modes.all())


PRICES = {
    "t2v": "0.006",
    "inpaint": "0.0024",
    "outpaint": "0.006",
    "extend-suffix": "0.0061",
    "outpaint/lora": "0.0024075",
}


@pytest.mark.parametrize(("path", "price"), PRICES.items())
def test_prices(path: str, price: str) -> None:
    assert modes.by_path(path).price_per_unit == Decimal(price)


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose files the registry finds beside its own."""
    monkeypatch.setattr(modes, "__path__", [*modes.__path__, str(tmp_path)])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("app.modes."):
            del sys.modules[name]


def test_a_new_file_is_a_new_mode(found: Path) -> None:
    (found / "a_mode.py").write_text(
        "import dataclasses\n"
        "from app.modes import t2v\n"
        "MODE = dataclasses.replace(t2v.MODE, path='new', id='fal-ai/ltx23-trainer-v2/new')\n"
    )
    (found / "b_helper.py").write_text("LIMIT = 1\n")
    assert [mode.path for mode in modes._found().values()] == [
        "new",
        *(mode.path for mode in modes.all()),
    ]


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("from app.modes.t2v import MODE", ValueError, "'t2v' is taken"),
        ("MODE = 't3v'", TypeError, "must be a Mode, not 't3v'"),
    ],
    ids=["a taken path", "no mode"],
)
def test_files_that_are_refused(
    found: Path, source: str, error: type[Exception], message: str
) -> None:
    (found / "z_mode.py").write_text(source)
    with pytest.raises(error, match=message):
        modes._found()
