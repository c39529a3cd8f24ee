"""Images with boxes: what a source of them gives, and batches for the detector."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import tensorflow as tf

from sact_tf.data.examples import (
    UNREADABLE,
    DataError,
    Shard,
    explained_decoding,
    fetch_ahead,
    number_with_seeds,
    take_shard,
)
from sact_tf.domains import INPUT_SIDE, OPTIONAL_SIDE, first_line
from sact_tf.optional import lazy

preprocess_ops = lazy("official.vision.ops.preprocess_ops")

SHORT_SIDE = 600
"""Short side of resized images (SACT, appendix A.2)."""
LONG_SIDE = 1024
"""Images whose long side would become larger are resized to that, and stay smaller."""
_SHUFFLE_BUFFER = 512  # resized images
_NO_OBJECT = -1.0


@dataclasses.dataclass(frozen=True)
class DetectionExamples:
    """A split of a data set of images with boxes.

    Attributes:
        elements: Maps whether to shuffle, a seed and a part (None: all) to a dataset of
            whatever `decode` takes.
        decode: Maps an element to `id` (int64), `image` (uint8 [height, width, 3]),
            `boxes` (float32 [n, 4]: ymin, xmin, ymax, xmax in pixels) and `classes`
            (int32 [n], from 1, background is 0).
        num_examples: Number of images.
        categories: Of class 1, class 2, and so on: dictionaries with `id` and `name`.
        max_boxes: The largest number of boxes in an image; further ones are dropped.
        ground_truth: Returns the annotations as a COCO dictionary, for evaluation.
        name: What an error calls the data set.
        num_boxes: Boxes in all images; None: not known.
        notes: Lines that tell what was dropped or changed, and how often.
        short_side: Short side that images are resized to, their aspect kept.
        long_side: Largest long side, which takes precedence; 0: any that a network can
            be run on.
        flip_vertically: Whether training flips that way too, as for microscopy.
        cache: Whether resized images are kept in memory.
        name_of: Maps an element to what an error calls it, a string.
        image_ids: Ids of images by the numbers that `decode` gives for them, where
            these are not 64-bit integers.
    """

    elements: Callable[[bool, int | None, Shard | None], tf.data.Dataset]
    decode: Callable[..., dict[str, tf.Tensor]]
    num_examples: int
    categories: Sequence[Mapping[str, object]]
    max_boxes: int
    ground_truth: Callable[[], dict]
    name: str
    num_boxes: int | None = None
    notes: Sequence[str] = ()
    short_side: int = SHORT_SIDE
    long_side: int = LONG_SIDE
    flip_vertically: bool = False
    cache: bool = False
    name_of: Callable[..., tf.Tensor] = lambda *element: tf.constant("an image")
    image_ids: Mapping[int, int | str] | None = None

    def __post_init__(self):
        if not self.num_examples:
            raise DataError(f"{self.name}: the split has no images")
        INPUT_SIDE.check(self.short_side, "short_side")
        OPTIONAL_SIDE.check(self.long_side, "long_side")
        if self.long_side and self.short_side > self.long_side:
            raise ValueError(
                f"short_side must be between 1 and long_side {self.long_side}; got "
                f"{self.short_side}"
            )

    def image_id(self, number: int) -> int | str:
        """Returns the id of the image that batches call so."""
        return int(number) if self.image_ids is None else self.image_ids[int(number)]

    @property
    def num_classes(self) -> int:
        """Number of classes, without background."""
        return len(self.categories)

    def evaluation_batches(self, batch_size: int = 1) -> tf.data.Dataset:
        """Every image once, in order; see `training_batches` for the batches."""
        dataset = self._resized(self.elements(False, None, None))
        return self._batches(dataset, batch_size, False).prefetch(tf.data.AUTOTUNE)

    def training_batches(
        self,
        batch_size: int,
        seed: int | None = None,
        shard: Shard | None = None,
        data_service: str | None = None,
    ) -> tf.data.Dataset:
        """Shuffled and flipped images and boxes, without end.

        Args:
            batch_size: Images per batch.
            seed: Of shuffling and flips; None draws one.
            shard: The part to take.
            data_service: As in `sact_tf.data.examples.fetch_ahead`.

        Returns:
            Dataset of dictionaries: `image` (float32 [batch, height, width, 3] in [-1,
            1], each at the top left of zeros), `size` (int32 [batch, 2], without
            those), `boxes` (float32 [batch, max_boxes, 4] in pixels of `image`),
            `classes` (int32 [batch, max_boxes]), both -1 where there is no object;
            `id` (int64 [batch]) and `scale` (float32 [batch, 2]: `image`'s pixels per
            pixel of the original image).
        """
        if self.cache:
            dataset = self._resized(self.elements(False, None, shard)).cache()
            buffer = min(self.num_examples, _SHUFFLE_BUFFER)
            dataset = dataset.shuffle(buffer, seed).repeat()
        else:
            dataset = self._resized(self.elements(True, seed, shard).repeat())
        dataset = number_with_seeds(dataset, seed).map(
            lambda own_seed, example: _flip(example, own_seed, self.flip_vertically),
            tf.data.AUTOTUNE,
            deterministic=seed is not None,
        )
        return fetch_ahead(self._batches(dataset, batch_size, True), data_service)

    def first(self, num_examples: int) -> DetectionExamples:
        """Returns the first examples of this split, or all if there are fewer."""

        def elements(shuffle, seed, shard):
            dataset = self.elements(False, None, None).take(num_examples)
            dataset = take_shard(dataset, shard)
            return dataset.shuffle(num_examples, seed) if shuffle else dataset

        def ground_truth():
            truth = self.ground_truth()  # in the order of the elements
            images = truth["images"][:num_examples]
            ids = {image["id"] for image in images}
            annotations = [a for a in truth["annotations"] if a["image_id"] in ids]
            return {**truth, "images": images, "annotations": annotations}

        num_examples = min(num_examples, self.num_examples)
        return dataclasses.replace(
            self,
            elements=elements,
            num_examples=num_examples,
            ground_truth=ground_truth,
            num_boxes=None,
        )

    @contextlib.contextmanager
    def explained_errors(self) -> Iterator[None]:
        """Turns TensorFlow's errors of reading, in a `with` block, into `DataError`."""
        try:
            yield
        except (*UNREADABLE, tf.errors.DataLossError) as error:
            raise DataError(f"{self.name}: {first_line(error)}") from error
        except tf.errors.InvalidArgumentError as error:
            explained = explained_decoding(error, self)
            if explained is None and "image" in error.message:
                explained = DataError(f"{self.name}: {first_line(error)}")
            if explained is None:
                raise
            raise explained from error

    def _resized(self, dataset):
        def prepare(*element):
            return resize(self.decode(*element), self.short_side, self.long_side)

        return dataset.map(prepare, tf.data.AUTOTUNE, deterministic=True)

    def _batches(self, dataset, batch_size, drop_remainder):
        def prepare(example):
            example = dict(example)
            image = network_input(example["image"])
            boxes, classes = example["boxes"], example["classes"]
            boxes = preprocess_ops.clip_or_pad_to_fixed_size(
                boxes, self.max_boxes, _NO_OBJECT
            )
            classes = preprocess_ops.clip_or_pad_to_fixed_size(
                classes, self.max_boxes, int(_NO_OBJECT)
            )
            example.update(
                image=image, size=tf.shape(image)[:2], boxes=boxes, classes=classes
            )
            return example

        dataset = dataset.map(prepare, tf.data.AUTOTUNE, deterministic=True)
        return dataset.padded_batch(batch_size, drop_remainder=drop_remainder)


