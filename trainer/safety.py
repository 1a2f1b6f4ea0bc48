"""Whether a video may be returned: an image classifier of the operator's choice looks at frames."""

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

from trainer.errors import ModelError, SafetyError
from trainer.generation import SafetyClassifier

MAX_FRAMES: Final = 16
"""Looked at of one video, evenly spread: what is unsafe seldom lasts a thirtieth of a clip."""

MAX_SIDE_PIXELS: Final = 448
"""Frames are kept no larger; classifiers see 224 to 448."""


class SafetyCheck:
    """Collects frames while a video is written, and judges them afterwards, on the CPU."""

    def __init__(self, classifier: SafetyClassifier, num_frames: int) -> None:
        """Raises `ModelError` where the classifier can't be loaded or has none of the labels."""
        folder = classifier.folder
        try:
            self._processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
            self._model = AutoModelForImageClassification.from_pretrained(
                folder, local_files_only=True
            ).eval()
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(
                f"The safety classifier {folder.name} can't be loaded ({type(error).__name__}). "
                "Give a folder of an image classifier as transformers saves it, or none."
            ) from error
        wanted = {label.casefold() for label in classifier.unsafe_labels}
        labels = {int(index): str(name) for index, name in self._model.config.id2label.items()}
        self._unsafe = [index for index, name in labels.items() if name.casefold() in wanted]
        if not self._unsafe:
            raise ModelError(
                f"The safety classifier {folder.name} has the labels "
                f"{', '.join(labels.values())[:200]}, and none of those that count as unsafe: "
                f"{', '.join(classifier.unsafe_labels)}. Name some of its own."
            )
        self._threshold = classifier.threshold
        self._every = max(1, num_frames // MAX_FRAMES)
        self._seen = 0
        self._frames: list[Image.Image] = []

    def see(self, frame: NDArray[np.uint8]) -> None:
        """Take notice of the next frame [H, W, 3]."""
        if self._seen % self._every == 0:
            image = Image.fromarray(frame)
            image.thumbnail((MAX_SIDE_PIXELS, MAX_SIDE_PIXELS))
            self._frames.append(image)
        self._seen += 1

    @torch.inference_mode()
    def require_safe(self) -> None:
        """Raise `SafetyError` if any frame is more probably unsafe than the threshold."""
        inputs = self._processor(images=self._frames, return_tensors="pt")
        unsafe = self._model(**inputs).logits.softmax(dim=-1)[:, self._unsafe].sum(dim=-1)
        if float(unsafe.max()) >= self._threshold:
            raise SafetyError(
                "The safety checker does not let this video through. Change the prompt, the source "
                "or the LoRAs, or turn enable_safety_checker off where that is allowed."
            )
