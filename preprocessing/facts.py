"""What one clip is, for whoever must know before it is fitted.

DIR/facts.json       `preprocessing.report.VideoFacts`
DIR/problem.json     why it can't be read, in place of facts.json
"""

from pathlib import Path
from typing import Final

from preprocessing.errors import MediaError
from preprocessing.media import probe_video
from preprocessing.pool import Pool
from preprocessing.report import Problem, Refusal, VideoFacts

FACTS_FILE: Final = "facts.json"


def find_facts(video: Path, field: str, out: Path) -> VideoFacts:
    """Look at ``video``, which ``field`` of the request names, and write the layout above.

    Raises `MediaError` for what is no readable video.

    It is decoded in a confined child process, so scripts need ``if __name__ == "__main__":``.
    """
    with Pool(1, out, [video]) as pool:
        facts = dict(pool.run(_probe, [(field, video)]))[0]
    if isinstance(facts, MediaError):
        facts.field = field
        Refusal(problem=Problem.of(facts)).save(out)
        raise facts
    (out / FACTS_FILE).write_text(facts.model_dump_json(indent=2), encoding="utf-8")
    return facts


def _probe(name: str, video: Path) -> VideoFacts:
    return probe_video(video, name).facts