def elements_in_memory(
    ids: Sequence[int],
    sources: Sequence,
    boxes: Sequence[Sequence[Sequence[float]]],
    classes: Sequence[Sequence[int]],
) -> Callable[[bool, int | None, Shard | None], tf.data.Dataset]:
    """Returns `DetectionExamples.elements` of annotations in memory.

    Args:
        ids: Of the images.
        sources: What their pixels come from, such as paths.
        boxes: Of each image: ymin, xmin, ymax, xmax in pixels.
        classes: Of the boxes.

    Returns:
        A function to datasets of (id, source, boxes [n, 4], classes [n]).
    """

    def elements(shuffle, seed, shard):
        dataset = tf.data.Dataset.from_tensor_slices(
            (
                tf.constant(ids, tf.int64),
                sources,
                tf.ragged.constant(
                    boxes, ragged_rank=1, inner_shape=(4,), dtype=tf.float32
                ),
                tf.ragged.constant(classes, ragged_rank=1, dtype=tf.int32),
            )
        )
        dataset = take_shard(dataset, shard)
        return dataset.shuffle(len(ids), seed) if shuffle else dataset

    return elements


def resize(
    example: Mapping[str, tf.Tensor], short_side: int, long_side: int
) -> dict[str, tf.Tensor]:
    """Resizes an image and its boxes, keeping the aspect.

    Args:
        example: As `DetectionExamples.decode` returns it.
        short_side: What the image's short side becomes, unless
        long_side: the long side would become larger than that; 0: than any input.

    Returns:
        The example, its image still uint8, and `scale`, float32 [2]: pixels per pixel
        of the original, of rows and of columns.
    """
    image = example["image"]
    sides = tf.cast(tf.shape(image)[:2], tf.float32)
    largest = long_side or INPUT_SIDE.high
    factor = tf.minimum(
        short_side / tf.reduce_min(sides), largest / tf.reduce_max(sides)
    )
    size = tf.maximum(tf.cast(tf.round(sides * factor), tf.int32), 1)
    image = tf.image.resize(image, size, antialias=True)
    image = tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)
    scale = tf.cast(size, tf.float32) / sides
    boxes = example["boxes"] * tf.concat([scale, scale], 0)
    return {
        **example,
        "image": tf.ensure_shape(image, [None, None, 3]),
        "boxes": tf.ensure_shape(boxes, [None, 4]),
        "scale": scale,
    }


