"""Starting configurations: what to begin with, for a kind of dataset. Every value can be changed.

Each names fields that trainers share; a form leaves out those that its endpoint does not have.
They are beginnings, not measured optima: steps and rank follow how much there is to learn.
"""

from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True)
class Start:
    name: str
    title: str
    why: str
    values: dict[str, Any]


STARTS: Final = (
    Start(
        "quick",
        "Quick look",
        "100 small steps: shows in minutes whether clips, captions and masks are right.",
        {
            "number_of_steps": 100,
            "rank": 8,
            "number_of_frames": 25,
            "resolution": "low",
            "validation_resolution": "low",
            "validation_number_of_frames": 25,
        },
    ),
    Start(
        "default",
        "fal's defaults",
        "2,000 steps at rank 32: what the hosted trainer does when nothing is set.",
        {},
    ),
    Start(
        "subject",
        "One subject",
        "Few clips of one thing: fewer steps, so that their backgrounds are not learned.",
        {"number_of_steps": 1500, "rank": 16, "learning_rate": 0.0002},
    ),
    Start(
        "style",
        "A style, many clips",
        "Fifty clips or more: more room to learn in, and more steps to fill it.",
        {"number_of_steps": 4000, "rank": 64, "learning_rate": 0.0001},
    ),
)
