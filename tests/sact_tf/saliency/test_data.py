"""Readers of fixations, on small files of each kind."""

import shutil

import numpy as np
import pytest
import scipy.io
from PIL import Image
from scipy import sparse

from sact_tf.data.examples import DataError
from sact_tf.data.imagenet import read_image
from sact_tf.saliency import load_cat2000, load_mit1003, load_npz


def picture(path, size, values=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size, values, np.uint8)).save(path)
    return path


def marked(size, points):
    pixels = np.zeros(size, np.uint8)
    for x, y in points:
        pixels[y, x] = 1
    return pixels


@pytest.fixture
def cat2000(tmp_path):
    root = tmp_path / "cat"
    for category in ("Action", "Art"):
        for k in range(1, 5):
            picture(root / "Stimuli" / category / f"{k:03d}.jpg", [20, 30])
            # As in the original, which keeps results of its own in there.
            picture(root / "Stimuli" / category / "Output" / f"{k:03d}.jpg", [20, 30])
            locations = root / "FIXATIONLOCS" / category / f"{k:03d}.mat"
            locations.parent.mkdir(parents=True, exist_ok=True)
            points = [] if (category, k) == ("Art", 2) else [(k, 2), (29, 19)]
            scipy.io.savemat(locations, {"fixLocs": marked([20, 30], points)})
    picture(root / "FIXATIONMAPS" / "Action" / "001.jpg", [20, 30], 77)
    return root


def test_cat2000(cat2000, tmp_path):
    data = load_cat2000(str(cat2000))
    assert [s.name for s in data.half("tune")] == [
        "Action/001",
        "Action/002",
        "Art/001",
    ]
    assert [s.name for s in data.half("validate")] == [
        "Action/003",
        "Action/004",
        "Art/003",
        "Art/004",
    ]
    assert data.skipped == ["Art/002"] and data.num_outside == 0
    assert not data.has_subjects
    first = data.stimuli[0]
    assert first.size == (20, 30)
    np.testing.assert_array_equal(first.fixations, [[1, 2], [29, 19]])
    np.testing.assert_array_equal(
        first.fixation_map(), marked([20, 30], [(1, 2), (29, 19)])
    )
    np.testing.assert_allclose(first.human_map(), 77)
    assert data.stimuli[1].human_map(2.0).sum() == pytest.approx(2, rel=0.8)
    shutil.copytree(cat2000, tmp_path / "all" / "trainSet")
    assert len(load_cat2000(str(tmp_path / "all")).stimuli) == 7


def test_bad_cat2000(cat2000):
    locations = cat2000 / "FIXATIONLOCS" / "Art" / "003.mat"
    whole = locations.read_bytes()
    for length in (0, 60, 130, len(whole) - 20):
        locations.write_bytes(whole[:length])
        with pytest.raises(
            DataError, match=r"Art/003\.mat: is no readable MATLAB file"
        ):
            load_cat2000(str(cat2000))
    scipy.io.savemat(locations, {"fixations": np.ones([20, 30])})
    with pytest.raises(
        DataError, match="no variable fixLocs; its variables: fixations"
    ):
        load_cat2000(str(cat2000))
    scipy.io.savemat(locations, {"fixLocs": "none"})
    with pytest.raises(DataError, match="fixLocs must be a matrix"):
        load_cat2000(str(cat2000))
    locations.unlink()
    with pytest.raises(DataError, match=r"Art/003\.mat: does not exist"):
        load_cat2000(str(cat2000))
    with pytest.raises(DataError, match="has no directory Stimuli"):
        load_cat2000(str(cat2000 / "Stimuli"))
    with pytest.raises(DataError, match="nowhere: is no directory"):
        load_cat2000(str(cat2000 / "nowhere"))
    shutil.rmtree(cat2000 / "FIXATIONLOCS")
    with pytest.raises(DataError, match="has no directory FIXATIONLOCS"):
        load_cat2000(str(cat2000))


def test_missing_halves(cat2000):
    for k in (1, 2):
        for category in ("Action", "Art"):
            scipy.io.savemat(
                cat2000 / "FIXATIONLOCS" / category / f"00{k}.mat",
                {"fixLocs": np.zeros([20, 30])},
            )
    with pytest.raises(DataError, match="no image of the half to tune has a fixation"):
        load_cat2000(str(cat2000))


