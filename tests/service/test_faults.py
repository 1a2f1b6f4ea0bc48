"""Workers that die or are stopped: every request ends once, with the same weights."""

import os
import re
import signal
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from app.broker import Choice
from tests.service.harness import Stack, descendants, kill_group, stack, trainer_pid

pytestmark = [pytest.mark.service, pytest.mark.timeout(500)]

STEPS = 100


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with stack(tmp_path_factory.mktemp("faults")) as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed(service: Stack, clips: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The LoRA of a run that nothing happened to."""
    response = service.wait(service.submit(clips, number_of_steps=STEPS))
    assert response.status_code == 200, response.text
    to = tmp_path_factory.mktemp("whole") / "lora.safetensors"
    return service.download(response.json()["lora_file"], to).read_bytes()


def test_kill_9_of_the_worker_resumes_from_its_checkpoint(
    broker: Choice, service: Stack, undisturbed: bytes, clips: Path, tmp_path: Path
) -> None:
    own = nullcontext(service) if broker == "files" else stack(tmp_path / "service", broker)
    with own as service:
        request = service.submit(clips, number_of_steps=STEPS)
        reached = service.wait_for_step(request, 30)
        kill_group(service.gpu_worker)
        service.gpu_worker.start(service.service.env)
        response = service.wait(request)
        assert response.status_code == 200, response.text
        resumed = service.download(response.json()["lora_file"], tmp_path / "resumed").read_bytes()
        assert service.attempts(request) == [
            ("prepare", "advanced"),
            ("train", "lost"),
            ("train", "completed"),
        ]
        resumed_at = re.search(r"Resuming from the checkpoint of step (\d+)", service.log(request))
        assert resumed_at is not None
        assert int(resumed_at[1]) > reached - 20, "one checkpoint's work is lost at most"
        assert resumed == undisturbed


def test_kill_9_of_the_trainer_only(service: Stack, clips: Path) -> None:
    """The out-of-memory killer's favourite: the worker lives and goes on at once."""
    request = service.submit(clips, number_of_steps=STEPS)
    service.wait_for_step(request, 30)
    os.kill(trainer_pid(service.gpu_worker), signal.SIGKILL)
    response = service.wait(request)
    assert response.status_code == 200, response.text
    assert service.attempts(request)[1:] == [("train", "retried"), ("train", "completed")]


def test_poison_ends_after_three_attempts(service: Stack, clips: Path) -> None:
    request = service.submit(clips, number_of_steps=20000)
    for attempt in range(1, 4):
        service.until(
            lambda attempt=attempt: len(service.attempts(request)) == attempt + 1, 60, request
        )
        service.until(lambda: bool(_trainer(service)), 30, request)
        os.kill(trainer_pid(service.gpu_worker), signal.SIGKILL)
    response = service.wait(request, 60)
    assert response.status_code == 500
    assert "killed" in response.json()["detail"][0]["msg"]
    assert response.headers["x-fal-billable-units"] == "0"
    outcomes = [outcome for _, outcome in service.attempts(request)[1:]]
    assert outcomes == ["retried", "retried", "failed"]
    assert service.wait(service.submit(clips)).status_code == 200


def test_sigterm_gives_the_request_back_without_using_an_attempt(
    service: Stack, clips: Path
) -> None:
    request = service.submit(clips, number_of_steps=STEPS)
    service.wait_for_step(request, 25)
    worker = service.gpu_worker
    worker.signal(signal.SIGTERM)
    assert worker.process is not None
    assert worker.process.wait(60) == 0
    assert service.status(request)["status"] == "IN_QUEUE"
    worker.start(service.service.env)
    response = service.wait(request)
    assert response.status_code == 200, response.text
    assert service.attempts(request)[1:] == [("train", "released"), ("train", "completed")]


def test_sigterm_does_not_wait_for_what_has_nothing_to_save(service: Stack, clips: Path) -> None:
    """The child is still loading; frozen here, so that no word can reach it."""
    worker = service.gpu_worker
    kill_group(worker)  # with the trainer that has its model
    worker.start(service.service.env)
    assert worker.process is not None
    request = service.submit(clips, number_of_steps=STEPS)
    service.until(lambda: len(service.attempts(request)) == 2, 120, request)
    os.kill(trainer_pid(worker, within_s=60), signal.SIGSTOP)
    worker.signal(signal.SIGTERM)
    assert worker.process.wait(60) == 0
    worker.start(service.service.env)
    assert service.wait(request).status_code == 200
    assert service.attempts(request)[1:] == [("train", "released"), ("train", "completed")]


def test_frozen_worker_writes_nothing_after_it_was_replaced(service: Stack, clips: Path) -> None:
    """SIGSTOP past the lease, another worker takes over, SIGCONT: the loser must leave quietly."""
    request = service.submit(clips, number_of_steps=STEPS)
    service.wait_for_step(request, 25)
    frozen = service.gpu_worker
    assert frozen.process is not None
    pids = [frozen.process.pid, *descendants(frozen.process.pid)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    frozen_process = frozen.process
    frozen.start(service.service.env)
    try:
        service.until(
            lambda: [o for _, o in service.attempts(request)][1:2] == ["lost"], 60, request
        )
        service.until(lambda: len(service.attempts(request)) == 3, 60, request)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        response = service.wait(request)
    finally:
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        frozen_process.wait()
    assert response.status_code == 200, response.text
    assert service.attempts(request)[1:] == [("train", "lost"), ("train", "completed")]


def _trainer(service: Stack) -> int | None:
    try:
        return trainer_pid(service.gpu_worker)
    except (AssertionError, OSError):
        return None
