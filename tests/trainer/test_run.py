"""Whole jobs: what they leave, how they end, and that an interruption changes nothing (R18)."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from safetensors import safe_open

from preprocessing.events import EventLog
from preprocessing.manifest import Manifest
from tests.trainer.jobs import (
    make_dataset,
    make_job,
    make_spec,
    make_validation_spec,
    read_events,
    stages,
)
from trainer import cadence
from trainer.adapter import adapter_state
from trainer.job import Control, JobDir, Result
from trainer.model import BaseModel
from trainer.plan import MachineSettings
from trainer.run import INTERNAL_ERROR, ModelCache, run_job
from trainer.spec import SampleMask, Suffix, Wish

NUM_STEPS = 30
TIMEOUT_S = 120
"""For a child to start and take a few steps on a busy machine."""

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def models() -> ModelCache:
    """One for all tests of the module, as in a serving child."""
    return ModelCache()


@pytest.fixture(scope="module")
def uninterrupted(
    tmp_path_factory: pytest.TempPathFactory, silent_dataset: Path, cache: Path
) -> JobDir:
    """The same job as in the tests of interruptions, in one go, with a model of its own."""
    directory = long_job(tmp_path_factory.mktemp("whole") / "job", silent_dataset, cache)
    assert run_job(directory.root, ModelCache()).status == "completed"
    return directory


def long_job(root: Path, dataset: Path, cache: Path, **changes: Any) -> JobDir:
    return make_job(root, dataset, cache, spec=make_spec(num_steps=NUM_STEPS), **changes)


def newest_checkpoint(directory: JobDir) -> Path | None:
    return max(directory.checkpoints.glob("step-*"), default=None)


def wait_for(condition: Callable[[], object], child: subprocess.Popen[Any] | None = None) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        assert child is None or child.poll() is None, "the child has ended"
        time.sleep(0.005)


@contextmanager
def trainer_process(*arguments: str, **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """A real ``python -m trainer``; killed at the end of the block, should it still live."""
    child = subprocess.Popen(
        [sys.executable, "-m", "trainer", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        **options,
    )
    with child:
        try:
            yield child
        finally:
            child.kill()


def same_training(one: JobDir, other: JobDir) -> bool:
    return (
        one.lora.read_bytes() == other.lora.read_bytes()
        and one.metrics.read_bytes() == other.metrics.read_bytes()
        and (newest_checkpoint(one) / "adapter.safetensors").read_bytes()
        == (newest_checkpoint(other) / "adapter.safetensors").read_bytes()
    )


def test_a_joint_training_from_dataset_to_reel(
    tmp_path: Path, sounding_dataset: Path, cache: Path, models: ModelCache
) -> None:
    spec = make_spec(prompts=("TRG a red fox",), num_steps=6, trigger_phrase="TRG")
    directory = make_job(tmp_path / "job", sounding_dataset, cache, spec=spec)
    assert run_job(directory.root, models) == Result(status="completed", step=6)
    assert directory.result().status == "completed"

    ended = stages(directory)
    assert ended.index("encode_text") < ended.index("load_transformer")
    assert ended.index("train") < ended.index("check") < ended.index("reel")
    assert len(directory.metrics.read_text().splitlines()) == 6
    previews = sorted(path.name for path in directory.previews.iterdir())
    assert previews == ["step-000003_prompt-0.mp4", "step-000006_prompt-0.mp4"]
    assert directory.reel.stat().st_size > 0
    with safe_open(directory.lora, framework="pt") as file:
        keys, metadata = list(file.keys()), file.metadata()
    assert all(key.startswith("diffusion_model.transformer_blocks.") for key in keys)
    assert any("audio" in key for key in keys)
    assert metadata["trigger_phrase"] == "TRG"

    config = json.loads(directory.config.read_text())
    expected = {
        "trigger_phrase": "TRG",
        "training_type": "t2v",
        "base_model": "tiny",
        "base_model_is_tiny": True,
        "rank": 8,
        "alpha": 8,
        "number_of_steps": 6,
        "learning_rate": 1e-3,
        "width": 64,
        "height": 64,
        "number_of_frames": 9,
        "frame_rate": "24",
        "with_audio": True,
        "seed": 42,
    }
    assert expected.items() <= config.items()
    assert config["software"].startswith("reelsmith ")
    assert len(config["dataset_sha256"]) == 64

    (trained,) = [event for event in read_events(directory) if event["kind"] == "trained"]
    facts = {
        "model": "tiny",
        "device": "cpu",
        "video_tokens": 8,
        "audio_tokens": 9,
        "rank": 8,
        "num_previews": 2,
        "peak_memory_bytes": None,
    }
    assert facts.items() <= trained.items()
    assert trained["step_time_s"] > 0
    assert trained["previews_s"] > 0


def test_kill_9_changes_nothing(
    tmp_path: Path, silent_dataset: Path, cache: Path, uninterrupted: JobDir, models: ModelCache
) -> None:
    """A real child is killed while it trains; another directory goes on from its checkpoint. What
    the child held of the cache is free again."""
    first = long_job(tmp_path / "first", silent_dataset, cache)
    with trainer_process("run", str(first.root)) as child:
        wait_for(lambda: newest_checkpoint(first), child)
        child.kill()
    assert child.returncode == -signal.SIGKILL
    assert first.result() is None
    assert len(list(cache.rglob("*.claim"))) == 1
    fetched = tmp_path / "fetched" / newest_checkpoint(first).name
    shutil.copytree(newest_checkpoint(first), fetched)

    second = long_job(tmp_path / "second", silent_dataset, cache, resume_from=fetched)
    assert run_job(second.root, models).status == "completed"
    assert not list(cache.rglob("*.claim"))
    steps = [event["step"] for event in read_events(second) if event["kind"] == "step"]
    assert min(steps) > int(fetched.name.removeprefix("step-"))
    assert same_training(second, uninterrupted)


def test_five_interruptions_change_nothing(
    tmp_path: Path, silent_dataset: Path, cache: Path, uninterrupted: JobDir, models: ModelCache
) -> None:
    resume_from = None
    for number in range(5):
        directory = long_job(
            tmp_path / f"{number}",
            silent_dataset,
            cache,
            resume_from=resume_from,
            checkpoint_every_s=0.05,
        )

        def release_soon(directory: JobDir = directory) -> None:
            wait_for(lambda: newest_checkpoint(directory))
            directory.tell(Control.RELEASE)

        watcher = threading.Thread(target=release_soon)
        watcher.start()
        result = run_job(directory.root, models)
        watcher.join()
        if result.status == "completed":
            break  # the machine was fast; the last part was the rest
        assert result.status == "released"
        resume_from = newest_checkpoint(directory)
        assert resume_from.name == f"step-{result.step:06d}"
    else:
        directory = long_job(tmp_path / "last", silent_dataset, cache, resume_from=resume_from)
        assert run_job(directory.root, models).status == "completed"
    assert number > 0
    assert same_training(directory, uninterrupted)


def test_a_damaged_checkpoint_costs_steps_only(
    tmp_path: Path, silent_dataset: Path, cache: Path, uninterrupted: JobDir, models: ModelCache
) -> None:
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(uninterrupted.checkpoints, checkpoints)
    newest = max(checkpoints.iterdir())
    (newest / "optimizer.safetensors").write_bytes(b"garbage")
    directory = long_job(tmp_path / "job", silent_dataset, cache, resume_from=newest)
    assert run_job(directory.root, models).status == "completed"
    messages = [event for event in read_events(directory) if event["kind"] == "log"]
    assert any("damaged" in event["message"] for event in messages)
    assert same_training(directory, uninterrupted)


def test_previews_of_other_sampling_steps_are_no_other_training(
    tmp_path: Path, silent_dataset: Path, cache: Path, uninterrupted: JobDir, models: ModelCache
) -> None:
    """An operator's setting: the service may have been started anew with another one."""
    first = min(uninterrupted.checkpoints.iterdir())
    spec = make_spec(num_steps=NUM_STEPS, validation=make_validation_spec(num_inference_steps=3))
    directory = make_job(
        tmp_path / "job", silent_dataset, cache, spec=spec, resume_from=first.resolve()
    )
    assert run_job(directory.root, models).status == "completed"
    assert same_training(directory, uninterrupted)