def test_human_map_of_another_size(cat2000):
    picture(cat2000 / "FIXATIONMAPS" / "Art" / "001.jpg", [10, 30])
    stimulus = {s.name: s for s in load_cat2000(str(cat2000)).stimuli}["Art/001"]
    with pytest.raises(DataError, match=r"001\.jpg: is 30x10, but .* are of 30x20"):
        stimulus.human_map()


@pytest.fixture
def mit1003(tmp_path):
    root = tmp_path / "mit"
    for k, size in enumerate([(40, 30), (30, 50), (24, 24)]):
        picture(root / "ALLSTIMULI" / f"i{k}.jpeg", size)
        pixels = 255 * marked(size, [(5 + k, 7), (20, 9)])
        (root / "ALLFIXATIONMAPS").mkdir(exist_ok=True)
        path = root / "ALLFIXATIONMAPS" / f"i{k}_fixPts.jpg"
        Image.fromarray(pixels).save(path, quality=95)
    picture(root / "ALLFIXATIONMAPS" / "i1_fixMap.jpg", (30, 50), 5)
    return root


def test_mit1003(mit1003):
    data = load_mit1003(str(mit1003))
    assert [(s.name, s.half, s.size) for s in data.stimuli] == [
        ("i0", "tune", (40, 30)),
        ("i1", "validate", (30, 50)),
        ("i2", "validate", (24, 24)),
    ]
    np.testing.assert_array_equal(data.stimuli[2].fixations, [[7, 7], [20, 9]])
    np.testing.assert_allclose(data.stimuli[1].human_map(), 5)


def test_bad_mit1003(mit1003):
    points = mit1003 / "ALLFIXATIONMAPS" / "i1_fixPts.jpg"
    points.write_bytes(points.read_bytes()[:100])
    with pytest.raises(DataError, match=r"i1_fixPts\.jpg: is cut off"):
        load_mit1003(str(mit1003))
    points.unlink()
    with pytest.raises(DataError, match=r"i1_fixPts\.jpg: does not exist"):
        load_mit1003(str(mit1003))
    shutil.rmtree(mit1003 / "ALLSTIMULI")
    (mit1003 / "ALLSTIMULI").mkdir()
    with pytest.raises(DataError, match="ALLSTIMULI: holds no JPEG or PNG images"):
        load_mit1003(str(mit1003))


@pytest.fixture
def arrays(tmp_path):
    for k in range(4):
        picture(tmp_path / "images" / f"{k}.png", [15, 20])
    return dict(
        image=np.array([f"{k}.png" for k in range(4)]),
        xy=np.array([[1.5, 2], [39.9, 29.9], [7, 7], [-0.1, 3], [40, 3], [3, np.nan]]),
        offset=np.array([0, 2, 3, 3, 6]),
        original_size=np.array([40, 30]),
        subject=np.array([4, 5, 4, 4, 4, 5]),
    )


def write(tmp_path, arrays, **changed):
    arrays = {k: v for k, v in {**arrays, **changed}.items() if v is not None}
    np.savez(tmp_path / "fixations.npz", **arrays)
    return str(tmp_path)


def test_npz(tmp_path, arrays):
    xy = arrays["xy"].copy()
    xy[4] = [20, 10]
    data = load_npz(write(tmp_path, arrays, xy=xy))
    assert [(s.name, s.half) for s in data.stimuli] == [
        ("0", "tune"),
        ("1", "tune"),
        ("3", "validate"),
    ]
    assert data.num_outside == 2 and data.skipped == ["2"] and data.has_subjects
    assert data.stimuli[0].size == (30, 40)
    np.testing.assert_array_equal(data.stimuli[0].subjects, [4, 5])
    np.testing.assert_array_equal(data.stimuli[2].fixations, [[20, 10]])
    assert data.stimuli[0].fixation_map()[29, 39]
    assert read_image(data.stimuli[0].image_path).shape == (15, 20, 3)
    sizes = np.array([[40, 30], [40, 30], [40, 30], [80, 60]])
    path = write(tmp_path, arrays, original_size=sizes, subject=None)
    data = load_npz(f"{path}/fixations.npz")
    assert data.stimuli[-1].size == (60, 80) and not data.has_subjects


