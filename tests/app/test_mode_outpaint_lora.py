"""`/outpaint/lora`: its fields through HTTP, its canvas, and what a generation becomes."""

from fractions import Fraction
from typing import Any

import pytest

from app import modes
from app.db.models import Stage
from app.modes import canvas
from app.modes.canvas import Canvas
from app.modes.generation import NEGATIVE_PROMPT
from app.requests import lifecycle
from app.requests.reaper import reap
from tests.app.asking import MISSING, Bad, accepted, check_refused, example, parsed, wrong
from tests.app.conftest import Gateway, put
from tests.app.test_lifecycle import claimed, do
from trainer.generation import Encoding, LoraChoice, Outpaint

PATH = "outpaint/lora"
MODE = modes.by_path(PATH)
LORA = {"path": "https://example.com/lora.safetensors"}


def wrong_lora(part: str, value: Any, type: str, says: str = "") -> Bad:
    lora = {name: v for name, v in {**LORA, part: value}.items() if v is not MISSING}
    shown = "missing" if value is MISSING else repr(value)[:30]
    return Bad(f"lora {part} {shown}", {"loras": [lora]}, f"loras.0.{part}", type, says)


def wrong_size(size: dict[str, Any], part: str, type: str, says: str = "") -> Bad:
    return Bad(f"resolution {size}", {"resolution": size}, f"resolution.{part}", type, says)


def beyond(name: str, low: float, high: float, step: float = 1) -> list[Bad]:
    """Just outside its range, and no number at all."""
    return [
        wrong(name, low - step, "greater_than_equal"),
        wrong(name, high + step, "less_than_equal"),
        wrong(name, str(low), "int_type" if step == 1 else "float_type"),
        wrong(name, True, "int_type" if step == 1 else "float_type"),
    ]


FLAGS = ("generate_audio", "enable_prompt_expansion", "enable_safety_checker", "sync_mode")
CHOICES = ("aspect_ratio", "output_resolution", "video_quality", "video_write_mode")
BAD = [
    wrong("prompt", MISSING, "missing", "required"),
    wrong("prompt", None, "string_type"),
    wrong("prompt", "x" * 5_001, "string_too_long"),
    wrong("prompt", "a\x00b", "value_error", "U+0000"),
    wrong("negative_prompt", 5, "string_type"),
    wrong("video_url", MISSING, "missing", "required"),
    wrong("video_url", "ftp://example.com/a.mp4", "url_scheme", "https://"),
    wrong("video_url", "clip.mp4", "url_scheme"),
    wrong("video_url", "data:video/mp4;base64,AAAA", "url_scheme"),
    wrong("loras", MISSING, "missing", "required"),
    wrong("loras", [], "sequence_too_short", "1"),
    wrong("loras", [LORA] * 4, "sequence_too_long", "3"),
    wrong("loras", LORA, "list_type"),
    wrong_lora("path", MISSING, "missing", "required"),
    wrong_lora("path", "lora.safetensors", "url_scheme"),
    wrong_lora("path", "file:///etc/passwd", "url_scheme"),
    wrong_lora("scale", 4.5, "less_than_equal"),
    wrong_lora("scale", -5, "greater_than_equal"),
    wrong_lora("scale", "1", "float_type"),
    wrong_lora("transformer", "middle", "literal_error", "'both', 'high' or 'low'"),
    wrong_lora("transformer", None, "literal_error"),
    wrong("resolution", "720p", "literal_error", "'landscape_16_9', 'auto' or an object"),
    wrong("resolution", [1280, 720], "literal_error", "width and height"),
    wrong("resolution", None, "literal_error"),
    wrong_size({"width": 126, "height": 720}, "width", "greater_than_equal", "128"),
    wrong_size({"width": 2562, "height": 720}, "width", "less_than_equal", "2560"),
    wrong_size({"width": 1280, "height": 721}, "height", "multiple_of", "2"),
    wrong_size({"width": 1280, "height": 720.0}, "height", "int_type"),
    wrong_size({"width": 2560, "height": 1440}, "height", "less_than_equal", "at most 1080"),
    *beyond("source_scale", 0.25, 1.0, 0.01),
    *beyond("video_strength", 0.0, 1.0, 0.01),
    *beyond("num_frames", 9, 481),
    *beyond("frames_per_second", 1.0, 60.0, 0.01),
    *beyond("num_inference_steps", 8, 30),
    *beyond("guidance_scale", 1.0, 20.0, 0.01),
    *beyond("seed", 0, 2**53 - 1),
    *(wrong(name, "yes", "bool_type") for name in FLAGS),
    *(wrong(name, None, "bool_type") for name in FLAGS),
    *(wrong(name, "other", "literal_error") for name in CHOICES),
]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.id)
def test_refused(shared_gateway: Gateway, bad: Bad) -> None:
    changes = {"resolution": MISSING, **bad.changes}
    check_refused(shared_gateway, PATH, bad._replace(changes=changes))


