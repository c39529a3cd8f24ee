"""Files appear whole or not at all, whatever fails in between."""

import os
import stat

import h5py
import numpy as np
import pytest
import tensorflow as tf

from sact_tf import writing
from sact_tf.writing import WritingError


def names(directory):
    return sorted(os.listdir(directory))


def test_a_full_disk_leaves_what_was_there(tmp_path, no_file_larger_than):
    path = tmp_path / "a.bin"
    path.write_bytes(b"before")
    with no_file_larger_than(100):
        with pytest.raises(WritingError, match=r"a\.bin: cannot be written \(File too"):
            writing.write_bytes(path, bytes(1000))
        assert path.read_bytes() == b"before" and names(tmp_path) == ["a.bin"]
        with pytest.raises(WritingError, match=r"b\.json: cannot be written"):
            writing.write_json(tmp_path / "b.json", list(range(1000)))
    assert names(tmp_path) == ["a.bin"]
    writing.write_bytes(path, b"after")
    assert path.read_bytes() == b"after" and names(tmp_path) == ["a.bin"]


def test_what_others_write(tmp_path, no_file_larger_than):
    """Libraries that open files by name find their extension, and fail as one error."""
    path = tmp_path / "x.npz"
    with no_file_larger_than(100):
        with pytest.raises(WritingError, match=r"x\.npz: cannot be written"):
            with writing.atomic_file(path) as temporary:
                np.savez(temporary, x=np.ones([100]))
    assert names(tmp_path) == []
    with writing.atomic_file(path) as temporary:
        assert os.path.dirname(temporary) == str(tmp_path)
        np.savez(temporary, x=np.ones([100]))
    assert names(tmp_path) == ["x.npz"]


def test_tensorflow_writes_a_directory(tmp_path, no_file_larger_than):
    module = tf.Module()
    module.values = tf.Variable(tf.ones([1000]))
    path = tmp_path / "model"
    with no_file_larger_than(500):
        with pytest.raises(WritingError, match="model: cannot be written"):
            with writing.atomic_directory(path) as temporary:
                tf.saved_model.save(module, temporary)
    assert names(tmp_path) == []
    with writing.atomic_directory(path) as temporary:
        tf.saved_model.save(module, temporary)
    assert tf.saved_model.load(str(path)).values.shape == [1000]
    # Another of the same name; what is beside its files stays.
    (path / "note.txt").write_text("mine")
    module.values.assign(tf.zeros([1000]))
    with writing.atomic_directory(path) as temporary:
        tf.saved_model.save(module, temporary)
    assert float(tf.reduce_sum(tf.saved_model.load(str(path)).values)) == 0
    assert (path / "note.txt").read_text() == "mine" and names(tmp_path) == ["model"]


def test_errors_of_other_kinds_stay_themselves(tmp_path):
    with pytest.raises(ZeroDivisionError):
        with writing.atomic_file(tmp_path / "x") as temporary:
            open(temporary, "w").close()
            1 / 0  # noqa: B018
    with pytest.raises(ValueError, match="not about files"):
        with writing.atomic_directory(tmp_path / "y"):
            raise ValueError("not about files")
    assert names(tmp_path) == []


def test_directories_links_and_modes(tmp_path):
    with pytest.raises(WritingError, match=r"cannot be written \(Is a directory"):
        writing.write_bytes(tmp_path, b"")
    with pytest.raises(WritingError, match=r"none/x: cannot be written \(No such file"):
        writing.write_bytes(tmp_path / "none" / "x", b"")
    (tmp_path / "file").write_bytes(b"1")
    with pytest.raises(
        WritingError, match=r"file: cannot be written \(Not a directory"
    ):
        with writing.atomic_directory(tmp_path / "file"):
            pass
    (tmp_path / "file").chmod(0o640)
    (tmp_path / "link").symlink_to("file")
    writing.write_bytes(tmp_path / "link", b"2")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"2"
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
    writing.write_bytes(tmp_path / ("n" * 255), b"3")  # the longest name there is
    writing.write_bytes(os.devnull, b"4")


def test_hdf5_files(tmp_path, no_file_larger_than):
    """The library alone ends the process on a full disk, at the latest on closing."""
    path, values = tmp_path / "a.h5", np.random.default_rng(0).random([50, 200])

    def write(check_often):
        with writing.atomic_hdf5(path) as (file, check):
            dataset = file.create_dataset("x", values.shape, "f8", compression="lzf")
            for k, row in enumerate(values):
                dataset[k] = row
                if check_often:
                    file.flush()
                    check()
            file["y"] = values
            file.attrs["z"] = ["a", "b"]

    for size in (100, 3000, 90000):
        for check_often in (False, True):
            with no_file_larger_than(size):
                with pytest.raises(
                    WritingError, match=r"a\.h5: cannot be .* \(File too"
                ):
                    write(check_often)
            assert names(tmp_path) == []
    for _ in range(2):
        write(True)
        with h5py.File(path) as file:
            np.testing.assert_array_equal(file["x"], values)
            np.testing.assert_array_equal(file["y"], values)
            assert list(file.attrs["z"]) == ["a", "b"]
    with pytest.raises(ZeroDivisionError):
        with writing.atomic_hdf5(path) as (file, _):
            file["x"] = 1 / 0
    assert names(tmp_path) == ["a.h5"]
