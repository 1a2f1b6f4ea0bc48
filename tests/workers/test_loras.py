"""LoRAs of generations: fetched and checked once, whatever names them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from app import modes
from app.db.models import Purpose, Stage
from app.modes.generation import MAX_LORA_BYTES, LoRAInput
from app.requests import lifecycle, repository
from app.storage.base import random_part
from tests.app.asking import example
from tests.app.fetch.server import ScriptedServer, answer, scripted_server
from trainer.job import LORA_FILE
from workers import loras
from workers.attempt import Attempt
from workers.failures import Failure
from workers.forward import Forwarder
from workers.runtime import Runtime

MODE = modes.by_path("outpaint/lora")
LAYER = "diffusion_model.transformer_blocks.0.attn1.to_q"


def lora(value: float = 0.5, layer: str = LAYER) -> bytes:
    """A LoRA of one layer, in trainers' most usual form."""
    shapes = {"lora_A": (2, 64), "lora_B": (64, 2)}
    tensors = {
        f"{layer}.{part}.weight": np.full(shape, value, np.float32)
        for part, shape in shapes.items()
    }
    return bytes(save(tensors))


@contextmanager
def attempt(
    runtime: Runtime, folder: Path, purpose: Purpose = Purpose.TRAIN, **fields: Any
) -> Iterator[Attempt]:
    """The prepare stage of a generation, begun as a worker begins it."""
    asked = {**example(MODE), **fields}
    body = MODE.request_model.model_validate(asked).model_dump(mode="json")
    new = repository.NewRequest(
        owner="local",
        endpoint=MODE.id,
        app=MODE.app,
        mode=MODE.path,
        input=body,
        purpose=purpose,
    )
    with runtime.database.write() as session:
        repository.add(session, new)
    with runtime.database.write() as session:
        claim = lifecycle.claim(session, Stage.PREPARE, "test")
    assert claim is not None
    folder.mkdir()
    with runtime.keep_lease(claim) as lease:
        forward = Forwarder(runtime.database, claim, "prepare")
        yield Attempt(runtime, claim, lease, forward, folder, MODE, MODE.parse(body))


Prepare = Callable[..., tuple[loras.PreparedLora, list[str]]]


@pytest.fixture
def prepare(runtime: Runtime, tmp_path: Path) -> Prepare:
    """Prepares one LoRA in an attempt of its own; returns it and what the log said."""

    def run(path: str, index: int = 0) -> tuple[loras.PreparedLora, list[str]]:
        with attempt(runtime, tmp_path / random_part()) as one:
            prepared, facts = loras.prepare(one, index, LoRAInput(path=path))
            assert facts.num_layers == 1
            assert list(one.folder.glob("lora-?")) == []
            one.forward.feed((), at_once=True)
            with runtime.database.read() as session:
                lines = repository.log_lines(session, one.request_id)
                return prepared, [line.message for line in lines]

    return run


@pytest.fixture
def server(runtime: Runtime) -> Iterator[ScriptedServer]:
    """A server elsewhere, which the operator allows."""
    with scripted_server() as server:
        allowed = {
            "fetch_allow_private_hosts": ("127.0.0.1",),
            "fetch_extra_ports": (server.port,),
        }
        runtime.settings = runtime.settings.model_copy(update=allowed)
        yield server


def stored(runtime: Runtime, prepared: loras.PreparedLora) -> bytes:
    return b"".join(runtime.storage.open_range(f"{prepared.key}/{LORA_FILE}"))


def own_url(runtime: Runtime, content: bytes, folder: Path) -> str:
    path = folder / "mine.safetensors"
    path.write_bytes(content)
    key = f"uploads/{random_part()}/{path.name}"
    runtime.storage.put_file(key, path)
    return runtime.storage.signed_url(key)


def test_a_file_of_this_service(runtime: Runtime, prepare: Prepare, tmp_path: Path) -> None:
    """Known by its checksum: the second request does not even read it."""
    url = own_url(runtime, lora(), tmp_path)
    first, said = prepare(url)
    assert (first.name, first.link) == ("mine.safetensors", None)
    assert "LoRA mine.safetensors: 1 layers of rank 2" in said
    assert stored(runtime, first) == lora()
    again, said = prepare(url)
    assert again == first
    assert said == ["LoRA mine.safetensors is here already: 1 layers of rank 2"]


def test_a_file_elsewhere(runtime: Runtime, prepare: Prepare, server: ScriptedServer) -> None:
    """Its server is asked whether it has changed, and by its content it is known elsewhere too."""
    server.scripts = [
        answer(lora(0.5), 'ETag: "v1"'),
        answer(status="304 Not Modified"),
        answer(lora(0.25), 'ETag: "v2"'),
        answer(lora(0.25)),
    ]
    first, said = prepare(server.url)
    assert any(line.startswith("Downloaded") for line in said)
    second, said = prepare(server.url)
    assert second == first
    assert server.header(1, "if-none-match") == '"v1"'
    assert said == ["LoRA clips.zip is here already: 1 layers of rank 2"]
    changed, _ = prepare(server.url)
    assert changed.key != first.key
    assert stored(runtime, changed) == lora(0.25)
    other, said = prepare(server.url + "?elsewhere")
    assert other.key == changed.key
    assert "is here already" in said[-1]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (lora()[:-100], "safetensors"),
        (lora(float("nan")), "NaN"),
        (lora(layer="transformer.single_transformer_blocks.0.attn.to_q"), "another model"),
        (b"\x80\x04\x95", "safetensors"),
    ],
    ids=["cut off", "NaN", "of another model", "a pickle"],
)
def test_refused(
    runtime: Runtime, prepare: Prepare, tmp_path: Path, content: bytes, says: str
) -> None:
    """The user's fault, at the place in the request, and nothing is kept."""
    with pytest.raises(Failure, match=r"mine\.safetensors") as failed:
        prepare(own_url(runtime, content, tmp_path), index=1)
    failure = failed.value
    assert says in failure.error
    assert (failure.status, failure.retryable) == (422, False)
    (detail,) = failure.body["detail"]
    assert detail["loc"] == ["body", "loras", 1, "path"]
    assert detail["type"] == "lora_file_invalid"
    assert runtime.storage.list_keys("loras") == []


def test_one_byte_over_three_gigabytes(
    runtime: Runtime, prepare: Prepare, server: ScriptedServer
) -> None:
    """Refused by what its server says, before a byte of it is fetched."""
    server.scripts = [answer(length=MAX_LORA_BYTES + 1)]
    with pytest.raises(Failure) as failed:
        prepare(server.url)
    (detail,) = failed.value.body["detail"]
    assert (detail["type"], detail["loc"]) == ("file_too_large", ["body", "loras", 0, "path"])
    assert detail["ctx"] == {"max_size": 3 * 1024**3}
    assert runtime.storage.list_keys("links") == []