def network_input(image: tf.Tensor) -> tf.Tensor:
    """Maps uint8 to what the detector takes: float32 in [-1, 1]."""
    return tf.cast(image, tf.float32) / 127.5 - 1.0


def resized_input(
    image: tf.Tensor, short_side: int, long_side: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Makes the detector's input of a photograph.

    Args:
        image: uint8 [any height, any width, 3].
        short_side: As of `resize`.
        long_side: As of `resize`.

    Returns:
        float32 [height, width, 3] in [-1, 1], and `scale` as of `resize`.
    """
    example = {"image": image, "boxes": tf.zeros([0, 4])}
    resized = resize(example, short_side, long_side)
    return network_input(resized["image"]), resized["scale"]


def _flip(example, seed, vertically):
    """Flips the image and its boxes, or does not, each with probability 1/2."""
    example = dict(example)
    draws = tf.random.stateless_uniform([2], seed)
    for axis in [1, 0] if vertically else [1]:
        is_flipped = draws[axis] < 0.5
        image, boxes = example["image"], example["boxes"]
        side = tf.cast(tf.shape(image)[axis], tf.float32)
        ymin, xmin, ymax, xmax = tf.unstack(boxes, axis=-1)
        if axis == 1:
            flipped = tf.stack([ymin, side - xmax, ymax, side - xmin], -1)
        else:
            flipped = tf.stack([side - ymax, xmin, side - ymin, xmax], -1)
        example["image"] = tf.where(is_flipped, tf.reverse(image, [axis]), image)
        example["boxes"] = tf.where(is_flipped, flipped, boxes)
    return example