@pytest.mark.parametrize(
    "changed, message",
    [
        (
            dict(xy=None),
            "has no array 'xy'; needed are image, xy, offset, original_size",
        ),
        (
            dict(xy=np.ones([6])),
            r"xy must be numbers \[fixations, 2\]; got float64 \[6\]",
        ),
        (
            dict(offset=np.array([0, 2, 3, 3, 5])),
            "offset must be integers .* 6 fixations",
        ),
        (dict(offset=np.array([0, 3, 2, 3, 6])), "offset must be integers"),
        (dict(offset=np.array([0, 2, 6])), r"offset must be integers \[5\]"),
        (dict(original_size=np.array([0, 3])), "original_size must be numbers >= 1"),
        (dict(original_size=np.ones([3, 2])), "original_size must be"),
        (dict(subject=np.zeros(6)), r"subject must be integers \[6\]; got float64"),
        (dict(image=np.array([1, 2, 3, 4])), "image must be names"),
        (dict(image=np.array(["0.png"] * 4)), "several images are named 0"),
        (dict(image=np.array(["9.png"] * 4)), r"9\.png: does not exist; .* names it"),
        (dict(xy=np.array([object()] * 6)), "is no readable .npz file"),
        (
            {},
            "the half to validate has a fixation inside .4 images, 3 fixations outside",
        ),
    ],
)
def test_bad_npz(tmp_path, arrays, changed, message):
    with pytest.raises(DataError, match=message) as raised:
        load_npz(write(tmp_path, arrays, **changed))
    assert "\n" not in str(raised.value)


def test_truncated_or_missing_npz(tmp_path, arrays):
    with pytest.raises(DataError, match=r"fixations\.npz: does not exist"):
        load_npz(str(tmp_path))
    file = tmp_path / "fixations.npz"
    write(tmp_path, arrays)
    for length in (0, 100, file.stat().st_size - 30):
        file.write_bytes(file.read_bytes()[:length])
        with pytest.raises(DataError, match="is no readable .npz file"):
            load_npz(str(file))


@pytest.mark.parametrize(
    "changed, message",
    [
        (
            dict(original_size=np.array([np.nan, 3])),
            "original_size must be numbers >= 1",
        ),
        (dict(original_size=np.array([np.inf, 3])), "original_size must be .* 65535"),
        (dict(original_size=np.array([10**9, 10**9])), "at most 65535; got int64"),
        (dict(xy=np.ones([6, 2], complex)), "xy must be numbers .* got complex128"),
        (dict(xy=np.array([["1", "2"]] * 6)), "xy must be numbers"),
        (dict(offset=np.array([0, 2, 3, 3, 6.0])), "offset must be integers"),
        (dict(offset=np.array(4)), r"offset must be integers \[5\]"),
    ],
)
def test_numbers_of_npz_that_cannot_be(tmp_path, arrays, changed, message):
    with pytest.raises(DataError, match=message):
        load_npz(write(tmp_path, arrays, **changed))


@pytest.mark.parametrize(
    "values, message",
    [
        (sparse.csc_matrix((10**6, 10**6)), r"fixLocs must be a matrix .* got float64"),
        (np.full([20, 30], np.nan), "fixLocs must be finite"),
        (np.ones([20, 30]) * 1j, "fixLocs must be a matrix .* got complex128"),
        (np.ones([2, 2, 2]), "fixLocs must be a matrix"),
        ({"x": 1}, "fixLocs must be a matrix"),
        (np.zeros([0, 3]), "fixLocs must be a matrix"),
    ],
)
def test_fixation_locations_that_cannot_be(cat2000, values, message):
    scipy.io.savemat(cat2000 / "FIXATIONLOCS" / "Art" / "001.mat", {"fixLocs": values})
    with pytest.raises(DataError, match=rf"Art/001\.mat: {message}"):
        load_cat2000(str(cat2000))


def test_hidden_categories_and_files_are_no_data(cat2000):
    before = len(load_cat2000(str(cat2000)).stimuli)
    picture(cat2000 / "Stimuli" / ".ipynb_checkpoints" / "1.jpg", [4, 4])
    picture(cat2000 / "Stimuli" / "Art" / "._001.jpg", [4, 4])
    assert len(load_cat2000(str(cat2000)).stimuli) == before


def test_blurs_that_cannot_be(tmp_path, arrays):
    arrays["xy"][4] = [20, 10]
    stimulus = load_npz(write(tmp_path, arrays)).stimuli[0]
    for sigma in (np.nan, -1.0, 1e9, np.inf):
        with pytest.raises(ValueError, match="sigma must be a finite number from 0 to"):
            stimulus.human_map(sigma)
