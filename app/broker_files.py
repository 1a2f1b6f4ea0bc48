"""kombu's `filesystem://`, with messages that appear whole.

kombu opens the message's file under its final name and writes afterwards, so a worker that polls in
between takes an empty file and its consumer dies of a JSON error. Writing aside and renaming closes
the gap; everything else is kombu's.
"""

import uuid
from pathlib import Path
from time import monotonic_ns
from typing import Any

from kombu.transport import filesystem
from kombu.utils.json import dumps


class Channel(filesystem.Channel):  # type: ignore[misc]
    def _put(self, queue: str, payload: dict[str, Any], **_: Any) -> None:
        folder = Path(self.data_folder_out)
        name = f"{monotonic_ns() // 1_000_000}_{uuid.uuid4()}"
        aside = folder / f"{name}.part"
        aside.write_text(dumps(payload), encoding="utf-8")
        aside.rename(folder / f"{name}.{queue}.msg")


class Transport(filesystem.Transport):  # type: ignore[misc]
    Channel = Channel