def test_a_save_and_a_sample_on_request_change_nothing(
    tmp_path: Path, silent_dataset: Path, cache: Path, models: ModelCache
) -> None:
    """After step 1, where neither is due."""
    spec = make_spec(prompts=("a red fox",), num_steps=6)
    without = make_job(tmp_path / "without", silent_dataset, cache, spec=spec)
    asked = make_job(tmp_path / "asked", silent_dataset, cache, spec=spec)
    for wish in Wish:
        asked.wish(wish)
        asked.wish(wish)
    for directory in (without, asked):
        assert run_job(directory.root, models).status == "completed"
    assert same_training(asked, without)
    assert not asked.wishes()
    events = read_events(asked)
    granted = [(e["wish"], e["step"]) for e in events if e["kind"] == "granted"]
    assert granted == [("save", 1), ("sample", 1)]
    assert [e["step"] for e in events if e["kind"] == "checkpoint"] == [1, 4, 6]
    assert [e["step"] for e in events if e["kind"] == "preview"] == [1, 3, 6]
    with av.open(str(asked.reel)) as reel:
        steps = [chapter["metadata"]["title"] for chapter in reel.chapters()]
    assert steps == [f"Step {step}: a red fox" for step in (1, 3, 6)]


def test_a_stop_comes_before_previews_on_request(
    tmp_path: Path, silent_dataset: Path, cache: Path, models: ModelCache
) -> None:
    """The next attempt has the wish again, so this one does not say that it was granted."""
    spec = make_spec(prompts=("a",), num_steps=6)
    directory = make_job(tmp_path / "job", silent_dataset, cache, spec=spec)
    directory.wish(Wish.SAMPLE)

    class Telling(EventLog):
        def emit(self, kind: str, **fields: Any) -> None:
            super().emit(kind, **fields)
            if fields.get("name") == "previews":
                directory.tell(Control.RELEASE)

    assert run_job(directory.root, models, log=Telling).status == "released"
    assert directory.wishes() == {Wish.SAMPLE}
    assert "granted" not in {event["kind"] for event in read_events(directory)}


