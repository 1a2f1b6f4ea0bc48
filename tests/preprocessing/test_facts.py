"""`python -m preprocessing probe`: what a clip is, or why it is none, as data."""

from pathlib import Path

from preprocessing.__main__ import main
from preprocessing.cli import EXIT_OK, EXIT_REFUSED
from preprocessing.facts import FACTS_FILE
from preprocessing.report import PROBLEM_FILE, Refusal, VideoFacts


def test_facts_of_a_clip(bunny: Path, tmp_path: Path) -> None:
    assert main(["probe", str(bunny), "--out", str(tmp_path)]) == EXIT_OK
    facts = VideoFacts.model_validate_json((tmp_path / FACTS_FILE).read_bytes())
    assert (facts.width, facts.height, facts.num_frames) == (1280, 720, 132)
    assert (facts.frame_rate, facts.audio is not None) == (25, True)
    assert not (tmp_path / PROBLEM_FILE).exists()


def test_no_clip_is_blamed_on_its_field(tmp_path: Path) -> None:
    page = tmp_path / "page.mp4"
    page.write_text("<html>not a video</html>")
    out = tmp_path / "out"
    arguments = ["probe", str(page), "--out", str(out), "--field", "image_url"]
    assert main(arguments) == EXIT_REFUSED
    problem = Refusal.load(out).problem
    assert problem.field == "image_url"
    assert "image_url" in problem.message
    assert str(tmp_path) not in problem.message
    assert not (out / FACTS_FILE).exists()
