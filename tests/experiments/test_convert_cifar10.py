"""TFRecord files of CIFAR-10 from the published batches."""

import tarfile

import numpy as np
import pytest
import tensorflow as tf
from absl.testing import flagsaver

from sact_tf.data import cifar, cifar_binary


@pytest.fixture
def batches(tmp_path):
    """Directory of the published files, with three images in each."""
    rng = np.random.default_rng(0)
    directory = tmp_path / "cifar-10-batches-bin"
    directory.mkdir()
    for names in cifar_binary.BATCHES.values():
        for name in names:
            records = rng.integers(0, 256, [3, 3073]).astype(np.uint8)
            records[:, 0] %= 10
            (directory / name).write_bytes(records.tobytes())
    return directory


@pytest.fixture
def run(program, tmp_path):
    def run(path):
        with flagsaver.flagsaver(input=str(path), dataset_dir=str(tmp_path / "out")):
            program.main()

    return run


@pytest.mark.parametrize("is_archive", [False, True])
def test_cifar_main_reads_what_was_published(run, batches, tmp_path, is_archive):
    path = batches
    if is_archive:
        path = tmp_path / "cifar-10-binary.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            archive.add(batches, batches.name)
    run(path)
    for split, count in (("train", 15), ("test", 3)):
        examples = cifar.load_tfrecord(str(tmp_path / "out"), split)
        assert examples.num_examples == count
        content = b"".join(
            (batches / name).read_bytes() for name in cifar_binary.BATCHES[split]
        )
        records = np.frombuffer(content, np.uint8).reshape([count, 3073])
        np.testing.assert_array_equal(examples.labels, records[:, 0])
        # Red, green and blue lie one after the other, each row by row.
        red = examples.images[:, 1, 2, 0]
        blue = examples.images[:, 31, 31, 2]
        np.testing.assert_array_equal(red, records[:, 1 + 32 + 2])
        np.testing.assert_array_equal(blue, records[:, -1])


def test_fields_are_the_originals(run, batches, tmp_path):
    run(batches)
    path = str(tmp_path / "out" / "cifar10_test.tfrecord")
    record = next(iter(tf.data.TFRecordDataset(path))).numpy()
    feature = tf.train.Example.FromString(record).features.feature
    assert set(feature) == {
        *("image/encoded", "image/format", "image/class/label"),
        *("image/height", "image/width"),
    }
    assert feature["image/format"].bytes_list.value[0] == b"png"
    assert feature["image/height"].int64_list.value[0] == 32


def cut_off(batches):
    path = batches / "data_batch_4.bin"
    path.write_bytes(path.read_bytes()[:-1])


def wrong_label(batches):
    path = batches / "test_batch.bin"
    path.write_bytes(path.read_bytes()[:3073] + b"\x0a" * 3073)


@pytest.mark.parametrize(
    "damage, message",
    [
        (cut_off, "data_batch_4.bin: has 9218 bytes, which are no whole records of"),
        (wrong_label, "test_batch.bin: record 1 has label 10, expected 0 to 9"),
        (
            lambda batches: (batches / "data_batch_2.bin").write_bytes(b""),
            "data_batch_2.bin: has 0 bytes",
        ),
        (
            lambda batches: (batches / "data_batch_2.bin").unlink(),
            "has no data_batch_2.bin; take CIFAR-10's binary version",
        ),
    ],
)
def test_batches_that_are_not_right(refusal, batches, tmp_path, damage, message):
    damage(batches)
    output = tmp_path / "out"
    last_words = refusal(input=str(batches), dataset_dir=str(output))
    assert last_words.startswith(f"--input={batches}: ") and message in last_words
    assert not list(output.iterdir())


def test_inputs_that_are_none(refusal, batches, tmp_path):
    output = dict(dataset_dir=str(tmp_path / "out"))
    assert refusal(input="", **output).startswith("--input: must be given")
    assert "/nowhere: No such file" in refusal(input="/nowhere", **output)
    archive = tmp_path / "half.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(batches, batches.name)
    archive.write_bytes(archive.read_bytes()[:9000])
    for path in (archive, batches / "test_batch.bin"):
        last_words = refusal(input=str(path), **output)
        assert f"--input={path}: {path}: is no readable .tar.gz archive" in last_words
        assert "\n" not in last_words
