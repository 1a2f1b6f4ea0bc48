"""Generations on the tiny model: against diffusers, on real clips, with LoRAs, and their ends."""

import json
import subprocess
import sys
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LTX2Pipeline
from PIL import Image
from torch import Tensor

from preprocessing.events import EventLog
from preprocessing.manifest import SourceManifest
from tests.trainer.generations import NTSC, RATE, Runner, logged, played, psnr
from tests.trainer.jobs import make_job, make_spec, read_events
from tests.trainer.loras import RANK
from trainer import expansion
from trainer.capacity import num_audio_latents, num_video_tokens
from trainer.generation import (
    Encoding,
    ExtendPrefix,
    ExtendSuffix,
    Inpaint,
    LoraChoice,
    Outpaint,
    SafetyClassifier,
)
from trainer.guidance import plain_guidance
from trainer.job import Control, GenerateJob, JobDir, Result
from trainer.latents import unnormalise_audio as unnormalise_sound
from trainer.latents import unnormalise_video, unpack_audio, unpack_video
from trainer.model import BaseModel
from trainer.mp4 import Mp4Writer, compression_of
from trainer.run import ModelCache, run_job
from trainer.sampler import Given, SampledLatents, build_request, sample, sigma_schedule
from trainer.source import grid_geometry

ROOT = Path(__file__).parents[2]


# The sampler.


@pytest.mark.parametrize("scale", [1.0, 3.0], ids=["no guidance", "guidance 3"])
def test_text_to_video_is_that_of_diffusers(tiny: BaseModel, scale: float) -> None:
    """The same noise, prompts and sigmas through `LTX2Pipeline`: the same latents.

    It gets our sigmas, since it would shift by the size (2.4), and no STG, no modality guidance and
    no rescaling, which this endpoint does not use.
    """
    geometry = grid_geometry(96, 64, 17, NTSC)
    prompts = ["a rabbit on a meadow", "blurry"]
    positive, negative = tiny.text_encoder().encode(prompts)
    request = build_request(
        tiny.transformer(with_audio=True),
        geometry,
        positive,
        negative,
        plain_guidance(scale, with_audio=True),
        num_steps=4,
        seed=11,
    )
    ours = sample(tiny.transformer(with_audio=True), request)
    assert ours is not None
    assert ours.audio is not None

    pipeline = LTX2Pipeline.from_pretrained(tiny.folder)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler()
    video_vae, audio_vae = tiny.video_vae(), tiny.audio_vae()

    def raw(latents: SampledLatents) -> tuple[Tensor, Tensor]:
        assert latents.audio is not None
        video = unnormalise_video(unpack_video(latents.video, geometry), video_vae)
        return video, unpack_audio(unnormalise_sound(latents.audio, audio_vae))

    assert request.audio is not None
    noise = raw(SampledLatents(request.video.noise, request.audio.noise))
    found = pipeline(
        prompt=prompts[0],
        negative_prompt=prompts[1],
        height=64,
        width=96,
        num_frames=17,
        frame_rate=float(NTSC),
        num_inference_steps=4,
        sigmas=sigma_schedule(4)[:-1].tolist(),
        guidance_scale=scale,
        audio_guidance_scale=scale,
        stg_scale=0.0,
        audio_stg_scale=0.0,
        modality_scale=1.0,
        audio_modality_scale=1.0,
        guidance_rescale=0.0,
        audio_guidance_rescale=0.0,
        noise_scale=0.0,
        latents=noise[0],
        audio_latents=noise[1],
        output_type="latent",
        return_dict=False,
    )
    for their, our in zip(found, raw(ours), strict=True):
        torch.testing.assert_close(our, their, atol=1e-4, rtol=0)


