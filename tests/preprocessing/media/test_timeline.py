"""Rates measured from frame times, and frames chosen by them, without any file."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.media.timeline import Span, Timeline, measure, plan
from tests.preprocessing.media.made import rule

MS = Fraction(1, 1000)
NTSC = Fraction(30000, 1001)


def rounded(rate: Fraction | int, count: int, tick: Fraction = MS) -> list[int]:
    return [round(i / Fraction(rate) / tick) for i in range(count)]


@pytest.mark.parametrize("rate", [8, 12, Fraction(24000, 1001), 24, 25, NTSC, 30, 60], ids=str)
@pytest.mark.parametrize("hint", [None, "the same", Fraction(90000)], ids=str)
@pytest.mark.parametrize("count", [60, 3000])
def test_rate_from_rounded_times(rate: Fraction | int, hint: object, count: int) -> None:
    hints = {None: [], "the same": [Fraction(rate)]}.get(hint, [Fraction(90000)])  # type: ignore[call-overload]
    timeline = measure(rounded(rate, count), MS, hints, Fraction(0))
    assert not timeline.variable
    # Two seconds of millisecond times can't tell 24 from 24000/1001, unless the file says which.
    if hint == "the same" or count == 3000:
        assert timeline.rate == rate
    assert float(timeline.rate) == pytest.approx(float(rate), rel=2e-3)


def test_a_lying_rate_is_not_believed() -> None:
    timeline = measure(rounded(25, 500), MS, [Fraction(50), Fraction(24)], Fraction(0))
    assert (timeline.rate, timeline.variable) == (25, False)


def test_an_odd_rate_is_measured() -> None:
    timeline = measure(rounded(Fraction(17), 500), MS, [], Fraction(0))
    assert not timeline.variable
    assert float(timeline.rate) == pytest.approx(17, rel=1e-4)


@pytest.mark.parametrize(
    "ticks",
    [
        [0, 33, 67, 100, 200, 233, 267, 300],
        [0, 40, 80, 120, 160, 1000, 1040, 1080],
        [0, 10, 60, 70, 130, 150, 220],
    ],
    ids=["dropped frames", "a gap", "no rate at all"],
)
def test_variable_rates_are_recognised(ticks: list[int]) -> None:
    timeline = measure(ticks, MS, [], Fraction(1, 30))
    assert timeline.variable
    assert timeline.duration == ticks[-1] * MS + Fraction(1, 30)
    assert [timeline.on_screen(tick * MS) for tick in ticks] == list(range(len(ticks)))
    assert [timeline.on_screen((tick - 3) * MS) for tick in ticks[1:]] == list(
        range(len(ticks) - 1)
    )


def steady(rate: Fraction | int, count: int) -> Timeline:
    return Timeline(tuple(range(count)), 1 / Fraction(rate), Fraction(rate), False, Fraction(0))


@pytest.mark.parametrize(
    ("rate", "count", "fits"),
    [(25, 88, False), (25, 89, True), (60, 89, True), (8, 88, False)],
)
def test_own_rate(rate: int, count: int, fits: bool) -> None:
    timeline = steady(rate, count)
    chosen = plan(timeline, Span(Fraction(0), timeline.duration), rule(num_frames=89))
    assert (chosen is not None) == fits
    if chosen is not None:
        assert chosen.indices == tuple(range(89))
        assert (chosen.frame_rate, chosen.time_scale) == (rate, 1)
        assert chosen.window == Span(Fraction(0), Fraction(89, rate))
        assert chosen.num_source_frames == 89


def test_thirty_to_twenty_four() -> None:
    """89 frames at 24 per second end with frame 110 of 30 per second (`reliability.md` 5.2)."""
    timeline = steady(30, 300)
    asked = rule(num_frames=89, auto_scale=True)
    chosen = plan(timeline, Span(Fraction(0), timeline.duration), asked)
    assert chosen is not None
    assert chosen.indices[:6] == (0, 1, 2, 4, 5, 6)
    assert chosen.indices[-1] == 110
    assert chosen.num_source_frames == 112


SAME = tuple(range(89))


@pytest.mark.parametrize(
    ("rate", "wanted_rate", "first", "last"),
    [
        (Fraction(24000, 1001), 24, (0, 1, 2, 3, 4, 5, 6, 7, 8), (86, 87, 88)),
        (NTSC, 30, (0, 1, 2, 3, 4, 5, 6, 7, 8), (86, 87, 88)),
        (Fraction(24024, 1000), 24, (0, 1, 2, 3, 4, 5, 6, 7, 8), (86, 87, 88)),
        (Fraction(239, 10), 24, (0, 1, 2, 3, 4, 5, 6, 7, 8), (86, 87, 88)),
        (60, 24, (0, 2, 5, 7, 10, 12, 15, 17, 20), (215, 217, 220)),
        (25, 24, (0, 1, 2, 3, 4, 5, 6, 7, 8), (90, 91, 92)),
        (Fraction(60000, 1001), 30, (0, 2, 4, 6, 8, 10, 12, 14, 16), (172, 174, 176)),
    ],
    ids=str,
)
@pytest.mark.parametrize("skipped", [0, 50])
def test_frames_at_another_rate(
    rate: Fraction,
    wanted_rate: int,
    first: tuple[int, ...],
    last: tuple[int, ...],
    skipped: int,
) -> None:
    """From the start of the clip, and of a scene that begins with frame 50."""
    timeline = steady(rate, 300)
    asked = rule(num_frames=89, frame_rate=wanted_rate, auto_scale=True)
    chosen = plan(timeline, Span(timeline.start_of(skipped), timeline.duration), asked)
    assert chosen is not None
    assert chosen.indices[:9] == tuple(skipped + index for index in first)
    assert chosen.indices[-3:] == tuple(skipped + index for index in last)
    # The sound is cut by the window and plays as it is.
    assert (chosen.time_scale, chosen.frame_rate) == (1, wanted_rate)
    assert chosen.window.start == timeline.start_of(skipped)
    assert chosen.window.duration == Fraction(89, wanted_rate)


@pytest.mark.parametrize(
    ("rate", "wanted_rate"), [(Fraction(24000, 1001), 24), (NTSC, 30), (Fraction(24024, 1000), 24)]
)
def test_rates_that_count_as_one_need_as_many_frames(rate: Fraction, wanted_rate: int) -> None:
    timeline = steady(rate, 89)
    asked = rule(num_frames=89, frame_rate=wanted_rate, auto_scale=True)
    chosen = plan(timeline, Span(Fraction(0), timeline.duration), asked)
    assert chosen is not None
    assert chosen.indices == SAME
    assert chosen.time_scale == 1


@settings(max_examples=200, deadline=None)
@given(st.fractions(10, 120, max_denominator=1001), st.integers(8, 60))
def test_no_frame_is_far_from_its_time(rate: Fraction, wanted_rate: int) -> None:
    """At true speed: half a frame of the clip, or of the sample where that is longer, and up to
    0.2 % of the time where the two rates count as one."""
    timeline = steady(rate, 600)
    asked = rule(num_frames=17, frame_rate=wanted_rate, auto_scale=True)
    chosen = plan(timeline, Span(Fraction(0), timeline.duration), asked)
    assert chosen is not None
    assert chosen.time_scale == 1
    for place, index in enumerate(chosen.indices):
        off = timeline.start_of(index) - Fraction(place, wanted_rate)
        longest = 1 / min(rate, Fraction(wanted_rate))
        assert off <= longest / 2
        assert off >= (-longest / 2 if rate >= wanted_rate else -longest)


@pytest.mark.parametrize("count", [2, 40, 88, 89])
def test_short_clips_fill_all_frames(count: int) -> None:
    timeline = steady(24, count)
    asked = rule(num_frames=89, auto_scale=True)
    chosen = plan(timeline, Span(Fraction(0), timeline.duration), asked)
    assert chosen is not None
    assert set(chosen.indices) == set(range(count))
    assert chosen.time_scale == Fraction(89, count)
    assert chosen.window.end == timeline.duration


def test_a_scene_in_the_middle_keeps_to_itself() -> None:
    timeline = steady(25, 250)
    span = Span(Fraction(100, 25), Fraction(120, 25))
    for auto_scale, num_frames in ((False, 17), (True, 89)):
        chosen = plan(timeline, span, rule(num_frames=num_frames, auto_scale=auto_scale))
        assert chosen is not None
        assert min(chosen.indices) == 100
        assert max(chosen.indices) <= 119
        assert chosen.window.start == span.start
        assert chosen.window.end <= span.end


YEAR_S = 365 * 24 * 3600
FAR_APART = {
    # frames whose times no honest camera writes: id: (ticks of a second, the container's hint)
    "two, years apart": ([0, 30 * YEAR_S], None),
    "two, years apart, and a hint": ([0, 30 * YEAR_S], 25),
    "two at once, one years later": ([0, 1, 30 * YEAR_S], None),
    "one a year": ([number * YEAR_S for number in range(20)], None),
    "to the end of 63 bits": ([0, 2**62, 2**63 - 1], 25),
}


@pytest.mark.parametrize(("ticks", "hint"), FAR_APART.values(), ids=FAR_APART)
def test_frames_far_apart_have_a_rate(ticks: list[int], hint: int | None) -> None:
    hints = [Fraction(hint)] if hint else []
    timeline = measure(ticks, Fraction(1), hints, Fraction(0))
    assert timeline.rate > 0
    assert timeline.num_frames == len(ticks)
