"""Event files are read line by whole line."""

import json
from pathlib import Path

from preprocessing.events import EventLog
from workers.children import EventTail


def test_reads_only_whole_lines_and_each_once(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    tail = EventTail(path)
    assert list(tail.read()) == []
    with EventLog(path) as log:
        log.log("one")
        assert [event["message"] for event in tail.read()] == ["one"]
        with path.open("a") as file:
            file.write('{"kind": "log", "message": "ha')
            file.flush()
            assert list(tail.read()) == []
            file.write('lf é"}\n')
        assert [event["message"] for event in tail.read()] == ["half é"]
    assert list(tail.read()) == []


def test_a_line_separator_in_a_message_breaks_no_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventLog(path) as log:
        log.log("a\nb\u2028c")
    assert len(path.read_bytes().splitlines()) == 1
    (event,) = EventTail(path).read()
    assert event["message"] == "a\nb\u2028c"
    assert json.dumps(event)