def test_strength_is_how_firmly_tokens_are_held(tiny: BaseModel) -> None:
    """1 exactly, 0 not at all, and nearer the more in between; the rest is free."""
    geometry = grid_geometry(96, 64, 9, RATE)
    (context,) = tiny.text_encoder().encode(["a rabbit"])
    transformer = tiny.transformer(with_audio=False)
    clean = torch.randn(1, geometry.num_tokens, 128, generator=torch.Generator().manual_seed(2))
    keep = torch.arange(geometry.num_tokens) < 6

    def sampled(given: Given | None) -> Tensor:
        request = build_request(
            transformer,
            geometry,
            context,
            None,
            plain_guidance(1.0, with_audio=False),
            num_steps=4,
            seed=3,
            given_video=given,
        )
        latents = sample(transformer, request)
        assert latents is not None
        return latents.video

    held = {strength: sampled(Given(keep, clean, strength)) for strength in (0, 0.25, 0.75, 1)}
    distance = {
        strength: float((tokens - clean)[:, keep].square().mean())
        for strength, tokens in held.items()
    }
    assert distance[1] == 0.0
    assert distance[0] > distance[0.25] > distance[0.75] > 0
    torch.testing.assert_close(held[0], sampled(None), atol=1e-6, rtol=0)


# Whole jobs.


def test_text_to_video(runner: Runner) -> None:
    """Any size, length and rate; the seed decides every byte; guidance reads the other prompt."""
    spec = runner.spec(width=90, height=70, num_frames=11, frame_rate=NTSC, with_audio=True)
    first = runner.run(spec)
    clip = played(first.video)
    assert clip.frames.shape == (11, 70, 90, 3)
    assert clip.rate == NTSC
    assert clip.sound is not None
    assert clip.sound.shape[1] >= round(11 / NTSC * 48_000)
    made = first.generation_result()
    assert (made.width, made.height, made.num_frames, made.frame_rate) == (90, 70, 11, NTSC)
    assert (made.seed, made.prompt, made.prompt_expanded, made.safety) == (
        5,
        spec.prompt,
        False,
        "off",
    )
    steps = [
        (event["done"], event["total"])
        for event in read_events(first)
        if event["kind"] == "progress" and event["name"] == "generate"
    ]
    assert steps == [(1, 2), (2, 2)]
    (took,) = [event for event in read_events(first) if event["kind"] == "generated"]
    assert (took["model"], took["device"], took["peak_memory_bytes"]) == ("tiny", "cpu", None)
    tokens = num_video_tokens(17, 96, 96), num_audio_latents(17, NTSC)
    assert (took["video_tokens"], took["audio_tokens"], took["num_passes"]) == (*tokens, 1)
    assert took["num_pixels"] == 90 * 70 * 11
    assert took["step_time_s"] > 0
    assert took["writing_s"] > 0

    def video(**changes: Any) -> bytes:
        return runner.run(spec.model_copy(update=changes)).video.read_bytes()

    assert video() == first.video.read_bytes()
    assert video(seed=6) != first.video.read_bytes()
    guided = {"guidance_scale": 4.0, "negative_prompt": "blurry"}
    assert video(**guided) != video(**guided | {"negative_prompt": "a rabbit"})


@pytest.mark.parametrize("with_audio", [True, False], ids=["sound", "silent"])
def test_outpaint(runner: Runner, bunny: Path, with_audio: bool) -> None:
    """The source's own pixels, to the encoder's loss; around it what the model makes."""
    spec = runner.spec(
        width=190, height=126, num_frames=12, task=Outpaint(source_scale=0.6), with_audio=with_audio
    )
    directory = runner.run(spec, bunny)
    clip = played(directory.video)
    assert clip.frames.shape == (12, 126, 190, 3)
    assert clip.rate == RATE
    assert (clip.sound is None) is not with_audio

    source = SourceManifest.load(directory.root / "source")
    place = source.placement
    assert (place.left, place.top, place.width, place.height) == (32, 32, 128, 64)
    own = np.load(directory.root / "source" / source.frames)
    inside = clip.frames[:, 32 : 32 + 64, 32 : 32 + 128]
    seam = spec.soft_seam_pixels or 0
    assert psnr(inside[:, seam:-seam, seam:-seam], own[:, seam:-seam, seam:-seam]) > 38
    assert psnr(inside[:, -2:], own[:, -2:]) < 20, "at the seam it fades into what was made"
    assert any("lies at 128x64 pixels" in note for note in directory.generation_result().notes)


