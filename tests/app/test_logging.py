"""What a log line never holds."""

import json

import pytest

from app.logging import HIDDEN, Hiding

GRANT = "1764500000-" + 64 * "a"
KEY = "rs-0123456789abcdef:" + 43 * "k"
LINES = {
    "a URL's password": ("at redis://:pw@host/0", f"at redis://{HIDDEN}@host/0"),
    "a URL's user": ("postgresql://ann:p:w@db/x", f"postgresql://{HIDDEN}@db/x"),
    "a port is none": ("http://host:80/a@b", "http://host:80/a@b"),
    "a file's permission": (f"/files/{GRANT}/k", f"/files/{HIDDEN}/k"),
    "S3's permission": ("?X-Amz-Signature=0af&x", f"?X-Amz-Signature={HIDDEN}&x"),
    "a key": (f"key {KEY}.", f"key rs-{HIDDEN}."),
    "known ones": ("first-secret-2 first-secret", f"{HIDDEN} {HIDDEN}"),
    "known ones as JSON has them": (json.dumps('quoted"secret'), f'"{HIDDEN}"'),
    "short ones are words": ("short", "short"),
}


@pytest.mark.parametrize("case", LINES)
def test_hidden(case: str) -> None:
    hiding = Hiding(["first-secret", "first-secret-2", 'quoted"secret', "short"])
    line, expected = LINES[case]
    assert hiding(None, "info", line) == expected


@pytest.mark.parametrize("part", ["://", ":", "://:", "/files/1", "rs-", "X-Amz-Signature="])
def test_a_long_line_is_read_once(part: str) -> None:
    """In an instant. Trying every ``:`` as the one before a password would take hours."""
    line = "://" + part * 400_000
    assert Hiding()(None, "info", line) == line