def test_sigterm_releases_the_job(tmp_path: Path, silent_dataset: Path, cache: Path) -> None:
    spec = make_spec(num_steps=5000)
    directory = make_job(tmp_path / "job", silent_dataset, cache, spec=spec)
    with trainer_process("run", str(directory.root), stderr=subprocess.DEVNULL) as child:
        wait_for(lambda: newest_checkpoint(directory), child)
        child.terminate()
        assert child.wait(TIMEOUT_S) == 3
    result = directory.result()
    assert result.status == "released"
    assert newest_checkpoint(directory).name == f"step-{result.step:06d}"


def test_a_serving_child_runs_jobs_as_if_each_were_its_first(
    tmp_path: Path, silent_dataset: Path, cache: Path, uninterrupted: JobDir
) -> None:
    spec = make_spec(num_steps=5, rank=4)
    served = [
        make_job(tmp_path / "other", silent_dataset, cache, spec=spec),
        long_job(tmp_path / "same", silent_dataset, cache),
    ]
    requests = "".join(json.dumps({"job_dir": str(job.root)}) + "\n" for job in served)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with trainer_process("serve", text=True, **pipes) as child:
        replies, errors = child.communicate(requests, timeout=TIMEOUT_S)
    assert child.returncode == 0, errors
    assert [json.loads(line) for line in replies.splitlines()] == [
        {"job_dir": str(job.root), "status": "completed"} for job in served
    ]
    fresh = make_job(tmp_path / "fresh", silent_dataset, cache, spec=spec)
    run_job(fresh.root, ModelCache())
    assert same_training(served[0], fresh)
    assert same_training(served[1], uninterrupted)