def test_a_short_source_ends_the_video(runner: Runner, carphone: Path) -> None:
    """Four seconds at 5 frames a second: 20 frames, not 41, and none of them made up."""
    spec = runner.spec(
        num_frames=41, frame_rate=Fraction(5), task=Outpaint(source_scale=0.5), soft_seam_pixels=0
    )
    directory = runner.run(spec, carphone)
    clip = played(directory.video)
    assert (len(clip.frames), clip.rate) == (20, 5)
    made = directory.generation_result()
    assert made.num_frames == 20
    assert any("so the video has 20 frames, not 41" in note for note in made.notes)


def test_strength_below_one_shows_what_was_made(runner: Runner, bunny: Path) -> None:
    """No pixels are laid over a source that is meant to change, and at 0 none is asked for."""
    task = Outpaint(source_scale=0.5)
    spec = runner.spec(width=128, height=128, task=task, strength=0.5)
    directory = runner.run(spec, bunny)
    source = SourceManifest.load(directory.root / "source")
    place = source.placement
    own = np.load(directory.root / "source" / source.frames)
    inside = played(directory.video).frames[
        :, place.top : place.top + place.height, place.left : place.left + place.width
    ]
    assert psnr(inside, own) < 20
    free = runner.run(spec.model_copy(update={"strength": 0.0}))
    text = runner.run(spec.model_copy(update={"task": None}))
    assert free.video.read_bytes() == text.video.read_bytes()


