"""Pictures of recurrent attention show what was seen, and when it stopped."""

import numpy as np
import pytest
from PIL import Image

from sact_tf import glimpse_pictures
from sact_tf.networks import glimpses


def test_windows_are_those_of_the_sensor():
    """What is drawn is what the network got."""
    rng = np.random.default_rng(0)
    image = np.arange(28 * 20, dtype=np.float32).reshape(1, 28, 20, 1) + 1
    for size in (7, 8):
        places = rng.uniform(-1, 1, [20, 2]).astype(np.float32)
        places[:3] = [[0, 0], [-1, -1], [1, 1]]
        corners = glimpse_pictures.windows(places, (28, 20), size)
        for place, (y, x) in zip(places, corners):
            seen = glimpses.glimpse(image, place[np.newaxis], size)[0, ..., 0].numpy()
            inside = image[0, max(y, 0) : y + size, max(x, 0) : x + size, 0]
            np.testing.assert_array_equal(seen[seen > 0], inside.ravel())


def test_paths_are_sorted_by_when_it_stopped():
    images = np.zeros([10, 28, 28, 1])
    locations = np.zeros([10, 3, 2])
    locations[:, 1] = -13 / 14
    units = np.array([3, 1, 2, 1, 3, 2, 1, 1, 2, 3])
    labels = np.arange(10)
    answers = np.where(labels == 7, 0, labels)
    figure = glimpse_pictures.path_figure(images, locations, units, answers, labels, 8)
    drawn = [axis for axis in figure.axes if axis.get_title()]
    order = [1, 3, 6, 7, 2, 5, 8, 0, 4, 9]
    titles = [f"{units[k]}: {answers[k]} ({labels[k]})" for k in order]
    assert [axis.get_title() for axis in drawn] == titles
    colours = [axis.title.get_color() for axis in drawn]
    assert colours == ["red" if k == 7 else "green" for k in order]
    for axis, k in zip(drawn, order):
        boxes = [patch.get_xy() for patch in axis.patches]
        assert boxes == [(9.5, 9.5), (-3.5, -3.5), (9.5, 9.5)][: units[k]]
        assert [text.get_text() for text in axis.texts] == list("123"[: units[k]])
        assert axis.get_xlim() == axis.get_ylim()[::-1] == (-4, 31)  # of all, 3 outside
    figure = glimpse_pictures.path_figure(
        images, locations, units, answers, labels, 8, whole_first=True
    )
    (*_, last) = (axis for axis in figure.axes if axis.get_title())
    assert [text.get_text() for text in last.texts] == ["2", "3"]


def test_histogram_and_errors():
    figure = glimpse_pictures.steps_figure(np.array([1, 3, 3]), 4)
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert heights == [1, 0, 2, 0]
    figure = glimpse_pictures.error_figure([0.5, 0.2], (1.4, 0.3))
    after, stopped = figure.axes[0].get_lines()
    np.testing.assert_allclose(after.get_xydata(), [[1, 50], [2, 20]])
    np.testing.assert_allclose(stopped.get_xydata(), [[1.4, 30]])


@pytest.mark.parametrize("whole_first", [False, True])
def test_frames_show_what_was_seen_so_far(tmp_path, whole_first):
    image = np.full([28, 28, 1], 200 / 255, np.float32)
    places = np.array([[0.0, 0.0], [-1, -1], [1, 1]]) * 13 / 14
    path = tmp_path / "glimpses.gif"
    glimpse_pictures.write_gif(str(path), image, places, 8, whole_first=whole_first)
    spots = [(14, 14), (2, 2), (25, 25), (14, 2)]  # the last nobody looks at
    with Image.open(path) as picture:
        assert picture.n_frames == 4
        frames = []
        for k in range(4):
            picture.seek(k)
            shown = np.asarray(picture.convert("L"))[5::11, 5::11]
            frames.append([int(shown[spot]) for spot in spots])
    dark, light = (100, 200) if whole_first else (50, 200)
    seen = [[0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0]]
    if not whole_first:
        seen = [[0] * 4, [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]]
    expected = np.where(seen, light, dark)
    if whole_first:
        expected[0] = 50
    np.testing.assert_allclose(frames, expected, atol=3)


def test_inputs_of_every_range_are_shown():
    grey = np.array([0, 0.5, 1]).reshape(1, 3, 1)
    shown = glimpse_pictures.shown(grey)[0]
    np.testing.assert_array_equal(shown, [[0] * 3, [127] * 3, [255] * 3])
    colours = np.array([-1, 0, 1] * 3).reshape(1, 3, 3)
    np.testing.assert_array_equal(glimpse_pictures.shown(colours)[0, 0], [0, 127, 255])
    standardised = np.array([-3, 0, 3] * 3).reshape(1, 3, 3)
    np.testing.assert_array_equal(
        glimpse_pictures.shown(standardised)[0, 0], [0, 127, 255]
    )
