"""The input of a submit: fields, files here, and what is asked first."""

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.client.body import (
    ask_first,
    dataset_rule,
    local_files,
    read_input,
    replaced,
    with_fields,
    with_previews,
    without,
)
from app.client.errors import Refused
from app.client.service import Service
from tests.app.client.conftest import Served

FIELDS = {
    "rank=16": 16,
    "rank=1.5": 1.5,
    "rank=true": True,
    "rank=null": None,
    "rank=a cat": "a cat",
    'rank="16"': "16",
    "rank=": "",
    "rank=a=b": "a=b",
    "rank=NaN": "NaN",
    "rank=[8, 9]": [8, 9],
}


@pytest.mark.parametrize(("given", "value"), FIELDS.items())
def test_a_field_is_json_or_text(given: str, value: Any) -> None:
    assert with_fields({"rank": 8, "x": 1}, [given]) == {"rank": value, "x": 1}


@pytest.mark.parametrize("given", ["rank", "=8", " =8"])
def test_what_is_no_field(given: str) -> None:
    with pytest.raises(Refused, match="name=value"):
        with_fields({}, [given])


def test_previews_by_their_order() -> None:
    body = with_previews({}, ["a", "b"], ["1.mp4", "2.mp4"], ["1.png", "2.png"])
    assert body["validation"] == [
        {"prompt": "a", "video_url": "1.mp4", "mask_url": "1.png"},
        {"prompt": "b", "video_url": "2.mp4", "mask_url": "2.png"},
    ]
    assert with_previews({"a": 1}, [], [], []) == {"a": 1}


@pytest.mark.parametrize(
    ("body", "videos"), [({}, ["1.mp4", "2.mp4"]), ({"validation": [{"prompt": "b"}]}, [])]
)
def test_previews_that_do_not_fit(body: dict[str, Any], videos: list[str]) -> None:
    with pytest.raises(Refused):
        with_previews(body, ["a"], videos, [])


@pytest.mark.parametrize("content", ["[1]", "{", "\udcff"])
def test_input_that_is_no_object(tmp_path: Path, content: str) -> None:
    path = tmp_path / "input.json"
    path.write_text(content, errors="surrogateescape")
    with pytest.raises(Refused, match=r"input\.json"):
        read_input(path)
    with pytest.raises(Refused, match="can't be read"):
        read_input(tmp_path / "nothing.json")


def test_files_here_are_found_and_replaced(tmp_path: Path) -> None:
    video = tmp_path / "v.mp4"
    video.touch()
    body = {
        "validation": [
            {"prompt": "a", "video_url": "https://example.com/a.mp4"},
            {"prompt": str(video), "video_url": str(video)},
        ]
    }
    before = copy.deepcopy(body)
    assert local_files(body) == {("validation", 1, "video_url"): video}
    sent = replaced(body, {("validation", 1, "video_url"): "https://x/v"})
    assert sent["validation"][1] == {"prompt": str(video), "video_url": "https://x/v"}
    assert sent["validation"][0] == before["validation"][0]
    assert body == before
    with pytest.raises(Refused, match=r"validation\.0\.video_url: 'gone\.mp4' is neither"):
        local_files({"validation": [{"video_url": "gone.mp4"}]})


json = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=8,
)


@given(json)
def test_nothing_to_replace_and_to_leave_out_changes_nothing(body: Any) -> None:
    assert replaced(body, {}) == without(body, []) == body


ARCHIVE = [("training_data_url",)]


def test_asking_first_finds_what_is_wrong_and_queues_nothing(
    served: Served, service: Service
) -> None:
    entry = {"prompt": "a", "video_url": "https://example.com/a.mp4"}
    where = ("validation", 0, "video_url")
    ask_first(service, "outpaint", {"crop_top_left": [32, 32], "crop_bottom_right": [512, 512],
                                    "validation": [entry]}, [*ARCHIVE, where])  # fmt: skip
    with pytest.raises(Refused) as refused:
        ask_first(service, "t2v", {"rank": 33, "number_of_steps": 50}, ARCHIVE)
    assert [line.partition(":")[0] for line in refused.value.lines] == ["rank", "number_of_steps"]
    assert "(given: 33)" in refused.value.lines[0]
    with pytest.raises(Refused) as unknown:
        ask_first(service, "t3v", {}, ARCHIVE)
    assert unknown.value.status == 404
    assert service.list()["requests"] == []


def test_the_rule_of_the_mode_where_it_is_known() -> None:
    found = dataset_rule("fal-ai/ltx23-trainer-v2/inpaint", {"rank": 8})
    assert found is not None
    assert found.masks
    assert dataset_rule("t2v", {"rank": 33}) is None
    assert dataset_rule("t3v", {}) is None
