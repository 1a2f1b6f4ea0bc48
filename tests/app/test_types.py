"""JSON columns hold what anybody throws at them, as both databases can."""

import json
from typing import Any

import pytest

from app.db.types import clean_json, dump_json

VALUES = {
    "plain": {"a": 1, "b": [0.5, None, True], "c": {"d": "text"}},
    "not a number": {"loss": float("nan"), "all": [float("inf"), -float("inf"), 1.0]},
    "NUL": {"a\x00": "b\x00c"},
    "NUL, written out": {"a": "\\u0000"},
    "lone surrogate": {"a": "b\ud800c", "\udfff": 1},
    "emoji": {"a": "\U0001f600 \u00e9 \u2028"},
    "keys that are no text": {1: "a", 2.5: "b"},
    "tuple": {"size": (1, 2)},
    "great number": {"a": 10**30},
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_the_text_is_that_of_the_cleaned_value(value: Any) -> None:
    assert json.loads(dump_json(value)) == json.loads(json.dumps(clean_json(value)))
