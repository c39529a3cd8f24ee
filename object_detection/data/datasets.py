"""COCO 2017 and PASCAL VOC 2007 of TensorFlow Datasets."""

from __future__ import annotations

import tensorflow as tf

from object_detection.data import coco
from object_detection.data.examples import DetectionExamples
from sact_tf.data import prepared
from sact_tf.data.examples import take_shard
from sact_tf.data.images import decode_image, encoded_size
from sact_tf.optional import lazy

tfds = lazy("tensorflow_datasets")

NAMES = {"tfds_coco": "coco/2017", "tfds_voc": "voc/2007"}
"""Names of data sets in TensorFlow Datasets."""
_MAX_BOXES = 128
_SHUFFLE_BUFFER = 2048  # encoded images


def load(
    name: str, split: str, directory: str | None = None, **options
) -> DetectionExamples:
    """Opens a data set of TensorFlow Datasets, which prepares it on first use.

    COCO's crowds and VOC's difficult objects are left out in training; evaluation
    treats both as COCO treats crowds. Category ids are 1 and following.

    Args:
        name: "coco/2017" or "voc/2007".
        split: Such as "train" or "validation".
        directory: TensorFlow Datasets' data directory, or None for its default.
        **options: Of `DetectionExamples`: `short_side` and so on.

    Raises:
        DataError: The data set, or the split, is not there.
    """
    builder = prepared.builder(name, split, directory)
    labels = builder.info.features["objects"].feature["label"].names
    categories = [{"id": k, "name": label} for k, label in enumerate(labels, 1)]

    def read(shuffle=False, seed=None):
        return builder.as_dataset(
            split=split,
            shuffle_files=shuffle,
            read_config=tfds.ReadConfig(shuffle_seed=seed),
            decoders={"image": tfds.decode.SkipDecoding()},
        )

    def elements(shuffle, seed, shard):
        dataset = take_shard(read(shuffle, seed), shard)
        return dataset.shuffle(_SHUFFLE_BUFFER, seed) if shuffle else dataset

    def decode(example):
        image = decode_image(example["image"], example["image/filename"])
        sides = tf.cast(tf.shape(image)[:2], tf.float32)
        objects = example["objects"]
        boxes = objects["bbox"] * tf.concat([sides, sides], 0)
        is_used = ~_is_crowd(objects) & tf.reduce_all(boxes[:, 2:] > boxes[:, :2], 1)
        return dict(
            id=_image_id(example),
            image=image,
            boxes=tf.boolean_mask(boxes, is_used),
            classes=tf.cast(objects["label"][is_used] + 1, tf.int32),
        )

    def ground_truth():
        return _ground_truth(read(), categories)

    num_examples = builder.info.splits[split].num_examples
    name = f"{name} of TensorFlow Datasets"
    return DetectionExamples(
        elements,
        decode,
        num_examples,
        categories,
        _MAX_BOXES,
        ground_truth,
        name,
        notes=[f"{num_examples} images"],
        name_of=lambda example: example["image/filename"],
        **options,
    )


def _is_crowd(objects):
    """Objects that neither are to be found nor count as errors if they are."""
    return objects["is_crowd" if "is_crowd" in objects else "is_difficult"]


def _image_id(example):
    """The number of an image; VOC has it in the file's name only."""
    if "image/id" in example:
        return tf.cast(example["image/id"], tf.int64)
    digits = tf.strings.regex_replace(example["image/filename"], r"\D", "")
    return tf.strings.to_number(digits, tf.int64)


def _ground_truth(dataset, categories):
    """Reads all annotations, but decodes no image."""
    images, annotations = [], []
    for example in dataset:
        image_id = int(_image_id(example))
        file_name = example["image/filename"].numpy().decode()
        height, width = encoded_size(example["image"])
        images.append(
            dict(id=image_id, file_name=file_name, width=width, height=height)
        )
        objects = example["objects"]
        rows = zip(
            objects["bbox"].numpy(), objects["label"].numpy(), _is_crowd(objects)
        )
        for (ymin, xmin, ymax, xmax), label, is_crowd in rows:
            box = [xmin * width, ymin * height, (xmax - xmin) * width]
            box.append((ymax - ymin) * height)
            annotations.append(
                dict(
                    image_id=image_id,
                    category_id=int(label) + 1,
                    bbox=[float(v) for v in box],
                    iscrowd=int(is_crowd),
                )
            )
    return coco.annotation_dictionary(images, annotations, categories)
