"""Folders, generated scenes, crops; and what is wrong with label files."""

import os

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sact_tf.data.examples import DataError
from sact_tf.segmentation import VOID, sources
from sact_tf.segmentation.data import limit, network_input, random_crop


def test_folders(folders):
    examples = sources.load_folders(*folders)
    assert (examples.num_examples, examples.num_classes) == (4, 3)
    assert examples.notes == []
    batches = list(examples.evaluation_batches(2))
    sizes = sorted(tuple(batch["labels"].shape) for batch in batches)
    assert sizes == [(1, 33, 50), (1, 40, 48), (2, 40, 48)]  # alike ones together
    counted = np.zeros(3, int)
    for batch in batches:
        assert batch["image"].shape == [*batch["labels"].shape, 3]
        labels = batch["labels"].numpy()
        assert np.all(labels[:, :4] == VOID) and np.all(labels[:, 4:] >= 0)
        counted += np.bincount(labels[labels >= 0], minlength=3)
    np.testing.assert_array_equal(examples.class_pixels(), counted)
    np.testing.assert_array_equal(examples.first(9).class_pixels(), counted)


def test_labels_are_those_of_the_files(folders):
    examples = sources.load_folders(*folders)
    for k, batch in enumerate(examples.evaluation_batches(1)):
        stored = np.asarray(Image.open(os.path.join(folders[1], f"{k}.png"))).astype(
            int
        )
        expected = np.where(stored == 255, VOID, stored)
        np.testing.assert_array_equal(batch["labels"][0], expected)


@pytest.mark.parametrize("mode", ["P", "I;16", "1"])
def test_kinds_of_label_files(folders, mode):
    """Numbers of a palette count, not its colours; 16 bits and 1 bit are numbers."""
    values = np.zeros([40, 48], np.uint8)
    values[10:] = 1
    picture = Image.fromarray(values)
    if mode == "P":
        picture.putpalette([9, 9, 9, 200, 0, 0])
    else:
        picture = Image.fromarray(
            values.astype(np.uint16) if mode == "I;16" else values > 0
        )
    assert picture.mode == mode
    picture.save(os.path.join(folders[1], "0.png"))
    batch = next(iter(sources.load_folders(*folders).evaluation_batches(1)))
    np.testing.assert_array_equal(batch["labels"][0], values)


def rewrite(folders, name, pixels):
    Image.fromarray(pixels).save(os.path.join(folders[1], name))


def test_what_is_left_out_is_noted(folders):
    images, labels = folders
    rewrite(folders, "0.png", np.full([40, 48], 255, np.uint8))
    os.rename(os.path.join(labels, "1.png"), os.path.join(labels, "x.png"))
    with open(os.path.join(images, ".hidden.jpg"), "w"):
        pass
    examples = sources.load_folders(images, labels)
    assert examples.num_examples == 2
    assert examples.notes == [
        "1 image without label file, left out: 1.jpg",
        "1 label file without image, left out: x.png",
        "1 image of which all is void, left out: 0.jpg",
    ]


@pytest.mark.parametrize(
    "pixels, message",
    [
        (np.zeros([40, 40], np.uint8), "0.png: is 40x40, but its image .*0.jpg 48x40"),
        (
            np.zeros([40, 48, 3], np.uint8),
            r"0.png: is coded in colours \(RGB\); .*docs",
        ),
        (np.full([40, 48], 7, np.uint8), r"0.png: has the labels \[7\]; .*from 0 to 2"),
    ],
)
def test_wrong_label_files_are_named(folders, pixels, message):
    rewrite(folders, "0.png", pixels)
    with pytest.raises(DataError, match=message):
        sources.load_folders(*folders, num_classes=3)


def test_label_files_that_are_none(folders):
    path = os.path.join(folders[1], "0.png")
    with open(path, "wb") as file:
        file.write(b"\x89PNG and no more")
    with pytest.raises(DataError, match="0.png: cannot be read as PNG file of labels"):
        sources.load_folders(*folders)
    os.remove(path)
    Image.fromarray(np.zeros([40, 48], np.uint8)).save(path[:-3] + "jpg")
    with pytest.raises(DataError, match="0.jpg: is a JPEG file; labels must be PNG"):
        sources.load_folders(*folders)


