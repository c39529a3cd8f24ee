"""Photographs from every source, preprocessed as by the original; bad files."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from sact_tf.data import imagenet, inception
from sact_tf.data.examples import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, [40, 60, 3]).astype(np.uint8)


def encode(image=PIXELS, mode="RGB", kind="JPEG"):
    file = io.BytesIO()
    Image.fromarray(image).convert(mode).save(file, kind)
    return file.getvalue()


def write_record(writer, encoded, label=1, boxes=()):
    sides = zip(*boxes) if boxes else [()] * 4
    features = {
        "image/encoded": tf.train.Feature(
            bytes_list=tf.train.BytesList(value=[encoded])
        ),
        "image/class/label": tf.train.Feature(
            int64_list=tf.train.Int64List(value=[label])
        ),
        **{
            f"image/object/bbox/{name}": tf.train.Feature(
                float_list=tf.train.FloatList(value=side)
            )
            for name, side in zip(("ymin", "xmin", "ymax", "xmax"), sides)
        },
    }
    example = tf.train.Example(features=tf.train.Features(feature=features))
    writer.write(example.SerializeToString())


@pytest.fixture
def records(tmp_path):
    """Two files of three images each."""
    for k in range(2):
        path = tmp_path / f"validation-0000{k}-of-00002"
        with tf.io.TFRecordWriter(str(path)) as writer:
            write_record(writer, encode(), 3 * k + 1)
            write_record(writer, encode(mode="L"), 3 * k + 2, [(0.1, 0.2, 0.9, 0.8)])
            write_record(writer, encode(kind="PNG", mode="RGBA"), 3 * k + 3)
    return tmp_path


@pytest.fixture
def folder(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
    (tmp_path / "cat" / "grey.jpg").write_bytes(encode(mode="L"))
    (tmp_path / "cat" / "cmyk.JPEG").write_bytes(encode(mode="CMYK"))
    sixteen_bits = PIXELS[..., 0].astype(np.uint16) * 256
    Image.fromarray(sixteen_bits).save(tmp_path / "dog" / "deep.png")
    Image.fromarray(PIXELS[:1, :1]).save(tmp_path / "dog" / "one_pixel.png")
    Image.fromarray(np.tile(PIXELS[:1], [1, 90, 1])).save(tmp_path / "dog" / "long.png")
    return tmp_path


def labels_of(batches):
    return np.concatenate([labels.numpy() for _, labels in batches])


def test_evaluation_equals_the_original(golden_dir):
    golden = np.load(golden_dir / "data_pipeline" / "tf101_eval_pipeline.npz")
    got = inception.for_evaluation(golden["eval_uint8_77x101"], 50, 50)
    np.testing.assert_allclose(got, golden["eval_preprocessed_50x50"], atol=1e-5)


def test_longer_edge_equals_the_original(golden_dir):
    golden = np.load(golden_dir / "data_pipeline" / "tf101_eval_pipeline.npz")
    got = inception.longer_edge(golden["eval_uint8_77x101"], 64)
    np.testing.assert_allclose(got, golden["ponder_map_bicubic_64"][0], atol=1e-5)


@pytest.mark.parametrize("boxes", [None, tf.zeros([0, 4]), [[0.2, 0.2, 0.6, 0.9]]])
def test_training_images(boxes):
    images = [inception.for_training(PIXELS, 24, 32, [5, k], boxes) for k in range(8)]
    for image in images:
        assert image.shape == [24, 32, 3]
        assert -1 <= np.min(image) < np.max(image) <= 1
    assert np.std(images, axis=0).min() > 0
    again = inception.for_training(PIXELS, 24, 32, [5, 7], boxes)
    np.testing.assert_array_equal(images[7], again)


def test_tfrecords(records):
    examples = imagenet.load_tfrecord(str(records), "validation", 32)
    assert (examples.num_examples, examples.num_classes) == (6, 1001)
    batches = list(examples.evaluation_batches(4))
    np.testing.assert_array_equal(labels_of(batches), np.arange(1, 7))
    assert [images.shape for images, _ in batches] == [[4, 32, 32, 3], [2, 32, 32, 3]]
    expected = inception.for_evaluation(tf.io.decode_jpeg(encode(), channels=3), 32, 32)
    np.testing.assert_array_equal(batches[0][0][0], expected)
    first = examples.first(2)
    assert first.num_examples == 2 and len(labels_of(first.evaluation_batches(4))) == 2
    training = labels_of(examples.training_batches(3, seed=1).take(4))
    np.testing.assert_array_equal(np.unique(training), np.arange(1, 7))


def test_folder(folder):
    examples = imagenet.load_folder(str(folder), "train", 32)
    assert (examples.num_examples, examples.num_classes) == (5, 3)
    batches = list(examples.evaluation_batches(8))
    np.testing.assert_array_equal(labels_of(batches), [1, 1, 2, 2, 2])
    dot = batches[0][0][2 + sorted(["deep", "long", "one_pixel"]).index("one_pixel")]
    expected = np.broadcast_to(PIXELS[0, 0] / 127.5 - 1, [32, 32, 3])
    np.testing.assert_allclose(dot, expected, atol=1e-5)
    (folder / "train").mkdir()
    for name in ("cat", "dog"):
        (folder / name).rename(folder / "train" / name)
    assert imagenet.load_folder(str(folder), "train", 32).num_examples == 5


def test_shapes():
    examples = imagenet.load_shapes("train", 48, num_examples=8)
    images, labels = next(iter(examples.training_batches(8, seed=1)))
    assert images.shape == [8, 48, 48, 3] and examples.num_classes == 10
    repeated, _ = next(iter(examples.training_batches(8, seed=1)))
    np.testing.assert_array_equal(images, repeated)
    again, _ = next(iter(examples.evaluation_batches(8)))
    assert again.shape == [8, 48, 48, 3] and labels.shape == [8]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "bad.jpg is no JPEG or PNG image"),
        (b"GIF89a", "bad.jpg is no JPEG or PNG image"),
        (encode()[:500], "bad.jpg is cut off"),
        (encode(kind="PNG")[:500], "bad.jpg is cut off"),
        (b"\x89PNG....IEND", "bad.jpg: an image cannot be decoded"),
        (encode()[:100] + b"\xff\xd9", "bad.jpg: an image cannot be decoded"),
    ],
)
def test_bad_images(folder, content, message):
    (folder / "cat" / "bad.jpg").write_bytes(content)
    examples = imagenet.load_folder(str(folder), "train", 32)
    with pytest.raises(DataError, match=message), examples.explained_errors():
        list(examples.evaluation_batches(8))


def test_bad_records(records):
    file = records / "validation-00001-of-00002"
    with tf.io.TFRecordWriter(str(file)) as writer:
        write_record(writer, encode(), label=2000)
    examples = imagenet.load_tfrecord(str(records), "validation", 32)
    message = "00001-of-00002: record 0 is without a label in 0..1000"
    with pytest.raises(DataError, match=message), examples.explained_errors():
        list(examples.evaluation_batches(8))
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match="00001-of-00002: truncated or corrupt"):
        imagenet.load_tfrecord(str(records), "validation", 32)
    with pytest.raises(DataError, match="00001-of-0"), examples.explained_errors():
        list(examples.evaluation_batches(8))


def test_nothing_to_read(tmp_path):
    missing = tmp_path / "missing"
    for load in (imagenet.load_tfrecord, imagenet.load_folder):
        with pytest.raises(FileNotFoundError, match="missing does not exist"):
            load(str(missing), "train")
    with pytest.raises(FileNotFoundError, match="has no files train-"):
        imagenet.load_tfrecord(str(tmp_path), "train")
    with pytest.raises(DataError, match="holds no directories"):
        imagenet.load_folder(str(tmp_path), "train")
    (tmp_path / "class").mkdir()
    with pytest.raises(DataError, match="class: holds no JPEG or PNG images"):
        imagenet.load_folder(str(tmp_path), "train")
    (tmp_path / "train-00000-of-00001").write_bytes(b"")
    with pytest.raises(DataError, match="hold no records"):
        imagenet.load_tfrecord(str(tmp_path), "train")
    with pytest.raises(ValueError, match="split must be one of .* got 'test'"):
        imagenet.load_tfrecord(str(tmp_path), "test")
    with pytest.raises(DataError, match="could not provide imagenet2012"):
        imagenet.load_tfds(str(tmp_path), "train")


def test_undecodable_records_are_named(records):
    with tf.io.TFRecordWriter(str(records / "validation-00001-of-00002")) as writer:
        write_record(writer, encode())
        write_record(writer, b"\x89PNG....IEND")
    examples = imagenet.load_tfrecord(str(records), "validation", 32)
    message = "00001-of-00002: record 1: an image cannot be decoded"
    with pytest.raises(DataError, match=message), examples.explained_errors():
        list(examples.evaluation_batches(2))


def make_classes(root, split, names):
    for name in names:
        (root / split / name).mkdir(parents=True)
        (root / split / name / "a.png").write_bytes(encode(kind="PNG"))


def test_a_class_has_the_same_number_in_all_splits(tmp_path):
    make_classes(tmp_path, "train", ["cat", "dog", "fox"])
    make_classes(tmp_path, "validation", ["cat", "fox"])
    for split, labels in (("train", [1, 2, 3]), ("validation", [1, 3])):
        examples = imagenet.load_folder(str(tmp_path), split, 32)
        assert examples.num_classes == 4
        np.testing.assert_array_equal(labels_of(examples.evaluation_batches(8)), labels)
    make_classes(tmp_path, "validation", ["emu"])
    with pytest.raises(DataError, match=r"emu: is no class of .*train, .*cat.*fox"):
        imagenet.load_folder(str(tmp_path), "validation", 32)


def test_a_class_has_the_same_number_without_a_training_split(tmp_path):
    make_classes(tmp_path, "a", ["dog"])
    make_classes(tmp_path, "b", ["cat", "dog"])
    for split, labels in (("a", [2]), ("b", [1, 2])):
        examples = imagenet.load_folder(str(tmp_path), split, 32)
        assert examples.num_classes == 3
        np.testing.assert_array_equal(labels_of(examples.evaluation_batches(8)), labels)


def test_hidden_directories_and_files_are_no_data(folder):
    make_classes(folder, ".ipynb_checkpoints", ["x"])
    (folder / ".hidden").mkdir()
    (folder / "cat" / "._grey.jpg").write_bytes(b"of another system")
    examples = imagenet.load_folder(str(folder), "train", 32)
    assert (examples.num_examples, examples.num_classes) == (5, 3)
    list(examples.evaluation_batches(8))
    make_classes(folder, "train", ["cat", ".git"])
    make_classes(folder, "validation", ["cat", ".ipynb_checkpoints"])
    assert imagenet.load_folder(str(folder), "validation", 32).num_classes == 2


def test_photographs_are_turned_but_not_the_originals_records(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "JPEG", exif=exif)
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.jpg").write_bytes(file.getvalue())
    with tf.io.TFRecordWriter(str(tmp_path / "validation-0")) as writer:
        write_record(writer, file.getvalue())
    plain = tf.io.decode_jpeg(file.getvalue(), channels=3).numpy()
    for load, pixels in (
        (imagenet.load_folder, np.rot90(plain, -1)),
        (imagenet.load_tfrecord, plain),
    ):
        examples = load(str(tmp_path), "validation", 32)
        (got, _), *_ = examples.evaluation_batches(1)
        expected = inception.for_evaluation(pixels, 32, 32)
        np.testing.assert_allclose(got[0], expected, atol=1e-5)


def test_shards_that_are_missing_or_of_several_sets(records):
    first = records / "validation-00000-of-00002"
    second = records / "validation-00001-of-00002"
    other = records / "validation-00001-of-00004"
    content = second.read_bytes()
    second.rename(other)
    with pytest.raises(DataError, match="of sets of 2 and 4 files; expected one set"):
        imagenet.load_tfrecord(str(records), "validation", 32)
    other.unlink()
    message = "validation-00001-of-00002: is missing, with 1 of 2 files"
    with pytest.raises(DataError, match=message):
        imagenet.load_tfrecord(str(records), "validation", 32)
    first.rename(records / "validation-00002-of-00003")
    message = "validation-00000-of-00003: is missing, with 2 of 3 files"
    with pytest.raises(DataError, match=message):
        imagenet.load_tfrecord(str(records), "validation", 32)
    (records / "validation-00002-of-00003").unlink()
    (records / "validation-mine").write_bytes(content)  # a name of one's own
    examples = imagenet.load_tfrecord(str(records), "validation", 32)
    assert examples.num_examples == 3


def test_compressed_records(records):
    options = tf.io.TFRecordOptions("GZIP")
    path = str(records / "validation-00001-of-00002")
    with tf.io.TFRecordWriter(path, options) as writer:
        write_record(writer, encode())
    with pytest.raises(DataError, match="00001-of-00002: is compressed by GZIP"):
        imagenet.load_tfrecord(str(records), "validation", 32)
    with tf.io.TFRecordWriter(path) as writer:
        writer.write(bytes(0x088B1F))  # whose length reads as GZIP's first bytes
    assert open(path, "rb").read(3) == b"\x1f\x8b\x08"
    assert imagenet.load_tfrecord(str(records), "validation", 32).num_examples == 4


def test_records_that_are_no_files(tmp_path):
    (tmp_path / "train-00000-of-00001").mkdir()
    with pytest.raises(
        DataError, match="of-00001: is a directory; expected a TFRecord"
    ):
        imagenet.load_tfrecord(str(tmp_path), "train")
    (tmp_path / "validation-00000-of-00001").symlink_to("nowhere")
    with pytest.raises(DataError, match="of-00001: cannot be read .No such file"):
        imagenet.load_tfrecord(str(tmp_path), "validation")


def test_files_that_go_away_while_they_are_read(records, folder):
    for load, path in (
        (imagenet.load_folder, folder / "dog" / "deep.png"),
        (imagenet.load_tfrecord, records / "validation-00001-of-00002"),
    ):
        examples = load(str(records), "validation", 32)
        path.unlink()
        with pytest.raises(DataError, match=path.name), examples.explained_errors():
            list(examples.evaluation_batches(2))
        path.mkdir()
        with pytest.raises(DataError, match=path.name), examples.explained_errors():
            list(examples.evaluation_batches(2))