def test_a_serving_child_dies_with_its_parent(tmp_path: Path) -> None:
    """The parent is killed while the pipe to the child stays open elsewhere."""
    starter = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-m', 'trainer', 'serve'], stdin=0)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    read_end, write_end = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", starter], cwd=ROOT, stdin=read_end, stdout=subprocess.PIPE
    ) as parent:
        pid = int(parent.stdout.readline())
        status = Path(f"/proc/{pid}/status")
        wait_for(lambda: "libtorch" in Path(f"/proc/{pid}/maps").read_text())
        parent.kill()
    wait_for(lambda: not status.exists() or "State:\tZ" in status.read_text())
    os.close(read_end)
    os.close(write_end)


def test_the_model_stays_and_no_adapter_does(
    tmp_path: Path, silent_dataset: Path, cache: Path, tiny: BaseModel
) -> None:
    models = ModelCache()
    claimed = time.time() - 1000
    for number, rank in enumerate((8, 4)):
        spec = make_spec(num_steps=2, rank=rank)
        directory = make_job(
            tmp_path / f"{number}", silent_dataset, cache, spec=spec, claimed_at=claimed
        )
        assert run_job(directory.root, models).status == "completed"
        before = models.transformer(tiny, with_audio=False)
        assert not adapter_state(before)
        (trained,) = [event for event in read_events(directory) if event["kind"] == "trained"]
        assert trained["model_was_loaded"] is (number == 1)
        assert trained["startup_s"] > 1000
        told = "was there from before" if number else "was loaded"
        assert any(
            f"s after the claim; the model {told}" in event.get("message", "")
            for event in read_events(directory)
        )
    assert models.transformer(tiny, with_audio=False) is before
    loaded = tiny.transformer(with_audio=False).state_dict()
    assert all(torch.equal(tensor, loaded[key]) for key, tensor in before.state_dict().items())
    assert models.transformer(tiny, with_audio=True) is not before


def test_the_machine_settings_of_a_job_are_followed_and_told(
    tmp_path: Path, silent_dataset: Path, cache: Path
) -> None:
    """A quantised base with offloaded blocks; the next job has its base in full again. The LoRA
    passes its check, against the base as it was trained on."""
    models = ModelCache()
    machine = MachineSettings(precision="fp8", offloaded_blocks=2)
    plans = []
    for number, settings in enumerate((machine, MachineSettings())):
        directory = make_job(
            tmp_path / f"{number}",
            silent_dataset,
            cache,
            spec=make_spec(num_steps=2),
            machine=settings,
        )
        assert run_job(directory.root, models).status == "completed"
        (trained,) = [event for event in read_events(directory) if event["kind"] == "trained"]
        plans.append(trained["plan"])
        assert plans[-1] in [event.get("message") for event in read_events(directory)]
    assert plans == [
        "base in fp8, 4 of 4 blocks recomputed, 2 offloaded to the host: as the settings say",
        "base in full precision, 0 of 4 blocks recomputed: so small a model fits",
    ]


def test_previews_that_cost_too_much_are_passed_over(
    tmp_path: Path,
    silent_dataset: Path,
    cache: Path,
    models: ModelCache,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cadence, "ALWAYS_GRANTED_S", 0.0)
    spec = make_spec(prompts=("a red fox",), num_steps=4)
    directory = make_job(tmp_path / "job", silent_dataset, cache, spec=spec, preview_share=0.001)
    assert run_job(directory.root, models).status == "completed"
    assert [path.name for path in directory.previews.iterdir()] == ["step-000004_prompt-0.mp4"]
    assert any("would cost too much time" in e.get("message", "") for e in read_events(directory))


