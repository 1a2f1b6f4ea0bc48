"""R21's judge: warm memory that goes up and down passes, memory that only rises does not."""

import pytest

from tests.faults.growth import Growth, Size, by_jobs


def _sizes(minutes: int, mb_per_job: float, wave_mb: float = 0.0) -> list[Size]:
    """90 jobs a minute, a size every 5 s; ``wave_mb`` comes and goes every 4 minutes."""
    return [
        Size(5.0 * n, round(7.5 * n), 240.0 + 7.5 * n * mb_per_job + wave_mb * (n % 48) / 48, 40)
        for n in range(12 * minutes + 1)
    ]


@pytest.mark.parametrize(
    ("sizes", "too_much"),
    [
        pytest.param(_sizes(30, 0.0), False, id="flat"),
        pytest.param(_sizes(30, 0.007), True, id="7 kB a job, as unwarmed workers showed"),
        pytest.param(_sizes(30, 0.0006), True, id="just above the limit"),
        pytest.param(_sizes(30, 0.0003), False, id="just below the limit"),
        pytest.param(_sizes(60, 0.0, wave_mb=0.5), False, id="a wave"),
        pytest.param(_sizes(10, 0.007), False, id="too short to say"),
    ],
)
def test_growth_is_judged(sizes: list[Size], too_much: bool) -> None:
    assert Growth.of(sizes).too_much == too_much


def test_growth_in_numbers() -> None:
    growth = Growth.of(_sizes(10, 0.001))
    assert growth.jobs == 900
    assert growth.kb_per_job == pytest.approx(1.0)
    assert growth.mb_per_hour == pytest.approx(5.4)
    assert growth.percent_per_hour == pytest.approx(2.25)
    assert growth.numbers()["MB"] == (240.0, 240.9)


def test_sizes_by_jobs() -> None:
    sizes = [Size(5.0 * n, 500 + 100 * n, 240.0 + n, 40) for n in range(7)]
    assert by_jobs(sizes) == {500: 240.0, 800: 243.0, 1000: 245.0}
