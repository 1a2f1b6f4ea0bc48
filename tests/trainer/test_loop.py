"""The loop: it learns, it reports, it stops, and what it does when memory or numbers fail."""

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from preprocessing.events import EventLog
from tests.trainer.jobs import make_spec
from trainer.adapter import adapter_state
from trainer.errors import CapacityError, DivergedError
from trainer.execution import execution_of
from trainer.flow import Clean, Draws, Example, draw
from trainer.job import Control
from trainer.latents import VideoGeometry, audio_coords, video_coords
from trainer.loop import FLUSH_EVERY, Hooks, Stopped, Trainer, learning_rate, train
from trainer.model import BaseModel


def make_example(*, num_frames: int = 9, with_audio: bool = False, keep: bool = False) -> Example:
    generator = torch.Generator().manual_seed(3)
    geometry = VideoGeometry(num_frames, 64, 64, Fraction(24))

    def clean(num_tokens: int, channels: int, width: int, coords: torch.Tensor) -> Clean:
        kept = torch.zeros(1, num_tokens, dtype=torch.bool)
        kept[:, -4:] = True
        return Clean(
            tokens=torch.randn(1, num_tokens, channels, generator=generator),
            context=torch.randn(1, 16, width, generator=generator),
            coords=coords,
            keep=kept if keep else None,
        )

    return Example(
        video=clean(geometry.num_tokens, 128, 64, video_coords(geometry)),
        audio=clean(9, 32, 32, audio_coords(9)) if with_audio else None,
    )


class Recorder:
    """Hooks that remember their calls."""

    def __init__(self, told: Callable[[], Control | None] = lambda: None) -> None:
        self.calls: list[tuple[str, int]] = []
        self.told = told

    def hooks(
        self,
        checkpoint_every: int = 100,
        preview_steps: tuple[int, ...] = (),
        checkpoint_every_s: float | None = None,
        is_saving: Callable[[], bool] = lambda: False,
    ) -> Hooks:
        return Hooks(
            told=self.told,
            save_checkpoint=self.save_checkpoint,
            make_previews=lambda step: self.calls.append(("preview", step)),
            checkpoint_every=checkpoint_every,
            preview_steps=preview_steps,
            checkpoint_every_s=checkpoint_every_s,
            is_saving=is_saving,
        )

    def save_checkpoint(self, step: int, wait: bool) -> None:
        self.calls.append(("checkpoint, waited for" if wait else "checkpoint", step))


def run(trainer: Trainer, hooks: Hooks, folder: Path, example: Example) -> list[dict[str, Any]]:
    """Train on one example; returns the events."""
    events = folder / "events.jsonl"
    with EventLog(events) as log:
        train(trainer, [example], hooks, folder / "metrics.jsonl", log)
    return [json.loads(line) for line in events.read_text().splitlines()]


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_fixed_clip_is_learned(tiny: BaseModel) -> None:
    """2.7: fixed clip, sigma and noise; the loss falls below 0.7 of its start."""
    transformer = tiny.transformer(with_audio=False)
    spec = make_spec(learning_rate=1e-2, num_steps=150)
    trainer = Trainer(transformer, spec, with_audio=False)
    example = make_example(num_frames=25)
    noise = torch.randn(example.video.tokens.shape, generator=torch.Generator().manual_seed(0))
    draws = Draws((torch.tensor([0.5]), noise))
    losses = [trainer.update(example, draws)[0].item() for _ in range(spec.num_steps)]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("with_audio", [False, True], ids=["video", "joint"])
