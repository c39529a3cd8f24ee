"""Files that hold something else than they should."""

import io
import json
import zipfile

import h5py
import numpy as np
import pytest

from sact_tf import domains, reading
from sact_tf.data.examples import DataError

FIELDS = {
    "id": reading.identity(),
    "name": reading.text(),
    "box": reading.numbers(2, "x, y"),
    "area": reading.number(domains.AT_LEAST_0, default=None),
    "crowd": reading.truth(),
}
ROW = dict(id=1, name="a", box=[1, 2.5])


def test_rows_in_their_usual_form():
    rows = [
        {**ROW, "id": np.int32(3), "more": {"x": 1}},
        {**ROW, "id": "x9", "box": np.array([1, 2]), "area": None, "crowd": None},
        {**ROW, "id": 3.0, "area": np.float32(2), "crowd": "1"},
    ]
    first, second, third = reading.checked_rows(rows, FIELDS, "f: rows")
    assert first == {**ROW, "id": 3, "area": None, "crowd": 0, "more": {"x": 1}}
    assert second["id"] == "x9" and second["box"] == [1, 2]
    assert third == {**ROW, "id": 3, "area": 2.0, "crowd": 1}
    assert json.dumps([first, second, third])  # Python's own numbers throughout
    assert "area" not in rows[0]  # which stay as they were


@pytest.mark.parametrize(
    "value, expected",
    [(0, 0), (1, 1), (True, 1), (False, 0), (None, 0), ("0", 0), ("1", 1), (1.0, 1)],
)
def test_truth_is_meant_by_value(value, expected):
    assert (
        reading.checked_row({**ROW, "crowd": value}, FIELDS, "row")["crowd"] == expected
    )


@pytest.mark.parametrize(
    "changed, message",
    [
        (dict(crowd="no"), r"f: rows\[1\] has crowd 'no'; expected 0, 1, true, false"),
        (dict(crowd=2), r"has crowd 2"),
        (dict(crowd=[]), r"has crowd \[\]"),
        (dict(crowd=float("nan")), "has crowd nan"),
        (dict(id=True), r"has id True; expected an integer within 64 bits or a string"),
        (dict(id=None), "has id null"),
        (dict(id=2**64), "has id 18446744073709551616"),
        (dict(id=1.5), "has id 1.5"),
        (dict(id=[1]), r"has id \[1\]"),
        (dict(name=7), "has name 7; expected a string"),
        (dict(box=[1]), r"has box \[1\]; expected x, y: 2 numbers, each a finite"),
        (dict(box=[1, float("inf")]), r"has box \[1, inf\]"),
        (dict(box=[1, "2"]), r"has box \[1, '2'\]"),
        (dict(box="12"), "has box '12'"),
        (dict(box={"x": 1, "y": 2}), "has box {"),
        (dict(area=-1), "has area -1; expected a finite number >= 0"),
        (dict(area="4"), "has area '4'"),
        (dict(name="a" * 9999, id={}), "has id {}"),
    ],
)
def test_rows_that_are_not_right(changed, message):
    with pytest.raises(DataError, match=message) as error:
        reading.checked_rows([ROW, {**ROW, **changed}], FIELDS, "f: rows")
    assert len(str(error.value)) < 300 and "\n" not in str(error.value)


def test_no_rows_at_all():
    with pytest.raises(DataError, match=r"f: rows\[0\] has no 'id'"):
        reading.checked_rows([{}], FIELDS, "f: rows")
    for value in ("text", 3, None, {"a": 1}):
        with pytest.raises(DataError, match="f: rows is .*; expected a list"):
            reading.checked_rows(value, FIELDS, "f: rows")
        with pytest.raises(
            DataError, match=r"f: rows\[0\] (is .*, which )?has no 'id'"
        ):
            reading.checked_rows([value], FIELDS, "f: rows")


def test_json(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert reading.read_json(path) == {"a": 1}
    for content in (b"{", b"\xff\xfe\x00", b"[" * 200000, b"", b"1" * 5000):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"x\.json: is no JSON file"):
            reading.read_json(path)
    with pytest.raises(DataError, match="cannot be read .Is a directory"):
        reading.read_json(tmp_path)
    with pytest.raises(FileNotFoundError, match="none.json: No such file"):
        reading.read_json(tmp_path / "none.json")


def header(shape, descr="<f8"):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, dict(descr=descr, fortran_order=False, shape=shape)
    )
    return file.getvalue()


def write_zip(path, content, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("x.npy", content)


def test_npz(tmp_path):
    path = tmp_path / "x.npz"
    for save in (np.savez, np.savez_compressed):
        save(path, x=np.zeros([100, 100]), y=np.array(["b", "cd"]), z=np.float32(3))
        got = reading.read_npz(path)
        assert got["x"].shape == (100, 100) and got["y"].tolist() == ["b", "cd"]
        assert got["z"] == 3 and list(reading.read_npz(path, ["y", "w"])) == ["y"]


@pytest.mark.parametrize(
    "content, reason",
    [
        (header((50_000_000_000,)), "x.npy claims 400000000000 bytes"),
        (header((2**40, 2**40)), "x.npy claims"),
        (header((4,)) + bytes(31), "x.npy claims 32 bytes"),
        (header((4,), "|O") + bytes(32), "x.npy holds Python objects"),
        (b"\x93NUMPY\x09\x00", "."),
        (b"", "."),
    ],
)
def test_npz_that_lies(tmp_path, content, reason):
    path = tmp_path / "x.npz"
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        write_zip(path, content, method)
        with pytest.raises(DataError, match=f"is no readable .npz file .*{reason}"):
            reading.read_npz(path)


def test_hdf5(tmp_path):
    path = tmp_path / "x.h5"
    fields = {"maps": (2, "f")}
    with h5py.File(path, "w") as file:
        file["maps"] = np.eye(3)
    np.testing.assert_array_equal(reading.read_hdf5(path, fields)["maps"], np.eye(3))
    cases = [
        (
            lambda f: f.create_dataset("maps", (10**6, 10**5), "f4", chunks=True),
            "claims",
        ),
        (lambda f: f.create_dataset("other", data=[1.0]), "has no array 'maps'"),
        (lambda f: f.create_group("maps"), "has no array 'maps'"),
        (lambda f: f.create_dataset("maps", data=["a"]), "maps must be numbers"),
        (lambda f: f.create_dataset("maps", data=[1.0]), "maps must be numbers with 2"),
    ]
    for write, message in cases:
        with h5py.File(path, "w") as file:
            write(file)
        with pytest.raises(DataError, match=message):
            reading.read_hdf5(path, fields)
    path.write_bytes(b"no such file")
    with pytest.raises(DataError, match="is no HDF5 file of this kind"):
        reading.read_hdf5(path, fields)
    with pytest.raises(FileNotFoundError, match="none.h5: does not exist"):
        reading.read_hdf5(tmp_path / "none.h5", fields)
