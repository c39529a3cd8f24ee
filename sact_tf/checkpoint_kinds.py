"""What kind of model a checkpoint is of, as the names of its variables tell."""

from __future__ import annotations

import re
from collections.abc import Iterable

DETECTOR = "detector"
CLASSIFIER = "classification network"
SEGMENTER = "segmentation network"

_MARKS = {
    DETECTOR: re.compile(r"^rpn/"),
    SEGMENTER: re.compile(r"^segmentation_head/(?!logits/)"),
    CLASSIFIER: re.compile(r"^[^/]+/logits/"),
}


class CheckpointKindError(ValueError):
    """A checkpoint is of another kind of model than what it is loaded into.

    Attributes:
        kind: Of the checkpoint, `DETECTOR`, `SEGMENTER` or `CLASSIFIER`.
    """

    def __init__(self, checkpoint_path: str, kind: str, expected: str):
        self.kind = kind
        super().__init__(
            f"checkpoint {checkpoint_path} is that of a {kind}, not of a {expected}"
        )


def kind_of(names: Iterable[str]) -> str | None:
    """Returns `DETECTOR`, `SEGMENTER` or `CLASSIFIER`; None if names tell neither.

    Args:
        names: Of variables in a TF-Slim checkpoint.
    """
    names = list(names)
    for kind, mark in _MARKS.items():
        if any(mark.search(name) for name in names):
            return kind
    return None


def refuse_other_kind(
    checkpoint_path: str, stored: Iterable[str], wanted: Iterable[str]
) -> None:
    """Raises `CheckpointKindError` if a checkpoint and a model are of different kinds.

    Args:
        checkpoint_path: For the message.
        stored: Names of the checkpoint's variables.
        wanted: Names of what is to be loaded.
    """
    kind, expected = kind_of(stored), kind_of(wanted)
    if kind and expected and kind != expected:
        raise CheckpointKindError(checkpoint_path, kind, expected)
