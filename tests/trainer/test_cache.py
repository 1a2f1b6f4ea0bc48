"""The cache's size: what a starting job deletes, and what it must leave to the others."""

import os
from pathlib import Path

import pytest

from trainer.cache import EncodedCache
from trainer.model import BaseModel

FILE_BYTES = 100
PROMPTS = ("oldest", "older", "newer", "newest")


@pytest.fixture
def folder(tmp_path: Path, tiny: BaseModel) -> Path:
    """A cache with the contexts of `PROMPTS`, 100 bytes each, last used an hour apart."""
    cache = EncodedCache(tmp_path, tiny)
    for hour, prompt in enumerate(PROMPTS):
        path = cache.context_path(prompt)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(FILE_BYTES))
        os.utime(path, (hour * 3600, hour * 3600))
    return tmp_path


def left(cache: EncodedCache) -> list[str]:
    return [prompt for prompt in PROMPTS if cache.context_path(prompt).exists()]


@pytest.mark.parametrize(
    ("max_bytes", "claimed", "expected"),
    [
        pytest.param(400, [], PROMPTS, id="it-fits"),
        pytest.param(399, [], ["older", "newer", "newest"], id="one-byte-too-many"),
        pytest.param(200, [], ["newer", "newest"], id="the-oldest-go"),
        pytest.param(200, ["oldest"], ["oldest", "newest"], id="what-is-needed-stays"),
        pytest.param(0, ["older", "unseen"], ["older"], id="even-above-the-limit"),
        pytest.param(0, [], [], id="nothing-fits"),
    ],
)
def test_the_least_recently_used_go_first(
    folder: Path, tiny: BaseModel, max_bytes: int, claimed: list[str], expected: list[str]
) -> None:
    cache = EncodedCache(folder, tiny, max_bytes=max_bytes)
    with cache.claim([], claimed):
        assert left(cache) == list(expected)
    assert left(cache) == list(expected)


def test_a_claim_counts_as_use(folder: Path, tiny: BaseModel) -> None:
    with EncodedCache(folder, tiny).claim([], ["oldest"]):
        pass
    cache = EncodedCache(folder, tiny, max_bytes=2 * FILE_BYTES)
    with cache.claim([], []):
        assert left(cache) == ["oldest", "newest"]


def test_a_job_leaves_what_another_one_needs(folder: Path, tiny: BaseModel) -> None:
    """Also a file that the other is about to write, aside or whole."""
    cache = EncodedCache(folder, tiny, max_bytes=0)
    with EncodedCache(folder, tiny).claim([], ["older", "in work"]):
        whole = cache.context_path("in work")
        aside = whole.with_name(f".{whole.name}.123.part")
        aside.write_bytes(bytes(FILE_BYTES))
        with cache.claim([], []):
            assert left(cache) == ["older"]
            assert aside.exists()
    with cache.claim([], []):
        assert left(cache) == []
        assert not aside.exists()


def test_what_a_killed_job_claimed_is_free(folder: Path, tiny: BaseModel) -> None:
    """A kill leaves the claim's file, but not its lock."""
    cache = EncodedCache(folder, tiny, max_bytes=0)
    claims = folder / "claims"
    with cache.claim([], ["newest"]):
        (claim,) = claims.glob("*.claim")
        content = claim.read_bytes()
    assert not claim.exists()
    cache.context_path("newest").write_bytes(bytes(FILE_BYTES))
    claim.write_bytes(content)
    with cache.claim([], []):
        assert left(cache) == []
    assert not list(claims.glob("*.claim"))
