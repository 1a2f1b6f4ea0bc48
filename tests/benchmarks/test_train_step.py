"""The benchmarks of the training step run, on tiny; and the operations they count are right."""

from pathlib import Path

import pytest
import torch
from diffusers import LTX2VideoTransformer3DModel

from benchmarks import loss_parity, train_step
from benchmarks.flops import count_flops
from benchmarks.random_model import LTX_2_3, build
from trainer.transformer import drop_audio_branch


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_two_steps_of_every_kind(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results" / "train-step.md"
    given = ["--model", "tiny", "--steps", "2", "--warm-up", "0"]
    assert train_step.main([*given, "--cache", str(cache), "--out", str(out)]) == 0
    text = out.read_text()
    assert text == capsys.readouterr().out
    assert f"--model tiny --steps 2 --warm-up 0 --cache {cache}" in text
    assert f"torch {torch.__version__}" in text
    rows = [line for line in text.splitlines() if line.startswith("| tiny | 8 |")]
    assert [" ".join(row.split("|")[3:5]).split() for row in rows] == [
        ["video", "full"],
        ["video", "fp8"],
        ["video", "reference"],
        ["joint", "full"],
        ["joint", "reference"],
        ["joint", "fp8"],
    ]
    assert "reference / full: " in text
    assert "Not measured" not in text


def test_rows_that_no_time_is_left_for_are_named(cache: Path) -> None:
    arguments = ["--model", "tiny", "--steps", "1", "--warm-up", "0", "--budget-s", "0"]
    lines = []
    parsed = train_step.parse([*arguments, "--cache", str(cache)])
    lines = list(train_step.run(parsed))
    assert not [line for line in lines if line.startswith("| tiny |")]
    assert "tiny, joint, reference" in lines[-1]


@pytest.mark.parametrize(
    ("tokens", "audio_tokens", "forward", "step"),
    [
        (1728, 0, 46, 98),
        (6912, 0, 203, 470),
        (6912, 93, 227, 518),
        (14400, 126, 553, 1368),
    ],
)
def test_operations_are_those_of_the_specification(
    tokens: int, audio_tokens: int, forward: float, step: float
) -> None:
    """`ltx-training.md` 5.2, in TFLOP. It counts the text's gradient too, which nobody needs."""
    with torch.device("meta"):
        transformer = LTX2VideoTransformer3DModel(**LTX_2_3)
    if not audio_tokens:
        drop_audio_branch(transformer)
    counted = count_flops(transformer, tokens, audio_tokens)
    assert counted.forward / 1e12 == pytest.approx(forward, rel=0.01)
    assert counted.step / 1e12 == pytest.approx(step, rel=0.045)


def test_random_weights_keep_activations_sane() -> None:
    """Two blocks of an eighth of the width; the full size needs a GPU."""
    from benchmarks import random_model

    small = {"num_attention_heads": 4, "audio_num_attention_heads": 4}
    small |= {"cross_attention_dim": 512, "audio_cross_attention_dim": 256}
    before = dict(random_model.LTX_2_3)
    random_model.LTX_2_3.update(small)
    random_model.NUM_LAYERS["two"] = 2
    try:
        transformer = build("two", torch.device("cpu"), torch.bfloat16, with_audio=False)
    finally:
        random_model.LTX_2_3.clear()
        random_model.LTX_2_3.update(before)
        del random_model.NUM_LAYERS["two"]
    assert {parameter.dtype for parameter in transformer.parameters()} == {torch.bfloat16}
    geometry = train_step.VideoGeometry(9, 64, 64, train_step.Fraction(24))
    example = random_model.make_example(
        transformer, geometry, torch.device("cpu"), with_audio=False, num_kept=2
    )
    from trainer.transformer import Modality, predict_velocity

    video = example.video
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        velocity, _ = predict_velocity(
            transformer,
            Modality(video.tokens, torch.ones(1), video.context, video.coords, video.keep),
            None,
        )
    assert 0.01 < velocity.float().std() < 100


def test_losses_of_every_way_are_alike(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What compiling does is tested with the trainer; here it would take a minute."""
    out = tmp_path / "parity.md"
    ways = ["eager fp32", "offloaded", "fp8"]
    given = ["--steps", "2", "--cache", str(cache), "--out", str(out), "--ways", *ways]
    assert loss_parity.main(given) == 0
    assert out.read_text() == capsys.readouterr().out
    rows = {
        cells[1].strip(): float(cells[4])
        for line in out.read_text().splitlines()
        if len(cells := line.split("|")) == 8 and cells[1].strip() in ways
    }
    assert rows.keys() == set(ways)
    assert rows["offloaded"] < 1e-6
    assert max(rows.values()) < 5e-3