def test_inpaint(runner: Runner, bikes: Path, tmp_path: Path) -> None:
    mask = np.zeros((64, 96), np.uint8)
    mask[:, 64:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    spec = runner.spec(task=Inpaint(), soft_seam_pixels=0)
    directory = runner.run(spec, bikes, tmp_path / "mask.png")
    own = np.load(directory.root / "source" / "source.frames.npy")
    frames = played(directory.video).frames
    # Four pixels beside the border share their colour with it (4:2:0 and the encoder's blocks).
    assert psnr(frames[:, :, :60], own[:, :, :60]) > 38
    assert psnr(frames[:, :, 64:], own[:, :, 64:]) < 20


EXTENSIONS = {
    "suffix": (ExtendSuffix(num_latent_frames=1), slice(17, 25)),
    "suffix, of a length off the grid": (
        ExtendSuffix(num_latent_frames=1),
        slice(12, 20),
    ),
    "prefix": (ExtendPrefix(num_latent_frames=2), slice(0, 9)),
    "prefix, the source's beginning": (
        ExtendPrefix(num_latent_frames=2, window="first"),
        slice(0, 9),
    ),
}


@pytest.mark.parametrize("case", EXTENSIONS)
def test_extension(case: str, runner: Runner, bunny: Path) -> None:
    """The window's pictures and sound are the source's, and fade towards the rest."""
    task, given = EXTENSIONS[case]
    count = 20 if "off the grid" in case else 25
    spec = runner.spec(num_frames=count, task=task, with_audio=True)
    directory = runner.run(spec, bunny)
    clip = played(directory.video)
    assert len(clip.frames) == count
    own = np.load(directory.root / "source" / "source.frames.npy")
    assert len(own) == given.stop - given.start
    at_end = given.start > 0
    inner = slice(4, None) if at_end else slice(0, -4)  # the seam in time
    assert psnr(clip.frames[given][inner], own[inner]) > 38
    fade = 0 if at_end else -1
    assert psnr(clip.frames[given][fade], own[fade]) < psnr(clip.frames[given][inner], own[inner])

    sound = np.load(directory.root / "source" / "source.audio.npy")
    assert clip.sound is not None
    heard = clip.sound[:, : round(count / 24 * 48_000)]
    part = heard[:, -sound.shape[1] :] if at_end else heard[:, : sound.shape[1]]
    quiet = slice(2000, -2000)
    likeness = np.corrcoef(part[0, quiet], sound[0, quiet])[0, 1]
    assert likeness > 0.9, likeness


def test_an_extension_of_a_silent_clip_makes_its_sound(runner: Runner, bikes: Path) -> None:
    spec = runner.spec(num_frames=17, task=ExtendPrefix(num_latent_frames=1), with_audio=True)
    directory = runner.run(spec, bikes)
    assert played(directory.video).sound is not None
    notes = directory.generation_result().notes
    assert "video_url has no sound, so all sound is generated." in notes


# LoRAs.


def test_loras_act_and_leave_nothing_behind(
    runner: Runner, lora: Path, models: ModelCache, tiny: BaseModel
) -> None:
    """One process, one loaded model: plain, with LoRAs, plain again, to the last byte."""
    spec = runner.spec()
    plain = runner.run(spec).video.read_bytes()
    kept = models.transformer(tiny, with_audio=False, exact=False)
    choice = LoraChoice(path=lora, name="mine.safetensors", scale=2.0, transformer="high")
    directory = runner.run(spec.model_copy(update={"loras": (choice, choice)}))
    assert directory.video.read_bytes() != plain
    log = logged(directory)
    assert f"LoRA 'mine.safetensors': 96 layers of rank {RANK}, scale 2" in log
    assert any("is for the high pass of a model with two" in line for line in log)
    assert any("64 layers for sound are left out" in line for line in log)
    off = spec.model_copy(update={"loras": (choice.model_copy(update={"scale": 0.0}),)})
    assert runner.run(off).video.read_bytes() == plain
    assert runner.run(spec).video.read_bytes() == plain

    assert models.transformer(tiny, with_audio=False, exact=False) is kept, "loaded once"
    loaded = kept.state_dict()
    fresh = tiny.transformer(with_audio=True).state_dict()
    assert all(torch.equal(fresh[key], tensor) for key, tensor in loaded.items())


def test_a_bad_lora_is_refused_before_anything_is_loaded(
    runner: Runner, lora: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(lora.read_bytes()[:-5])
    choices = (LoraChoice(path=lora, name="good"), LoraChoice(path=bad, name="b\nad"))
    directory = runner.job(runner.spec(loras=choices))
    result = run_job(directory.root, ModelCache())
    assert (result.status, result.error_type, result.users_fault, result.field) == (
        "failed",
        "lora_file_invalid",
        True,
        "loras.1.path",
    )
    assert result.error is not None
    assert result.error.startswith(r"LoRA 'b\nad': not a whole safetensors file")
    assert not directory.video.exists()
    assert {e["name"] for e in read_events(directory) if e["kind"] == "stage"} == {"read_inputs"}


def test_a_lora_that_breaks_the_sample_is_said(runner: Runner, lora: Path) -> None:
    choice = LoraChoice(path=lora, name="wild", scale=1e30)
    directory = runner.job(runner.spec(loras=(choice,)))
    result = run_job(directory.root, runner.models)
    assert (result.error_type, result.users_fault, result.field) == (
        "sampling_failed",
        True,
        "loras",
    )
    assert not list(directory.outputs.glob("video*"))


# Prompt, safety, the ends.


CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


def test_a_prompt_is_expanded_by_the_text_encoder(
    runner: Runner, tiny: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a chat template the tiny model is asked too. It writes nonsense, always the same."""
    encoder = runner.models.text_encoder(tiny)
    spec = runner.spec(expand_prompt=True)
    off = runner.run(spec).generation_result()
    assert (off.prompt, off.prompt_expanded) == (spec.prompt, False)
    assert any("not expanded: the loaded model's tokenizer has no chat" in n for n in off.notes)

    monkeypatch.setattr(encoder.tokenizer, "chat_template", CHAT)
    monkeypatch.setattr(expansion, "MAX_NEW_TOKENS", 8)
    favoured = encoder.tokenizer("q").input_ids[-1]
    bias = torch.zeros(encoder.gemma.config.text_config.vocab_size)
    bias[favoured] = 1e4
    head = encoder.gemma.get_output_embeddings()
    handle = head.register_forward_hook(lambda _m, _i, logits: logits + bias)
    directory = runner.run(spec)
    made = directory.generation_result()
    assert made.prompt_expanded
    assert made.prompt == 8 * "q"
    assert f"Expanded prompt: {made.prompt}" in logged(directory)
    bias.zero_()
    bias[encoder.tokenizer.eos_token_id] = 1e4
    silent = runner.run(spec).generation_result()
    handle.remove()
    assert (silent.prompt, silent.prompt_expanded) == (spec.prompt, False)
    assert any("wrote nothing that is a prompt" in note for note in silent.notes)


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Real classifiers, tiny and sure of themselves."""
    from transformers import ViTConfig, ViTForImageClassification
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    folders = {}
    for favoured in ("normal", "nsfw"):
        torch.manual_seed(0)
        config = ViTConfig(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=32,
            patch_size=16,
            id2label={0: "normal", 1: "NSFW"},
            label2id={"normal": 0, "NSFW": 1},
        )
        model = ViTForImageClassification(config)
        with torch.no_grad():
            model.classifier.bias.copy_(
                torch.tensor([9.0, -9.0] if favoured == "normal" else [-9.0, 9.0])
            )
        folder = tmp_path_factory.mktemp(favoured)
        model.save_pretrained(folder)
        ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
        folders[favoured] = folder
    return folders


def test_safety(runner: Runner, classifiers: dict[str, Path]) -> None:
    spec = runner.spec(check_safety=True, num_frames=33)
    safe = runner.run(spec, safety=SafetyClassifier(folder=classifiers["normal"]))
    assert safe.generation_result().safety == "passed"
    assert runner.run(spec).generation_result().safety == "unavailable"

    flagged = runner.job(spec, safety=SafetyClassifier(folder=classifiers["nsfw"]))
    result = run_job(flagged.root, runner.models)
    assert (result.error_type, result.users_fault, result.field) == (
        "content_policy_violation",
        True,
        "prompt",
    )
    assert not list(flagged.outputs.glob("video*"))
    wrong = SafetyClassifier(folder=classifiers["nsfw"], unsafe_labels=("gore",))
    result = run_job(runner.job(spec, safety=wrong).root, runner.models)
    assert (result.error_type, result.users_fault) == ("model_unavailable", False)
    assert "normal, NSFW" in str(result.error)


@pytest.mark.parametrize(
    ("stage", "seen"),
    [
        pytest.param("generate", [1, 2], id="between two of eight steps"),
        pytest.param("write_video", [8], id="between two frames"),
    ],
)
def test_cancelled(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, stage: str, seen: list[int]
) -> None:
    """Told after the last of ``seen``, there is no further one, and no file."""
    directory = runner.job(runner.spec(num_inference_steps=8, num_frames=17))
    emit = EventLog.emit

    def tell(log: EventLog, kind: str, **fields: Any) -> None:
        emit(log, kind, **fields)
        if (fields.get("name"), fields.get("done")) == (stage, seen[-1]):
            directory.tell(Control.CANCEL)

    monkeypatch.setattr(EventLog, "emit", tell)
    assert run_job(directory.root, runner.models) == Result(status="cancelled", step=0)
    done = [e["done"] for e in read_events(directory) if e.get("name") == stage and "done" in e]
    assert done == seen
    assert not list(directory.outputs.glob("video*"))


def test_what_is_missing_is_said(runner: Runner, bunny: Path) -> None:
    """A source that was not prepared, or for another canvas."""
    spec = runner.spec(task=Outpaint())
    directory = runner.job(spec, bunny)
    (directory.root / "source" / "source.json").unlink()
    result = run_job(directory.root, runner.models)
    assert (result.field, result.users_fault) == ("video_url", True)
    other = runner.job(spec, bunny)
    job = other.load()
    assert isinstance(job, GenerateJob)
    other.create(job.model_copy(update={"spec": spec.model_copy(update={"width": 160})}))
    result = run_job(other.root, runner.models)
    assert "was prepared for 96x64" in str(result.error)
    # Off the grid, one frame is sampled that would be cut away again.
    for count, task in (
        (9, ExtendPrefix(num_latent_frames=2)),
        (8, ExtendSuffix(num_latent_frames=1)),
    ):
        full = runner.job(runner.spec(task=task, num_frames=count), bunny)
        result = run_job(full.root, runner.models)
        assert result.field == "num_frames"
        assert f"The video has {count} frames and {count} of the source are given" in str(
            result.error
        )


# How it is written.


def test_encoding_settings_differ_as_they_say(bunny: Path, tmp_path: Path) -> None:
    """Measured on a real clip: quality in dB and bytes, modes in bytes at one quality."""
    with av.open(str(bunny)) as container:
        frames = np.stack(
            [
                f.to_ndarray(format="rgb24", width=320, height=176)
                for _, f in zip(range(33), container.decode(video=0), strict=False)
            ]
        )

    def written(encoding: Encoding) -> tuple[int, float]:
        path = tmp_path / "clip.mp4"
        height, width = frames.shape[1:3]
        compression = compression_of(encoding)
        with Mp4Writer(
            path,
            width=width,
            height=height,
            frame_rate=Fraction(25),
            with_audio=False,
            compression=compression,
        ) as writer:
            for frame in frames:
                writer.write_frame(frame)
        return path.stat().st_size, psnr(played(path).frames, frames)

    qualities = [written(Encoding(quality=q)) for q in ("low", "medium", "high", "maximum")]
    sizes, values = zip(*qualities, strict=True)
    assert all(b > 1.4 * a for a, b in pairwise(sizes)), sizes
    assert all(b > a + 1 for a, b in pairwise(values)), values
    modes = [written(Encoding(write_mode=m)) for m in ("fast", "balanced", "small")]
    sizes, values = zip(*modes, strict=True)
    assert sizes[0] > 1.2 * sizes[1] > 1.2 * sizes[2], sizes
    assert max(values) - min(values) < 2


# Beside trainings.


def test_the_child_serves_both_kinds(
    runner: Runner, tmp_path: Path, silent_dataset: Path, cache: Path
) -> None:
    """A training, then a generation with its LoRA, in one process; a refusal keeps it alive."""
    training = make_job(
        tmp_path / "train", silent_dataset, cache, spec=make_spec(num_steps=2, rank=2)
    )
    trained_lora = LoraChoice(path=training.lora, name="trained")
    jobs = [
        training,
        runner.job(runner.spec(loras=(trained_lora,))),
        _without_source(runner),
        runner.job(runner.spec()),
    ]
    lines = "".join(json.dumps({"job_dir": str(job.root)}) + "\n" for job in jobs)
    done = subprocess.run(
        [sys.executable, "-m", "trainer", "serve"],
        input=lines,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers = [json.loads(line)["status"] for line in done.stdout.splitlines()]
    assert answers == ["completed", "completed", "failed", "completed"], done.stderr[-2000:]
    assert "LoRA 'trained': 32 layers of rank 2, scale 1" in logged(jobs[1])
    assert jobs[1].video.read_bytes() != jobs[3].video.read_bytes()


def _without_source(runner: Runner) -> JobDir:
    """A job that is refused: nothing was prepared."""
    root = runner.root / "refused"
    root.mkdir()
    directory = JobDir(root)
    job = GenerateJob(
        id="job", spec=runner.spec(task=Inpaint()), model="tiny", cache=runner.cache, device="cpu"
    )
    directory.create(job)
    return directory