def test_every_field_is_in_the_table() -> None:
    named = {bad.loc.partition(".")[0] for bad in BAD}
    assert named == set(MODE.request_model.model_fields)


def test_defaults_are_the_pages(shared_gateway: Gateway) -> None:
    required = {"prompt": "a", "video_url": "https://example.com/a.mp4", "loras": [LORA]}
    left_out = dict.fromkeys(MODE.request_model.model_fields, MISSING)
    assert accepted(shared_gateway, PATH, {**left_out, **required}) == {
        **required,
        "loras": [{**LORA, "scale": 1, "transformer": "both"}],
        "resolution": "landscape_16_9",
        "aspect_ratio": "16:9",
        "output_resolution": "720p",
        "source_scale": 0.75,
        "video_strength": 1,
        "num_frames": 121,
        "frames_per_second": 24,
        "num_inference_steps": 15,
        "guidance_scale": 1,
        "generate_audio": True,
        "negative_prompt": NEGATIVE_PROMPT,
        "seed": None,
        "enable_prompt_expansion": True,
        "enable_safety_checker": True,
        "video_quality": "high",
        "video_write_mode": "balanced",
        "sync_mode": False,
    }


SIZES = [
    ({}, (1024, 576)),
    ({"resolution": "square_hd"}, (1024, 1024)),
    ({"resolution": "square"}, (512, 512)),
    ({"resolution": "portrait_4_3"}, (768, 1024)),
    ({"resolution": "portrait_16_9"}, (576, 1024)),
    ({"resolution": "landscape_4_3"}, (1024, 768)),
    ({"resolution": {"width": 1280, "height": 720}}, (1280, 720)),
    ({"resolution": {}}, (512, 512)),
    ({"aspect_ratio": "16:9"}, (1280, 720)),
    ({"output_resolution": "1080p"}, (1920, 1080)),
    ({"aspect_ratio": "9:16", "output_resolution": "480p"}, (480, 854)),
    ({"aspect_ratio": "21:9", "output_resolution": "1080p"}, (2520, 1080)),
    ({"aspect_ratio": "1:1"}, (720, 720)),
    ({"aspect_ratio": "1:1", "resolution": "square"}, (512, 512)),
]


@pytest.mark.parametrize(("fields", "size"), SIZES, ids=lambda part: str(part))
def test_the_canvas(shared_gateway: Gateway, fields: dict[str, Any], size: tuple[int, int]) -> None:
    """As sent, and as read back from the row."""
    stored = accepted(shared_gateway, PATH, {"resolution": MISSING, **fields})
    request = MODE.parse(stored)
    assert MODE.canvas(request) == Canvas(*size)
    assert request.model_dump(mode="json") == stored


SHAPES = [(1280, 720), (720, 1280), (176, 144), (640, 272), (4096, 100), (90, 3000), (500, 500)]


@pytest.mark.parametrize(("width", "height"), SHAPES)
def test_auto_is_as_the_source_is(width: int, height: int) -> None:
    assert MODE.canvas(parsed(PATH, resolution="auto")) is None
    size = canvas.like(width, height)
    assert size.width % 32 == size.height % 32 == 0
    assert min(size.width, size.height) >= canvas.MIN_SIDE
    assert max(size.width, size.height) <= canvas.MAX_SIDE
    if max(width, height) / min(width, height) < 10:
        assert size.width / size.height == pytest.approx(width / height, rel=0.07)
        assert size.width * size.height == pytest.approx(1024 * 576, rel=0.07)


