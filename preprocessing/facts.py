"""What one clip is, for whoever must know before it is fitted.

DIR/facts.json       `preprocessing.report.VideoFacts`
DIR/problem.json     why it can't be read, in place of facts.json
"""

from pathlib import Path
from typing import Final

from preprocessing.errors import MediaError
from preprocessing.media import probe_video
from preprocessing.report import Problem, Refusal, VideoFacts

FACTS_FILE: Final = "facts.json"


def find_facts(video: Path, field: str, out: Path) -> VideoFacts:
    """Look at ``video``, which ``field`` of the request names, and write the layout above.

    Raises `MediaError` for what is no readable video.
    """
    try:
        facts = probe_video(video, field).facts
    except MediaError as error:
        error.field = field
        Refusal(problem=Problem.of(error)).save(out)
        raise
    (out / FACTS_FILE).write_text(facts.model_dump_json(indent=2), encoding="utf-8")
    return facts