@pytest.mark.parametrize("control", Control)
def test_told_before_it_began(
    tmp_path: Path, silent_dataset: Path, cache: Path, models: ModelCache, control: Control
) -> None:
    directory = long_job(tmp_path / "job", silent_dataset, cache)
    directory.tell(control)
    result = run_job(directory.root, models)
    assert result.status == {"cancel": "cancelled", "release": "released"}[control.value]
    assert not directory.lora.exists()


def test_a_preview_that_does_not_fit_does_not_cost_the_training(
    tmp_path: Path, silent_dataset: Path, cache: Path, tiny: BaseModel
) -> None:
    models = ModelCache()
    spec = make_spec(prompts=("a",), num_steps=2)
    validation = spec.validation.model_copy(update={"num_frames": 17})
    directory = make_job(
        tmp_path / "job",
        silent_dataset,
        cache,
        spec=spec.model_copy(update={"validation": validation}),
    )

    def fail_on_previews(module: object, args: tuple[torch.Tensor]) -> None:
        if args[0].shape[1] == 3 * 2 * 2:  # training has 2 latent frames
            raise torch.OutOfMemoryError("Tried to allocate 1 PiB")

    transformer = models.transformer(tiny, with_audio=False)
    transformer.proj_in.register_forward_pre_hook(fail_on_previews)
    assert run_job(directory.root, models).status == "completed"
    warnings = [event for event in read_events(directory) if event.get("level") == "WARN"]
    assert len(warnings) == 2
    assert directory.lora.exists()
    assert not directory.reel.exists()


def test_images_train_as_single_frames(tmp_path: Path, cache: Path, models: ModelCache) -> None:
    dataset = make_dataset(tmp_path / "dataset", num_frames=1)
    directory = make_job(tmp_path / "job", dataset, cache, spec=make_spec(num_steps=3))
    assert run_job(directory.root, models).status == "completed"
    assert json.loads(directory.config.read_text())["number_of_frames"] == 1


FAILURES = {
    "another training's checkpoint": ("checkpoint_unreadable", None, "belongs to another"),
    "a model that is not there": ("model_unavailable", None, "neither a folder"),
    "a rate that diverges": ("training_diverged", "learning_rate", "lower learning rate"),
    "clips without masks": ("invalid_condition", "training_data_url", "a mask for every clip"),
    "previews without clips": ("invalid_condition", "validation", "none were prepared"),
    "frames that are missing": (INTERNAL_ERROR, None, "failed unexpectedly"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_failures_say_what_to_change(
    tmp_path: Path,
    silent_dataset: Path,
    cache: Path,
    models: ModelCache,
    uninterrupted: JobDir,
    failure: str,
) -> None:
    changes: dict[str, Any] = {"spec": make_spec()}
    match failure:
        case "another training's checkpoint":
            changes["resume_from"] = newest_checkpoint(uninterrupted)
        case "a model that is not there":
            changes["model"] = "no/such/model"
        case "a rate that diverges":
            changes["spec"] = make_spec(learning_rate=1e37)
        case "clips without masks":
            changes["spec"] = make_spec(conditions=(SampleMask(),))
        case "previews without clips":
            conditions = (Suffix(num_latent_frames=1),)
            changes["spec"] = make_spec(conditions=conditions, prompts=("a fox",))
        case "frames that are missing":
            silent_dataset = make_dataset(tmp_path / "dataset")
            (silent_dataset / Manifest.load(silent_dataset).samples[1].frames).unlink()
    directory = make_job(tmp_path / "job", silent_dataset, cache, **changes)
    result = run_job(directory.root, models)
    error_type, field, message = FAILURES[failure]
    assert (result.status, result.error_type) == ("failed", error_type)
    assert (result.users_fault, result.field) == (field is not None, field)
    assert message in result.error
    assert str(tmp_path) not in result.error
    assert "Traceback" not in result.error
    assert directory.result() == result
    assert not directory.lora.exists()