def test_folders_that_are_none(folders, tmp_path):
    images, labels = folders
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: holds no JPEG or PNG files"):
        sources.load_folders(images, str(tmp_path / "empty"))
    with pytest.raises(
        FileNotFoundError, match="images folder /nowhere does not exist"
    ):
        sources.load_folders("/nowhere", labels)
    (tmp_path / "other").mkdir()
    Image.fromarray(np.zeros([4, 4], np.uint8)).save(tmp_path / "other" / "y.png")
    with pytest.raises(DataError, match="none of 4 images has a label file"):
        sources.load_folders(images, str(tmp_path / "other"))
    for k in range(4):
        shape = [33, 50] if k == 2 else [40, 48]
        rewrite(folders, f"{k}.png", np.full(shape, 9, np.uint8))
    with pytest.raises(DataError, match=r"all 4 label files are void \(9\)"):
        sources.load_folders(images, labels, void_label=9)


def test_a_broken_image_is_named(folders):
    path = os.path.join(folders[0], "1.jpg")
    with open(path, "rb") as file:
        content = file.read()
    with open(path, "wb") as file:
        file.write(content[: len(content) // 2])
    examples = sources.load_folders(*folders)
    with (
        pytest.raises(DataError, match="1.jpg is cut off"),
        examples.explained_errors(),
    ):
        list(examples.evaluation_batches(1))


def test_scenes():
    examples = sources.load_shapes("train", 3, 48)
    again = sources.load_shapes("train", 2, 48)
    assert examples.num_classes == len(examples.names()) == 11
    for one, other in zip(
        examples.evaluation_batches(1), again.evaluation_batches(1), strict=False
    ):
        np.testing.assert_array_equal(one["image"], other["image"])
        labels = one["labels"].numpy()
        assert 0 < (labels > 0).mean() < 0.7
    assert examples.class_pixels().sum() == 3 * 48 * 48
    with pytest.raises(ValueError, match="split must be one of train, validation"):
        sources.load_shapes("test")


def position_coded(height, width):
    """An image whose pixels say where they are, and labels that say the same."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([rows * 8, columns * 8, 0 * rows], -1).astype(np.uint8)
    return tf.constant(image), tf.constant(rows * 32 + columns, tf.int32)


@settings(max_examples=25)
@given(st.integers(0, 1000), st.integers(1, 24), st.integers(1, 24))
def test_crops_of_scale_1_are_parts(seed, height, width):
    """Image and labels agree to half a pixel, and around both is nothing."""
    image, labels = position_coded(20, 16)
    crop, found = random_crop(image, labels, [seed, 1], [height, width], (1, 1))
    pixels = (crop.numpy() + 1) * 127.5
    inside = found.numpy() != VOID
    # Of an image inside of its crop, half a pixel at each border is lost.
    for axis, (side, own) in enumerate([(height, 20), (width, 16)]):
        count = inside.any(1 - axis).sum()
        assert count == side if side <= own else own - 1 <= count <= own
    rows, columns = np.divmod(found.numpy(), 32)
    np.testing.assert_allclose(pixels[inside, 0] / 8, rows[inside], atol=0.51)
    np.testing.assert_allclose(pixels[inside, 1] / 8, columns[inside], atol=0.51)
    np.testing.assert_allclose(pixels[~inside], 127.5, atol=0.1)  # grey
    steps = np.diff(columns, axis=1)[inside[:, 1:] & inside[:, :-1]]
    assert np.all(steps >= 0) or np.all(steps <= 0)  # as it is, or flipped


def test_crops_scale_and_flip():
    image, labels = position_coded(20, 16)
    flipped = 0
    for seed in range(40):
        crop, found = random_crop(image, labels, [seed, 2], [8, 8], (2, 2))
        rows, columns = np.divmod(found.numpy(), 32)
        assert rows[-1, 0] - rows[0, 0] in (3, 4)  # 8 pixels show 4
        assert abs(columns[0, -1] - columns[0, 0]) in (3, 4)
        flipped += columns[0, -1] < columns[0, 0]
        np.testing.assert_allclose(
            (crop[..., 0].numpy() + 1) * 127.5 / 8, rows, atol=0.51
        )
    assert 10 <= flipped <= 30
    never = [
        random_crop(image, labels, [seed, 2], [1, 8], (1, 1), flip=False)[1].numpy()
        for seed in range(10)
    ]
    assert all(np.all(np.diff(row[0]) >= 0) for row in never)


def test_training_batches(folders):
    examples = sources.load_folders(
        *folders, crop_size=(24, 32), scales=(0.5, 2.0), cache=True
    )
    batches = list(examples.training_batches(3, seed=5).take(3))
    again = list(examples.training_batches(3, seed=5).take(3))
    for one, other in zip(batches, again):
        assert one["image"].shape == [3, 24, 32, 3]
        assert one["labels"].shape == [3, 24, 32]
        np.testing.assert_array_equal(one["labels"], other["labels"])
        np.testing.assert_array_equal(one["image"], other["image"])
        assert -1 <= np.min(one["image"]) and np.max(one["image"]) <= 1


def test_limits():
    image = tf.zeros([30, 60, 3], tf.uint8)
    assert limit(image, 0) is image
    assert limit(image, 20).shape == [10, 20, 3]
    assert limit(image, 100).shape == [30, 60, 3]
    np.testing.assert_array_equal(network_input(tf.constant([0, 255])), [-1, 1])


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(scales=(2, 1)), "scales must be the smallest and the largest"),
        (dict(scales=(0, 1)), "scales must be a finite number from 0.05 to 20"),
        (dict(crop_size=(0, 8)), "crop_size must be an integer from 1"),
        (dict(long_side=-1), "long_side must be"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        sources.load_shapes("train", 1, 32, **options)


def test_names_of_classes(tmp_path):
    assert sources.class_names("sky, road") == ["sky", "road"]
    path = tmp_path / "names.txt"
    path.write_text("sky\nroad\n\n")
    assert sources.class_names(str(path), 2) == ["sky", "road"]
    with pytest.raises(ValueError, match="class names must be 3, .*; got 2 in"):
        sources.class_names("sky,road", 3)


def make_pets(directory):
    """Prepares three pictures as the pets of TensorFlow Datasets have them."""
    import tensorflow_datasets as tfds

    features = {
        "image": tfds.features.Image(encoding_format="jpeg"),
        "segmentation_mask": tfds.features.Image(
            shape=(None, None, 1), encoding_format="png"
        ),
        "file_name": tfds.features.Text(),
    }

    class Tiny(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        name = "tiny_pets"
        __module__ = "__main__"  # whose files the base class does not look for

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for k in range(3):
                yield (
                    k,
                    {
                        "image": np.full([20, 40, 3], 60 * k, np.uint8),
                        "segmentation_mask": np.full([20, 40, 1], k, np.uint8),
                        "file_name": f"{k}.jpg",
                    },
                )

    builder = Tiny(data_dir=str(directory))
    builder.download_and_prepare()
    return builder


def test_tensorflow_datasets(tmp_path, monkeypatch):
    """Labels begin at 1 there, and 0 is void."""
    tfds = pytest.importorskip("tensorflow_datasets")
    builder = make_pets(tmp_path)
    monkeypatch.setattr(tfds, "builder", lambda *args, **kwargs: builder)
    examples = sources.load_tfds("oxford_iiit_pet", "train", str(tmp_path))
    assert (examples.num_examples, examples.num_classes) == (3, 3)
    found = sorted(
        int(label)
        for batch in examples.evaluation_batches(2)
        for label in batch["labels"][:, 0, 0]
    )
    assert found == [VOID, 0, 1]
    np.testing.assert_array_equal(examples.class_pixels(), [800, 800, 0])
    with pytest.raises(ValueError, match="tfds_name must be one of .*; got 'x'"):
        sources.load_tfds("x", "train")