def test_each_step_is_in_the_log_once(tiny: BaseModel, tmp_path: Path, with_audio: bool) -> None:
    spec = make_spec(num_steps=25)
    trainer = Trainer(tiny.transformer(with_audio=with_audio), spec, with_audio=with_audio)
    events = run(trainer, Recorder().hooks(), tmp_path, make_example(with_audio=with_audio))
    lines = lines_of(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, 26))
    assert [line["lr"] for line in lines] == [learning_rate(spec, step) for step in range(25)]
    for line in lines:
        audio = line["loss_audio"]
        assert (audio is not None) == with_audio
        assert line["loss"] == pytest.approx(line["loss_video"] + (audio or 0))
        assert line["grad_norm"] > 0
    assert [event["step"] for event in events] == [FLUSH_EVERY, 2 * FLUSH_EVERY, 25]
    assert events[0]["loss"] == pytest.approx(
        sum(line["loss"] for line in lines[:FLUSH_EVERY]) / FLUSH_EVERY
    )
    assert events[0]["eta_s"] > 0
    assert events[-1]["eta_s"] == 0
    assert trainer.step == 25


def test_the_order_of_checkpoints_and_previews(tiny: BaseModel, tmp_path: Path) -> None:
    trainer = Trainer(tiny.transformer(with_audio=False), make_spec(num_steps=9), with_audio=False)
    recorder = Recorder()
    run(
        trainer,
        recorder.hooks(checkpoint_every=4, preview_steps=(4, 6, 9)),
        tmp_path,
        make_example(),
    )
    assert recorder.calls == [
        ("checkpoint", 4),
        ("preview", 4),
        ("preview", 6),
        ("checkpoint", 8),
        ("checkpoint, waited for", 9),
        ("preview", 9),
    ]


def test_checkpoints_by_time(tiny: BaseModel, tmp_path: Path) -> None:
    """Each step is longer than the time; while one is being written, no other begins."""
    trainer = Trainer(tiny.transformer(with_audio=False), make_spec(num_steps=6), with_audio=False)
    recorder = Recorder()
    hooks = recorder.hooks(checkpoint_every_s=1e-9, is_saving=lambda: trainer.step in (2, 3))
    run(trainer, hooks, tmp_path, make_example())
    steps = [step for _, step in recorder.calls]
    assert steps == [1, 4, 5, 6]


def test_checkpoints_do_not_split_the_points_of_the_curve(tiny: BaseModel, tmp_path: Path) -> None:
    """Each is a mean of as many steps; the log has all steps of a checkpoint when it is saved."""
    trainer = Trainer(tiny.transformer(with_audio=False), make_spec(num_steps=24), with_audio=False)
    written: list[int] = []

    class Counting(Recorder):
        def save_checkpoint(self, step: int, wait: bool) -> None:
            written.append(len(lines_of(tmp_path)))
            super().save_checkpoint(step, wait)

    recorder = Counting()
    hooks = recorder.hooks(checkpoint_every=7, preview_steps=(16,))
    events = run(trainer, hooks, tmp_path, make_example())
    assert written == [7, 14, 21, 24]
    assert [event["step"] for event in events] == [10, 16, 24]
    losses = [line["loss"] for line in lines_of(tmp_path)]
    means = [sum(some) / len(some) for some in (losses[:10], losses[10:16], losses[16:24])]
    assert [event["loss"] for event in events] == pytest.approx(means)


def test_a_checkpoint_that_was_not_its_turn_is_made_up_for(tiny: BaseModel, tmp_path: Path) -> None:
    trainer = Trainer(tiny.transformer(with_audio=False), make_spec(num_steps=9), with_audio=False)
    recorder = Recorder()
    hooks = recorder.hooks(checkpoint_every=3, is_saving=lambda: trainer.step in (3, 4))
    run(trainer, hooks, tmp_path, make_example())
    assert [step for _, step in recorder.calls] == [5, 6, 9]


def test_previews_due_at_the_step_of_a_resume_are_made(tiny: BaseModel, tmp_path: Path) -> None:
    trainer = Trainer(tiny.transformer(with_audio=False), make_spec(num_steps=6), with_audio=False)
    trainer.step = 4
    recorder = Recorder()
    run(trainer, recorder.hooks(preview_steps=(4, 6)), tmp_path, make_example())
    assert recorder.calls == [("preview", 4), ("checkpoint, waited for", 6), ("preview", 6)]


