"""Data sources on good and on broken input."""

import dataclasses
import gzip

import numpy as np
import pytest
import tensorflow as tf

from sact_tf.data import cifar, shapes
from sact_tf.data.examples import Examples


def test_tfrecord_round_trip(write_cifar):
    rng = np.random.default_rng(0)
    written = [
        (rng.integers(0, 256, [32, 32, 3]).astype(np.uint8), k) for k in range(10)
    ]
    examples = cifar.load_tfrecord(str(write_cifar(written)), "test")
    assert examples.num_examples == examples.num_classes == 10
    np.testing.assert_array_equal(examples.images, [image for image, _ in written])
    np.testing.assert_array_equal(examples.labels, range(10))


def test_jpeg_images_are_read_too(write_cifar):
    image = tf.io.encode_jpeg(np.full([32, 32, 3], 100, np.uint8)).numpy()
    examples = cifar.load_tfrecord(str(write_cifar([(image, 3)])), "train")
    np.testing.assert_allclose(examples.images[0], 100, atol=1)


IMAGE = np.zeros([32, 32, 3], np.uint8)


@pytest.mark.parametrize(
    "bad, message",
    [
        ((np.zeros([28, 28, 3], np.uint8), 0), "record 1 .* 28x28x3, expected 32x32x3"),
        ((np.zeros([32, 32, 1], np.uint8), 0), "record 1 .* 32x32x1, expected 32x32x3"),
        ((IMAGE, 10), "record 1 has label 10, expected 0 to 9"),
        ((IMAGE, -1), "record 1 has label -1, expected 0 to 9"),
        ((b"no image", 0), "record 1 .*encoded image"),
        ((b"", 0), "record 1 .*encoded image"),
    ],
)
def test_bad_records_are_named(bad, message, write_cifar):
    directory = write_cifar([(IMAGE, 0), bad])
    with pytest.raises(cifar.DataError, match=f"cifar10_test.tfrecord: {message}"):
        cifar.load_tfrecord(str(directory), "test")


@pytest.mark.parametrize("damage", ["in a header", "in a record", "flip"])
def test_damaged_file(damage, write_cifar):
    path = write_cifar() / "cifar10_test.tfrecord"
    content = bytearray(path.read_bytes())
    if damage == "in a header":
        first_length = int.from_bytes(content[:8], "little")
        content = content[: first_length + 16 + 7]
    elif damage == "in a record":
        content = content[:-50]
    else:
        content[len(content) // 2] ^= 255
    path.write_bytes(bytes(content))
    with pytest.raises(cifar.DataError, match="truncated"):
        cifar.load_tfrecord(str(path.parent), "test")


def test_files_of_other_kinds(write_cifar):
    path = write_cifar() / "cifar10_test.tfrecord"
    content = path.read_bytes()
    path.write_bytes(gzip.compress(content))
    with pytest.raises(cifar.DataError, match="test.tfrecord: is compressed by GZIP"):
        cifar.load_tfrecord(str(path.parent), "test")
    path.unlink()
    path.mkdir()
    with pytest.raises(cifar.DataError, match="test.tfrecord: is a directory"):
        cifar.load_tfrecord(str(path.parent), "test")


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_pixels_are_bytes(dtype):
    """What is not could hold NaN, which a network hides."""
    with pytest.raises(ValueError, match=f"images must be uint8; got {dtype.__name__}"):
        Examples(np.zeros([2, 8, 8, 3], dtype), np.zeros([2], np.int64), 10)


def test_empty_and_missing_files(tmp_path, write_cifar):
    with pytest.raises(cifar.DataError, match="holds no records"):
        cifar.load_tfrecord(str(write_cifar([])), "test")
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        cifar.load_tfrecord(str(tmp_path / "nowhere"), "test")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="has no file cifar10_train"):
        cifar.load_tfrecord(str(tmp_path / "empty"), "train")
    with pytest.raises(ValueError, match="split must be one of .*'val'"):
        cifar.load_tfrecord(str(tmp_path), "val")
    with pytest.raises(ValueError, match="no examples"):
        Examples(np.zeros([0, 8, 8, 3]), np.zeros([0]), 3)