@pytest.mark.parametrize(
    ("given", "rate"),
    [
        (24, Fraction(24)),
        (29.97, Fraction(30000, 1001)),
        (23.976, Fraction(24000, 1001)),
        (12.5, Fraction(25, 2)),
    ],
)
def test_rates_are_fractions(given: float, rate: Fraction) -> None:
    assert parsed(PATH, frames_per_second=given).frame_rate == rate


def test_what_a_generation_becomes() -> None:
    loras = (LoraChoice(path="a.safetensors", name="a", scale=0.5),)
    request = parsed(
        PATH,
        negative_prompt="fog",
        source_scale=0.5,
        video_strength=0.9,
        num_frames=50,
        guidance_scale=3.5,
        generate_audio=False,
        enable_prompt_expansion=False,
        video_quality="low",
        video_write_mode="small",
    )
    spec = MODE.generation_spec(request, Canvas(640, 360), 5, loras)
    assert spec.task == Outpaint(source_scale=0.5)
    assert (spec.strength, spec.negative_prompt, spec.guidance_scale) == (0.9, "fog", 3.5)
    assert (spec.width, spec.height, spec.num_frames) == (640, 360, 50)
    assert spec.encoding == Encoding(quality="low", write_mode="small")
    assert (spec.with_audio, spec.expand_prompt, spec.check_safety) == (False, False, True)
    assert (spec.loras, spec.seed) == (loras, 5)


def test_the_pages_price(shared_gateway: Gateway) -> None:
    """121 frames at 1280x720: 112 megapixels, $0.2696. Nothing of the files is needed."""
    body = {"resolution": {"width": 1280, "height": 720}, "num_frames": 121}
    found = shared_gateway.client.post(f"/{PATH}/estimate", json=body).json()
    assert found["price"] == {"usd": 0.26964, "billable_units": 112, "usd_per_unit": 0.0024075}
    assert found["video"]["megapixels"] == 111.5136
    assert found["video"]["duration_seconds"] == 5.042
    assert found["tokens"] == {"video": 16 * 40 * 23, "audio": 126, "assumes": []}
    query = {"output_resolution": "720p", "generate_audio": "false"}
    asked = shared_gateway.client.get(f"/{PATH}/estimate", params=query).json()
    assert asked["price"] == found["price"]
    assert asked["tokens"]["audio"] == 0
    auto = shared_gateway.client.get(f"/{PATH}/estimate?resolution=auto").json()
    assert (auto["price"]["billable_units"], len(auto["tokens"]["assumes"])) == (72, 1)


def test_its_stages_have_its_own_names(gateway: Gateway) -> None:
    """In the row it is the stage of the GPU, whoever uses it."""
    request = gateway.client.post(f"/{PATH}", json=example(MODE)).json()

    def shown() -> set[str]:
        events = gateway.client.get(f"{request['response_url']}/events").json()
        (listed,) = gateway.client.get("/requests").json()["requests"]
        return {events["stage"], listed["stage"]}

    assert shown() == {"prepare"}
    do(gateway.database, lifecycle.advance, claimed(gateway.database), {"canvas": {}})
    assert shown() == {"generate"}
    held = claimed(gateway.database, Stage.TRAIN)
    put(gateway.database, held.request_id, lease_expires_at=1.0)
    with gateway.database.write() as session:
        reaped = reap(session, attempts_limit=1)
    assert reaped.dead == [held.request_id]
    result = gateway.client.get(request["response_url"])
    assert (result.status_code, result.headers["x-fal-billable-units"]) == (500, "0")
    assert "lost while generating" in result.json()["detail"]


@pytest.mark.parametrize("prefix", ["fal-ai/ltx-2.3-quality", MODE.id, PATH, f"{PATH}/check"])
def test_every_form_of_its_urls(gateway: Gateway, prefix: str) -> None:
    request_id = gateway.client.post(f"/{PATH}", json=example(MODE)).json()["request_id"]
    status = gateway.client.get(f"/{prefix}/requests/{request_id}/status")
    assert (status.status_code, status.json()["status"]) == (202, "IN_QUEUE")
    # Requests of another app are not found there.
    other = gateway.client.get(f"/outpaint/requests/{request_id}/status")
    assert other.status_code == 404
