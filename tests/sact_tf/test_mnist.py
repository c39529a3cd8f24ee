"""MNIST from files, and digits in clutter."""

import numpy as np
import pytest

from sact_tf.data import mnist
from sact_tf.data.examples import DataError


@pytest.fixture
def write(tmp_path):
    """Returns a function that writes a file; arrays are replaced, or left out."""

    def write(count=20, **others):
        rng = np.random.default_rng(0)
        arrays = {}
        for part in ("train", "test"):
            arrays[f"x_{part}"] = rng.integers(0, 256, [count, 28, 28]).astype(np.uint8)
            arrays[f"y_{part}"] = (np.arange(count) % 10).astype(np.uint8)
        arrays.update(others)
        path = tmp_path / "mnist.npz"
        np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
        return str(path), arrays

    return write


def test_splits(write):
    path, arrays = write(5020)
    sizes = {split: mnist.load_npz(path, split).num_examples for split in mnist.SPLITS}
    assert sizes == {"train": 5020, "train_part": 20, "validation": 5000, "test": 5020}
    held_out = mnist.load_npz(path, "validation")
    np.testing.assert_array_equal(held_out.images[..., 0], arrays["x_train"][20:])
    np.testing.assert_array_equal(held_out.labels, arrays["y_train"][20:])
    test = mnist.load_npz(path, "test")
    np.testing.assert_array_equal(test.images[..., 0], arrays["x_test"])


def test_batches_are_scaled(write):
    path, arrays = write()
    digits = mnist.load_npz(path, "train")
    (images, labels), *rest = digits.evaluation_batches(15)
    assert images.shape == [15, 28, 28, 1] and len(rest) == 1
    np.testing.assert_allclose(images[..., 0], arrays["x_train"][:15] / 255, rtol=1e-6)
    seen = []
    for images, labels in digits.training_batches(10, seed=1).take(2):
        for image, label in zip(images.numpy(), labels.numpy()):
            found = np.round(255 * image[..., 0]) == arrays["x_train"]
            (row,) = np.flatnonzero(found.all((1, 2)))
            assert arrays["y_train"][row] == label
            seen.append(row)
    assert sorted(seen) == list(range(20)) != seen


def test_tensorflow_datasets():
    """On random images with the features of `mnist`."""
    tfds = pytest.importorskip("tensorflow_datasets")
    with tfds.testing.mock_data(num_examples=30):
        made = {split: mnist.load_tfds(None, split) for split in ("train", "test")}
        with pytest.raises(DataError, match="needs more than 5000 images"):
            mnist.load_tfds(None, "validation")
    for digits in made.values():
        assert digits.images.shape == (30, 28, 28, 1)
        assert digits.images.dtype == np.uint8 and digits.num_classes == 10
        assert set(digits.labels) <= set(range(10))


def test_clutter_keeps_the_digit(write):
    digits = mnist.load_npz(write()[0], "train")
    made, again = mnist.clutter(digits), mnist.clutter(digits)
    assert made.images.shape == (20, 60, 60, 1)
    np.testing.assert_array_equal(made.images, again.images)
    places = set()
    for image, digit in zip(made.images, digits.images):
        windows = np.lib.stride_tricks.sliding_window_view(image[..., 0], (28, 28))
        (place,) = np.argwhere((windows >= digit[..., 0]).all((2, 3)))
        places.add(tuple(place))
        assert (image > 0).sum() > (digit > 0).sum()  # there are pieces too
    assert len(places) > 15
    assert (mnist.clutter(digits, 1).images != made.images).any()


@pytest.mark.parametrize(
    "arrays, message",
    [
        (dict(y_train=None), "mnist.npz: has no array y_train"),
        (
            dict(x_train=np.zeros([20, 28, 27], np.uint8)),
            r"x_train must be uint8 \[n, 28, 28\]; got uint8 \[20, 28, 27\]",
        ),
        (dict(x_train=np.zeros([20, 28, 28])), "x_train must be uint8.*got float64"),
        (
            dict(y_train=np.zeros([19], int)),
            r"y_train must be integers \[20\]; got int64 \[19\]",
        ),
        (dict(y_train=np.full([20], 10)), r"labels must lie in 0..9; got 10..10"),
        (dict(y_train=np.array([None] * 20)), "holds Python objects"),
    ],
    ids=str,
)
def test_bad_files_are_named(write, arrays, message):
    with pytest.raises(DataError, match=message):
        mnist.load_npz(write(**arrays)[0], "train")


def test_files_that_are_none(tmp_path, write):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        mnist.load_npz(str(tmp_path / "none.npz"), "train")
    (tmp_path / "mnist.npz").write_bytes(b"\x80\x04N.")  # a pickle
    with pytest.raises(DataError, match="is no readable .npz file"):
        mnist.load_npz(str(tmp_path / "mnist.npz"), "train")
    with pytest.raises(DataError, match="needs more than 5000 images; there are 20"):
        mnist.load_npz(write()[0], "validation")
