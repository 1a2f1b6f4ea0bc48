"""Which plan a training gets on which device, and what comes after one that did not fit."""

import pytest

from trainer import capacity
from trainer.plan import (
    MachineSettings,
    Plan,
    Workload,
    bytes_needed,
    choose,
    least_bytes,
    next_plan,
    weight_bytes,
)

MEDIUM = Workload(num_tokens=6912, rank=32, with_audio=False)
JOINT = Workload(num_tokens=6912, rank=32, with_audio=True)
LONG = Workload(num_tokens=14400, rank=128, with_audio=True)
AUTO = MachineSettings()
GB = 10**9


@pytest.mark.parametrize(
    ("work", "free_gb", "precision", "recomputed", "offloaded"),
    [
        pytest.param(MEDIUM, 140, "full", range(1), range(1), id="h200-keeps-everything"),
        pytest.param(JOINT, 140, "full", range(4, 16), range(1), id="h200-joint"),
        pytest.param(MEDIUM, 77, "full", range(20, 30), range(1), id="80-gb"),
        pytest.param(MEDIUM, 46, "full", range(40, 48), range(1), id="48-gb"),
        pytest.param(JOINT, 46, "fp8", range(40, 48), range(1), id="48-gb-joint"),
        pytest.param(MEDIUM, 30.7, "fp8", range(40, 49), range(1), id="32-gb"),
        pytest.param(MEDIUM, 23, "fp8", range(48, 49), range(5, 20), id="24-gb"),
        pytest.param(JOINT, 23, "fp8", range(48, 49), range(20, 49), id="24-gb-joint"),
    ],
)
def test_the_plan_of_a_card(
    work: Workload, free_gb: float, precision: str, recomputed: range, offloaded: range
) -> None:
    plan = choose(work, int(free_gb * GB), AUTO, supports_float8=True)
    assert plan is not None
    assert plan.precision == precision
    assert plan.num_recomputed in recomputed
    assert plan.num_offloaded in offloaded
    assert bytes_needed(plan, work) <= free_gb * GB
    assert f"{free_gb:.1f} GB free" in plan.describe()


def test_the_least_that_fits_is_chosen() -> None:
    """One block less recomputed, or offloaded, would not have fitted."""
    for free_gb in range(20, 120, 3):
        plan = choose(MEDIUM, free_gb * GB, AUTO, supports_float8=False)
        assert plan is not None
        assert plan.precision in ("full", "int8")
        before = Plan(plan.precision, plan.num_recomputed - 1, 0)
        if plan.num_offloaded > 1:
            before = Plan(plan.precision, plan.num_recomputed, plan.num_offloaded - 1)
        if before.num_recomputed >= 0:
            assert bytes_needed(before, MEDIUM) > free_gb * GB


def test_what_no_plan_fits() -> None:
    assert choose(LONG, 20 * GB, AUTO, supports_float8=True) is None
    assert least_bytes(LONG, AUTO, supports_float8=True) > 20 * GB
    bf16_only = MachineSettings(precision="full", offloaded_blocks=0)
    assert choose(MEDIUM, 30 * GB, bf16_only, supports_float8=True) is None


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (MachineSettings(precision="int8"), ("int8", 0, 0)),
        (MachineSettings(recomputed_blocks=48, offloaded_blocks=0), ("full", 48, 0)),
        (
            MachineSettings(precision="fp8", recomputed_blocks=48, offloaded_blocks=12),
            ("fp8", 48, 12),
        ),
    ],
    ids=["precision", "recomputed", "all"],
)
def test_settings_are_followed(settings: MachineSettings, expected: tuple[str, int, int]) -> None:
    plan = choose(MEDIUM, 135 * GB, settings, supports_float8=True)
    assert plan is not None
    assert (plan.precision, plan.num_recomputed, plan.num_offloaded) == expected


def test_falling_back_ends_after_everything_was_tried() -> None:
    plan: Plan | None = Plan()
    seen = []
    while plan is not None:
        seen.append((plan.precision, plan.num_recomputed, plan.num_offloaded))
        plan = next_plan(plan, AUTO, num_blocks=48, precision="fp8")
    assert seen[1] == ("full", 4, 0)
    assert seen[13] == ("fp8", 48, 0)
    assert seen[-1] == ("fp8", 48, 48)
    assert seen == sorted(seen, key=lambda one: (one[0] == "fp8", *one[1:]))


def test_a_training_that_has_begun_keeps_its_precision() -> None:
    after = next_plan(Plan("full", 48), AUTO, num_blocks=48, precision=None)
    assert after is not None
    assert (after.precision, after.num_offloaded) == ("full", 12)


def test_memory_as_the_literature_has_it() -> None:
    """`ltx-training.md` 5.3: 83.9 GB of activations on video alone, 114 GB with sound; 32 to 45 GB
    in all with every block recomputed."""
    for work, activations in ((MEDIUM, 83.9e9), (JOINT, 114e9)):
        per_block = capacity.activation_bytes_per_block(6912, with_audio=work.with_audio)
        assert capacity.NUM_BLOCKS * per_block == pytest.approx(activations, rel=0.01)
    assert 32e9 < bytes_needed(Plan("full", 48), MEDIUM) < 45e9


@pytest.mark.parametrize(
    ("plan", "with_audio", "expected_gb"),
    [
        (Plan(), False, 26.2),
        (Plan(), True, 38.0),
        (Plan("int8"), False, 14.4),
        (Plan("fp8", 48, 48), False, 2.6),
        (Plan("fp8", 48, 24), True, 13.2),
    ],
)
def test_weights_on_the_device(plan: Plan, with_audio: bool, expected_gb: float) -> None:
    """One byte for the matrices of 44 blocks; of offloaded blocks, two places."""
    assert weight_bytes(plan, with_audio=with_audio) / 1e9 == pytest.approx(expected_gb, abs=0.1)