@pytest.mark.parametrize("control", Control)
def test_being_told_saves_and_stops(tiny: BaseModel, tmp_path: Path, control: Control) -> None:
    trainer = Trainer(tiny.transformer(with_audio=False), make_spec(), with_audio=False)
    recorder = Recorder(told=lambda: control if trainer.step == 3 else None)
    with pytest.raises(Stopped) as stopped:
        run(trainer, recorder.hooks(), tmp_path, make_example())
    assert stopped.value.control is control
    assert recorder.calls == [("checkpoint, waited for", 3)]
    assert [line["step"] for line in lines_of(tmp_path)] == [1, 2, 3]


def test_a_nan_ends_the_training_at_its_step(tiny: BaseModel, tmp_path: Path) -> None:
    transformer = tiny.transformer(with_audio=False)
    trainer = Trainer(transformer, make_spec(num_steps=20), with_audio=False)
    recorder = Recorder()
    key = next(iter(adapter_state(transformer)))

    def poison() -> None:
        if trainer.step == 6:
            adapter_state(transformer)[key].fill_(float("nan"))

    recorder.told = poison
    with pytest.raises(DivergedError, match="at step 7"):
        run(trainer, recorder.hooks(checkpoint_every=8), tmp_path, make_example())
    assert recorder.calls == []  # no checkpoint holds a NaN


def test_what_does_not_fit_is_recomputed(tiny: BaseModel, tmp_path: Path) -> None:
    """The first step runs out of memory; once more with recomputation, it is the same step."""
    results = []
    for memory_is_short in (False, True):
        transformer = tiny.transformer(with_audio=False)
        trainer = Trainer(transformer, make_spec(num_steps=3), with_audio=False)

        def fail_unless_recomputed(*args: object, transformer: Any = transformer) -> None:
            if not execution_of(transformer).num_recomputed:
                raise torch.OutOfMemoryError("Tried to allocate 1 PiB")

        if memory_is_short:
            transformer.transformer_blocks[2].ff.register_forward_pre_hook(fail_unless_recomputed)
        folder = tmp_path / f"{memory_is_short}"
        folder.mkdir()
        run(trainer, Recorder().hooks(), folder, make_example())
        results.append({k: t.clone() for k, t in adapter_state(transformer).items()})
    for key, tensor in results[0].items():
        torch.testing.assert_close(results[1][key], tensor, atol=1e-5, rtol=0)


def test_what_never_fits_gets_advice(tiny: BaseModel, tmp_path: Path) -> None:
    transformer = tiny.transformer(with_audio=False)
    trainer = Trainer(transformer, make_spec(), with_audio=False)

    def fail(*args: object) -> None:
        raise torch.OutOfMemoryError("Tried to allocate 1 PiB")

    transformer.proj_in.register_forward_pre_hook(fail)
    with pytest.raises(CapacityError, match=r"8 tokens with rank 8 .* Use fewer frames"):
        run(trainer, Recorder().hooks(), tmp_path, make_example())


def test_a_draw_moves_with_seed_and_step_only(tiny: BaseModel, tmp_path: Path) -> None:
    """Two trainings of one seed are equal whatever the global generator did; another is not."""
    results = []
    for seed, global_seed in ((1, 0), (1, 99), (2, 0)):
        torch.manual_seed(global_seed)
        transformer = tiny.transformer(with_audio=False)
        trainer = Trainer(transformer, make_spec(num_steps=2, seed=seed), with_audio=False)
        folder = tmp_path / f"{seed}-{global_seed}"
        folder.mkdir()
        run(trainer, Recorder().hooks(), folder, make_example())
        results.append({k: t.clone() for k, t in adapter_state(transformer).items()})
    assert all(torch.equal(results[0][k], results[1][k]) for k in results[0])
    assert not all(torch.equal(results[0][k], results[2][k]) for k in results[0])


def test_training_touches_no_global_generator(tiny: BaseModel, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    trainer = Trainer(tiny.transformer(with_audio=True), make_spec(num_steps=2), with_audio=True)
    run(trainer, Recorder().hooks(), tmp_path, make_example(with_audio=True))
    draw(make_example(), torch.Generator())
    assert torch.equal(torch.get_rng_state(), state)
