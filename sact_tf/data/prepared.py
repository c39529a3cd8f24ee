"""Data sets of TensorFlow Datasets, prepared on first use."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from sact_tf.data.examples import DataError
from sact_tf.domains import first_line
from sact_tf.optional import lazy

tfds = lazy("tensorflow_datasets")


@contextlib.contextmanager
def explained(
    name: str, directory: str | None, split: str | None = None
) -> Iterator[None]:
    """Turns whatever the download layers raise, in a `with` block, into `DataError`.

    Args:
        name: Of the data set.
        directory: TensorFlow Datasets' data directory, or None for its default.
        split: Named too where the data set decides which there are.
    """
    try:
        yield
    except Exception as error:
        part = "" if split is None else f", split {split!r},"
        raise DataError(
            f"TensorFlow Datasets could not provide {name}{part} in data directory "
            f"{directory or '(default)'}: {first_line(error)}"
        ) from error


def builder(name: str, split: str, directory: str | None):
    """Returns the builder of a data set that has a split, prepared.

    Args:
        name: Of the data set, such as "coco/2017".
        split: Such as "train".
        directory: TensorFlow Datasets' data directory, or None for its default.

    Raises:
        DataError: The data set, or the split, is not there.
    """
    with explained(name, directory, split):
        made = tfds.builder(name, data_dir=directory)
        made.download_and_prepare()
        made.as_dataset(split=split)
    return made
