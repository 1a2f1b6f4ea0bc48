"""How many previews a training pays for."""

import pytest

from trainer.cadence import ALWAYS_GRANTED_S, PreviewBudget, guess_round_s


@pytest.mark.parametrize(
    ("share", "training_s", "round_s", "made"),
    [
        pytest.param(None, 10, 500, 4, id="no limit"),
        pytest.param(0.2, 60, 20, 4, id="short and cheap"),
        pytest.param(0.2, 1700, 84, 4, id="medium, one prompt at high"),
        pytest.param(0.2, 1700, 116, 2, id="two prompts with sound"),
        pytest.param(0.0, 10_000, 61, 1, id="as few as can be"),
        pytest.param(0.2, 200, 600, 1, id="only the last"),
    ],
)
def test_a_share_of_the_training(
    share: float | None, training_s: float, round_s: float, made: int
) -> None:
    """Four points; the last round is always made, and paid for in advance."""
    budget = PreviewBudget(share)
    rounds = 0
    for point in range(4):
        if point == 3 or budget.allows(first_guess_s=round_s, training_s=training_s):
            budget.paid(round_s)
            rounds += 1
    assert rounds == made
    if share is not None and rounds > 1:
        assert budget.spent_s <= max(ALWAYS_GRANTED_S, share * training_s)


def test_what_a_round_costs_is_learnt() -> None:
    budget = PreviewBudget(share=0.1)
    assert not budget.allows(first_guess_s=1000, training_s=1000)
    budget.paid(5)
    assert budget.allows(first_guess_s=1000, training_s=1000)


def test_a_round_on_request_takes_nothing_from_the_others() -> None:
    budget = PreviewBudget(share=0.1)
    budget.paid(1000, asked=True)
    assert budget.spent_s == 1000
    assert not budget.allows(first_guess_s=1, training_s=1000), "its price is known now"
    budget.paid(5)
    assert budget.allows(first_guess_s=1000, training_s=1000)


def test_the_guess_is_the_specifications() -> None:
    """`ltx-training.md` 5.5: 30 steps at high 1:1 take 40 s where a medium step takes 0.59 s."""
    guess = guess_round_s(
        step_s=0.59, step_tokens=6912, tokens=10800, num_prompts=1, num_steps=30, passes=3
    )
    assert guess == pytest.approx(40, rel=0.15)
