"""Maps and figures."""

import errno
import os
import types

import numpy as np
import pytest
import tensorflow as tf

import sact_tf
from sact_tf import visualization
from sact_tf.data.examples import DataError


@pytest.mark.parametrize("size", [[32, 32], [33, 47]])
def test_map_is_the_sum_of_enlarged_block_maps(size):
    model = sact_tf.cifar_resnet("2", "sact", base_channels=4)
    _, end_points = model.with_end_points(
        tf.random.stateless_normal([2, *size, 3], [1, 2])
    )
    expected = 0
    for block in model.block_scopes:
        values = end_points[f"{block}/ponder_cost"].numpy()
        rows, columns = (np.arange(n) * m // n for n, m in zip(size, values.shape[1:]))
        expected = expected + values[:, rows][:, :, columns]
    actual = visualization.sact_map(end_points)
    np.testing.assert_allclose(actual[..., 0], expected, atol=1e-5)


def test_maps_of_images_of_several_sizes_are_those_of_each_alone(lively):
    model = lively(sact_tf.imagenet_resnet("1_2_2_1", "sact", 3, base_channels=2))
    images = np.random.default_rng(0).normal(size=[3, 48, 64, 3]).astype(np.float32)
    sizes = np.array([[48, 37], [31, 64], [48, 64]], np.int32)
    end_points = model.run_blocks(images, False, True, sizes, 3)[1]
    maps = visualization.sact_map(end_points, sizes=sizes)
    assert len(np.unique(maps)) > 10
    for (height, width), image, values in zip(sizes, images, maps.numpy()):
        image, size = image[np.newaxis, :height, :width], [[height, width]]
        alone = model.run_blocks(image, False, True, tf.constant(size), 3)[1]
        expected = visualization.sact_map(alone)[0]
        np.testing.assert_allclose(values[:height, :width], expected, atol=1e-4)
        assert not values[height:].any() and not values[:, width:].any()


def test_only_sact_networks_have_maps():
    for model_type, expected in (("vanilla", False), ("act", False), ("sact", True)):
        model = sact_tf.cifar_resnet("2", model_type, base_channels=4)
        _, end_points = model.with_end_points(tf.zeros([1, 16, 16, 3]))
        assert visualization.has_maps(end_points) is expected


def test_heatmap_of_a_constant_image_is_black_under_red():
    model = sact_tf.cifar_resnet("2", "sact", base_channels=4)
    _, end_points = model.with_end_points(tf.zeros([1, 16, 16, 3]))
    heatmap = visualization.heatmap(end_points, border=5, alpha=0.75)
    expected = np.zeros([1, 16, 37, 3])
    # Three blocks of two units cost 9 at most.
    costs = visualization.sact_map(end_points).numpy()
    expected[:, :, 21:, 0] = 0.75 * costs[..., 0] / 9
    np.testing.assert_allclose(heatmap, expected, atol=1e-6)


@pytest.mark.parametrize("count", [1, 3])
def test_figure_shows_images_above_their_maps(count, tmp_path):
    images = np.arange(count * 192, dtype=np.uint8).reshape(count, 8, 8, 3)
    maps = np.arange(count * 64.0).reshape(count, 8, 8, 1)
    figure = visualization.ponder_figure(images, maps, ["x"] * count)
    drawn = [axis.images[0] for axis in figure.axes if axis.images]
    for k in range(count):
        np.testing.assert_array_equal(drawn[k].get_array(), images[k])
        np.testing.assert_array_equal(drawn[count + k].get_array(), maps[k, ..., 0])
        assert drawn[count + k].get_clim() == (0, count * 64 - 1)
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[:count] == ["x"] * count
    figure.savefig(tmp_path / "figure.png")
    assert tf.io.decode_png((tmp_path / "figure.png").read_bytes()).shape[-1] == 4


def test_grid_is_sorted_by_mean_ponder_cost():
    rng = np.random.default_rng(0)
    maps = rng.uniform(1, 5, [40, 4, 6, 1]) * rng.uniform(1, 3, [40, 1, 1, 1])
    images = np.broadcast_to(np.arange(40)[:, None, None, None] / 40, [40, 4, 6, 3])
    figure = visualization.sorted_grid(images, maps, rows=2, columns=5)
    drawn = [axis for axis in figure.axes if axis.get_title()]
    titles = [float(axis.get_title()) for axis in drawn]
    assert len(titles) == 10 and titles == sorted(titles)
    means = maps.mean((1, 2, 3))
    assert titles[0] == pytest.approx(means.min(), abs=0.01)
    assert titles[-1] == pytest.approx(means.max(), abs=0.01)
    for axis, title in zip(drawn, titles):  # each image with its own number
        k = round(40 * float(axis.images[0].get_array()[0, 0, 0]))
        assert means[k] == pytest.approx(title, abs=0.01)


def test_side_by_side_shows_image_and_map():
    values = np.arange(24.0).reshape(4, 6)
    figure = visualization.side_by_side(np.zeros([4, 6, 3], np.float32), values)
    assert [axis.get_title() for axis in figure.axes[:3]] == [
        "image",
        "ponder cost",
        "both",
    ]
    np.testing.assert_array_equal(figure.axes[1].images[0].get_array(), values)


def test_tradeoff_lines_go_from_few_to_many_operations():
    def evaluation(accuracy, flops):
        return {
            "eval/Accuracy": accuracy,
            "Total Flops/mean": flops,
            "Total Flops/std": 1.0,
        }

    figure = visualization.tradeoff_figure(
        {"a": [evaluation(0.6, 30.0), evaluation(0.5, 20.0)], "b": [evaluation(0.7, 9)]}
    )
    axis = figure.axes[0]
    lines = [line for line in axis.lines if len(line.get_xdata()) == 2]
    np.testing.assert_array_equal(lines[0].get_xdata(), [20.0, 30.0])
    np.testing.assert_allclose(lines[0].get_ydata(), [50.0, 60.0])
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["a", "b"]


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"eval/Accuracy": float("nan")}, r"a\[1\] has eval/Accuracy nan; expected a"),
        ({"eval/Accuracy": 60}, "has eval/Accuracy 60; expected .* from 0 to 1"),
        ({"Total Flops/mean": None}, "has Total Flops/mean null; expected a finite"),
        ({"Total Flops/std": "1"}, "has Total Flops/std '1'"),
        ({"Total Flops/mean": 10**400}, "has Total Flops/mean 1000"),
    ],
)
def test_tradeoff_of_what_is_no_evaluation(changed, message):
    row = {"eval/Accuracy": 0.5, "Total Flops/mean": 20.0, "Total Flops/std": 1.0}
    with pytest.raises(DataError, match=message):
        visualization.tradeoff_figure({"a": [row, {**row, **changed}]})
    with pytest.raises(DataError, match=r"a\[0\] has no 'Total Flops/mean'"):
        visualization.tradeoff_figure({"a": [{}]})


def test_pictures_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    image, values = np.ones([8, 8, 3]), np.eye(8)
    visualization.save_pictures(str(tmp_path / "a"), image, values, 0, 1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(before) == 3

    def full(path, pixels, pil_kwargs=None):
        with open(path, "wb") as file:
            file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(visualization, "mpl_image", types.SimpleNamespace(imsave=full))
    with pytest.raises(OSError, match=r"a_im\.jpg: cannot be written \(No space"):
        visualization.save_pictures(str(tmp_path / "a"), 0 * image, values, 0, 1)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    figure = visualization.colour_bar(0, 1)
    with pytest.raises(OSError, match=r"none/b\.png: cannot be written \(No such file"):
        visualization.save_figure(figure, tmp_path / "none" / "b.png")
    with pytest.raises(ValueError, match="xyz"):
        visualization.save_figure(figure, tmp_path / "b.xyz")
    visualization.save_figure(figure, tmp_path / "b.png")
    assert (tmp_path / "b.png").stat().st_size > 1000