def test_tfds_that_cannot_download(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def load(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(tfds, "load", load)
    with pytest.raises(cifar.DataError, match="could not provide cifar10.*no network"):
        cifar.load_tfds(str(tmp_path), "train")


def test_tfds_gives_examples(tmp_path):
    import tensorflow_datasets as tfds

    with tfds.testing.mock_data(num_examples=5):
        examples = cifar.load_tfds(str(tmp_path), "train")
    assert examples.images.shape == (5, 32, 32, 3) and examples.labels.shape == (5,)


def test_evaluation_batches_hold_each_image_once(tiny_examples):
    batches = list(tiny_examples.evaluation_batches(8))
    assert [len(labels) for _, labels in batches] == [8, 8, 4]
    images = np.concatenate([images for images, _ in batches])
    np.testing.assert_array_equal(
        np.concatenate([labels for _, labels in batches]), tiny_examples.labels
    )
    expected = tf.image.per_image_standardization(tiny_examples.images)
    np.testing.assert_allclose(images, expected, atol=1e-5)


def test_augmentation_is_a_shifted_crop_of_the_padded_image(tiny_examples):
    images, labels = next(iter(tiny_examples.training_batches(20, seed=3)))
    assert sorted(labels.numpy()) == sorted(tiny_examples.labels)
    shifts = set()
    for image, label in zip(images.numpy(), labels.numpy()):
        found = None
        for source in tiny_examples.images[tiny_examples.labels == label]:
            padded = np.pad(source, [[2, 2], [2, 2], [0, 0]])
            for row, column, step in np.ndindex(5, 5, 2):
                crop = padded[row : row + 16, column : column + 16, :][
                    :, :: 1 - 2 * step
                ]
                standardised = (crop - crop.mean()) / crop.std()
                if np.abs(image - standardised).max() < 1e-3:
                    found = row, column, step
        assert found is not None
        shifts.add(found)
    assert len(shifts) > 10


def test_cutout_sets_a_square_to_the_mean(tiny_examples):
    side = 8
    whole = tiny_examples.training_batches(16, seed=3)
    cut = dataclasses.replace(tiny_examples, cutout=side).training_batches(16, seed=3)
    (images, labels), (others, other_labels) = next(iter(whole)), next(iter(cut))
    np.testing.assert_array_equal(labels, other_labels)  # the same draws otherwise
    is_cut = np.any(images != others, axis=-1)
    assert not np.asarray(others)[is_cut].any()
    for mask in is_cut:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert side // 2 <= len(rows) <= side and side // 2 <= len(columns) <= side
        assert np.ptp(rows) < side and np.ptp(columns) < side
    assert len({tuple(np.argwhere(mask)[0]) for mask in is_cut}) > 8


def test_training_batches_repeat_by_seed(tiny_examples):
    def labels(seed):
        batches = tiny_examples.training_batches(8, seed).take(6)
        return np.concatenate([labels for _, labels in batches]).tolist()

    assert labels(1) == labels(1) != labels(2)


def test_batches_dealt_out_to_devices_are_those_of_one(tiny_examples):
    whole = tiny_examples.training_batches(8, seed=1).take(3)
    parts = tiny_examples.training_batches(4, seed=1).take(6).batch(2)
    for (images, labels), (image_parts, label_parts) in zip(whole, parts):
        np.testing.assert_array_equal(labels, tf.reshape(label_parts, [8]))
        np.testing.assert_array_equal(images, tf.reshape(image_parts, images.shape))


def test_shards_part_the_examples(tiny_examples):
    numbered = dataclasses.replace(tiny_examples, labels=np.arange(20))
    for part in range(2):
        batches = numbered.training_batches(5, 0, shard=(2, part)).take(2)
        labels = np.concatenate([labels for _, labels in batches])
        np.testing.assert_array_equal(np.sort(labels), np.arange(part, 20, 2))


@pytest.mark.parametrize("size", [16, 32, 65])
def test_shapes_are_deterministic_and_boxed(size):
    examples = shapes.load("train", size, 30)
    again = shapes.load("train", size, 10)
    np.testing.assert_array_equal(examples.images[:10], again.images)
    assert examples.images.shape == (30, size, size, 3)
    assert not np.array_equal(
        examples.images[:10], shapes.load("test", size, 10).images
    )
    other = shapes.load("train", size, 10, seed=1)
    assert not np.array_equal(examples.images[:10], other.images)
    top, left, bottom, right = examples.boxes.T
    assert (0 <= top).all() and (top < bottom).all() and (bottom <= size).all()
    assert (0 <= left).all() and (left < right).all() and (right <= size).all()
    area = (bottom - top) * (right - left) / size**2
    assert area.max() < 0.16 and len(set(examples.labels)) > 5


def test_shapes_objects_stand_out_in_their_boxes():
    examples = shapes.load("test", 64, 20)
    for image, (top, left, bottom, right) in zip(examples.images, examples.boxes):
        saturation = image.max(-1).astype(int) - image.min(-1)
        strong = saturation > 0.5 * 255
        assert strong[top:bottom, left:right].mean() > 0.15
        strong[top - 1 : bottom + 1, left - 1 : right + 1] = False
        assert strong.mean() < 0.01


def test_details_are_marks_on_large_objects_of_any_class():
    examples = shapes.load_details("train", 128, 30)
    again = shapes.load_details("train", 128, 5)
    np.testing.assert_array_equal(examples.images[:5], again.images)
    assert set(examples.labels) == set(range(10))
    sides = examples.boxes[:, 2:] - examples.boxes[:, :2]
    assert (examples.boxes >= 0).all() and (examples.boxes <= 128).all()
    assert 5 <= sides.max(1).min() and sides.max() <= 18
    for image, (top, left, bottom, right) in zip(examples.images, examples.boxes):
        mark = image[top:bottom, left:right].max(-1)  # bright on dark
        assert mark.max() > 190 and mark.min() < 90
    with pytest.raises(ValueError, match="image_size must be at least 64"):
        shapes.load_details("train", 32)


def test_shapes_bad_arguments():
    with pytest.raises(ValueError, match="split .*'val'"):
        shapes.load("val")
    with pytest.raises(ValueError, match="image_size .* got 8"):
        shapes.load("train", 8)
    with pytest.raises(ValueError, match="image_size must be an .* got 1000000"):
        shapes.load("train", 10**6)
    with pytest.raises(ValueError, match="num_examples must be an integer >= 1.*got 0"):
        shapes.load("train", 32, 0)
    with pytest.raises(ValueError, match="seed must be .* got 18446744073709551616"):
        shapes.load("train", 32, 2, 2**64)
    with pytest.raises(ValueError, match="1000000 images of side 8192 .* 64 GiB"):
        shapes.load("train", 8192, 10**6)
