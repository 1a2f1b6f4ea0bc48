"""A folder of clips as the archive that trainings take, and a look at it before it is sent.

The look is advice: the service decides, and its report names every file.
"""

import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from app.client.errors import Refused
from app.client.text import clean, size
from preprocessing.rules import (
    IMAGE_EXTENSIONS,
    MASK_IMAGE_EXTENSIONS,
    MASK_SUFFIX,
    VIDEO_EXTENSIONS,
    DatasetRule,
)

CAPTION_EXTENSION: Final = ".txt"
LEFT_OUT_FOLDERS: Final = frozenset({"__macosx", "$recycle.bin", "system volume information"})
LEFT_OUT_FILES: Final = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini"})
COPY_BYTES: Final = 1024 * 1024
ZIP_TIME: Final = (1980, 1, 1, 0, 0, 0)
"""Of every file in the zip: the same folder makes the same bytes, so an upload can go on."""
SHOWN: Final = 5
"""Names in one warning."""

OnBytes = Callable[[int, int], None]


@dataclass
class Contents:
    """What is in a folder or a zip, as far as names tell."""

    num_videos: int = 0
    num_images: int = 0
    num_captions: int = 0
    num_masks: int = 0
    warnings: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """Such as ``12 videos, 11 captions``."""
        counts = (
            (self.num_videos, "video"),
            (self.num_images, "image"),
            (self.num_masks, "mask"),
            (self.num_captions, "caption"),
        )
        said = [f"{count} {word}{'s' * (count != 1)}" for count, word in counts if count]
        return ", ".join(said) or "no clips"


def left_out(name: str) -> bool:
    """Hidden files, and what macOS and Windows leave behind."""
    *folders, last = name.split("/")
    return (
        any(part.startswith(".") for part in (*folders, last))
        or any(part.lower() in LEFT_OUT_FOLDERS for part in folders)
        or last.lower() in LEFT_OUT_FILES
    )


def look(names: Sequence[str], rule: DatasetRule | None) -> Contents:
    """Count what ``names`` are, and warn of what the service would ignore or refuse.

    ``rule`` is the training's, None where it is not known here: then every kind of clip counts.
    """
    videos = rule.video_extensions if rule else (*VIDEO_EXTENSIONS, ".webm")
    images = rule.image_extensions if rule else IMAGE_EXTENSIONS
    takes_masks = rule.masks if rule else False
    kinds: dict[str, list[str]] = {
        kind: [] for kind in ("video", "image", "mask", "caption", "other")
    }
    for name in names:
        if left_out(name):
            continue
        stem, extension = _split(name)
        maskable = extension in (*MASK_IMAGE_EXTENSIONS, *videos)
        if takes_masks and maskable and stem.endswith(MASK_SUFFIX):
            kinds["mask"].append(name)
        elif extension in videos:
            kinds["video"].append(name)
        elif extension in images:
            kinds["image"].append(name)
        else:
            kinds["caption" if extension == CAPTION_EXTENSION else "other"].append(name)
    found = Contents(
        num_videos=len(kinds["video"]),
        num_images=len(kinds["image"]),
        num_captions=len(kinds["caption"]),
        num_masks=len(kinds["mask"]),
    )
    clips, masks = kinds["video"] + kinds["image"], set(kinds["mask"])

    def key(name: str) -> str:
        """What a clip shares with its caption and its mask."""
        stem = _split(name)[0]
        if name in masks:
            stem = stem.removesuffix(MASK_SUFFIX)
        return stem.rpartition("/")[2] if rule and rule.unique_names else stem

    def without(names: Iterable[str], others: Iterable[str]) -> list[str]:
        keys = {key(name) for name in others}
        return [name for name in names if key(name) not in keys]

    for trouble, said in (
        (kinds["other"], "not a kind of file this training uses, ignored"),
        (without(kinds["caption"], clips), "a caption without a clip of its name, ignored"),
        (without(clips, kinds["caption"]), f"without a caption (<name>{CAPTION_EXTENSION})"),
        (
            without(clips, masks) if takes_masks else [],
            f"without a mask (<name>{MASK_SUFFIX}), refused",
        ),
        (without(kinds["mask"], clips), "a mask without a clip of its name, refused"),
    ):
        if trouble:
            found.warnings.append(f"{_listed(trouble)}: {said}")
    if kinds["video"] and kinds["image"]:
        found.warnings.append("videos and images together are refused: send one kind")
    return found


def names_in_folder(folder: Path) -> list[str]:
    """Every file below ``folder`` that is not left out, sorted, with ``/`` between the parts.
    Links to folders are not followed."""
    found = []
    for where, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = Path(where, name)
            if path.is_file():
                found.append(path.relative_to(folder).as_posix())
    return sorted(name for name in found if not left_out(name))


def names_in_zip(path: Path) -> list[str]:
    """Raises `Refused` for anything but a zip."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [info.filename for info in archive.infolist() if not info.is_dir()]
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise Refused(f"{path} is neither a folder nor a zip: {error}") from error


@contextmanager
def zipped(
    folder: Path, names: Sequence[str], on_bytes: OnBytes = lambda done, total: None
) -> Iterator[Path]:
    """``names`` of ``folder`` as a zip, for the length of a block. Clips do not shrink, so it is
    stored as it is; it lies beside the folder, or where temporary files go if that can't be."""
    total = sum((folder / name).stat().st_size for name in names)
    where = folder.resolve().parent
    if not os.access(where, os.W_OK):
        where = Path(tempfile.gettempdir())
    if (free := shutil.disk_usage(where).free) < total + COPY_BYTES:
        raise Refused(
            f"{where} has {size(free)} free; the zip of {folder} needs {size(total)}",
            "Zip it on another disk and give the zip instead.",
        )
    with tempfile.NamedTemporaryFile(
        dir=where, prefix=f".{folder.resolve().name}-", suffix=".zip"
    ) as file:
        done = 0
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name in names:
                path = folder / name
                info = zipfile.ZipInfo(_utf8(name), ZIP_TIME)
                info.external_attr = 0o100644 << 16
                info.file_size = path.stat().st_size  # says whether it needs 64 bits
                with path.open("rb") as source, archive.open(info, "w") as sink:
                    while chunk := source.read(COPY_BYTES):
                        sink.write(chunk)
                        done += len(chunk)
                        on_bytes(done, total)
        file.flush()
        yield Path(file.name)


def _utf8(name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise Refused(f"the name {name!a} is not UTF-8; rename the file") from None
    return name


def _split(name: str) -> tuple[str, str]:
    """(name without its extension, extension in lower case)."""
    extension = PurePosixPath(name).suffix
    return name[: len(name) - len(extension)].casefold(), extension.lower()


def _listed(names: Sequence[str]) -> str:
    head = ", ".join(clean(name) for name in names[:SHOWN])
    return head if len(names) <= SHOWN else f"{head} and {len(names) - SHOWN} more"
