"""Pictures of exported maps."""

import h5py
import matplotlib.image
import numpy as np
import pytest
from absl.testing import flagsaver


@pytest.fixture
def run(program, tmp_path):
    def run(**values):
        options = dict(output_dir=str(tmp_path / "out"))
        with flagsaver.flagsaver(**{**options, **values}):
            program.main()

    return run


def test_same_colours_for_all(run, tmp_path):
    maps = np.arange(2 * 4 * 6, dtype=np.float32).reshape(2, 4, 6, 1)
    with h5py.File(tmp_path / "maps.hdf5", "w") as file:
        file["ponder_cost_map"] = maps
        file["images"] = np.zeros([2, 4, 6, 3], np.float32)
    run(input_file=str(tmp_path / "maps.hdf5"))
    names = {path.name for path in (tmp_path / "out").iterdir()}
    starts = ("11.50_0", "35.50_1")  # mean ponder cost, and number
    kinds = [f"{s}_{kind}" for s in starts for kind in ("im.jpg", "ponder.png")]
    assert names >= {*kinds, "11.50_0_overlay.png", "colorbar.pdf", "grid.png"}
    first, last = (
        matplotlib.image.imread(tmp_path / "out" / f"{start}_ponder.png")
        for start in starts
    )
    assert first.shape[:2] == (4, 6)
    # Viridis goes from dark blue to yellow.
    assert first[0, 0, 2] > first[0, 0, 0] + 0.05 and last[-1, -1, 0] > 0.9
    grey = matplotlib.image.imread(tmp_path / "out" / "11.50_0_im.jpg") / 255
    np.testing.assert_allclose(grey, 0.5, atol=0.01)


def test_errors_name_the_flag(run, tmp_path):
    with pytest.raises(ValueError, match="--input_file: must be given"):
        run()
    with pytest.raises(OSError, match="--input_file=/x.hdf5: is no readable HDF5"):
        run(input_file="/x.hdf5")
    (tmp_path / "text.hdf5").write_text("no HDF5")
    with pytest.raises(OSError, match="text.hdf5: is no readable HDF5 file"):
        run(input_file=str(tmp_path / "text.hdf5"))
    with h5py.File(tmp_path / "act.hdf5", "w") as file:
        file["images"] = np.zeros([1, 4, 4, 3])
    with pytest.raises(ValueError, match="act.hdf5: has no ponder cost maps"):
        run(input_file=str(tmp_path / "act.hdf5"))


@pytest.mark.parametrize(
    "maps, images, message",
    [
        (
            np.full([1, 4, 4, 1], np.nan, "f4"),
            None,
            "map: 16 of 16 values are NaN or inf",
        ),
        (None, np.full([1, 4, 4, 3], np.inf, "f4"), "images: 48 of 48 values are NaN"),
        (np.zeros([2, 4, 4, 1], "f4"), None, r"must be .n, .*; got \[2, 4, 4, 1\] and"),
        (np.zeros([1, 4, 4, 2], "f4"), None, r"got \[1, 4, 4, 2\] and"),
        (
            np.zeros([0, 4, 4, 1], "f4"),
            np.zeros([0, 4, 4, 3], "f4"),
            r"got \[0, 4, 4, 1",
        ),
        (np.zeros([4, 4], "f4"), None, "ponder_cost_map must be numbers with 4 axes"),
        (np.array([b"text"]), None, "ponder_cost_map must be numbers"),
    ],
)
def test_files_of_another_layout(run, tmp_path, maps, images, message):
    path = tmp_path / "maps.hdf5"
    with h5py.File(path, "w") as file:
        file["ponder_cost_map"] = np.zeros([1, 4, 4, 1], "f4") if maps is None else maps
        file["images"] = np.zeros([1, 4, 4, 3], "f4") if images is None else images
    with pytest.raises(ValueError, match=f"--input_file={path}: .*{message}"):
        run(input_file=str(path))


def test_a_small_file_that_claims_much(run, tmp_path):
    path = tmp_path / "maps.hdf5"
    with h5py.File(path, "w") as file:
        file.create_dataset(
            "ponder_cost_map", [10**5, 1000, 1000, 1], "f4", chunks=True
        )
        file["images"] = np.zeros([1, 4, 4, 3], "f4")
    assert path.stat().st_size < 2**16
    with pytest.raises(ValueError, match="claims 400000000000 bytes and has 0"):
        run(input_file=str(path))
