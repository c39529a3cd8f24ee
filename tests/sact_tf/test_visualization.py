"""Maps and figures."""

import numpy as np
import pytest
import tensorflow as tf

import sact_tf
from sact_tf import visualization


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


def test_only_sact_networks_have_maps():
    for model_type, expected in (("vanilla", False), ("act", False), ("sact", True)):
        model = sact_tf.cifar_resnet("2", model_type, base_channels=4)
        _, end_points = model.with_end_points(tf.zeros([1, 16, 16, 3]))
        assert visualization.has_maps(end_points) is expected


def test_heatmap_of_a_constant_image_is_finite():
    model = sact_tf.cifar_resnet("2", "sact", base_channels=4)
    _, end_points = model.with_end_points(tf.zeros([1, 16, 16, 3]))
    heatmap = visualization.heatmap(end_points)
    assert heatmap.shape == [1, 16, 37, 3] and np.isfinite(heatmap).all()


@pytest.mark.parametrize("count", [1, 3])
def test_figure_can_be_saved(count, tmp_path):
    images = np.zeros([count, 8, 8, 3], np.uint8)
    maps = np.arange(count * 64.0).reshape(count, 8, 8, 1)
    figure = visualization.ponder_figure(images, maps, ["x"] * count)
    figure.savefig(tmp_path / "figure.png")
    assert tf.io.decode_png((tmp_path / "figure.png").read_bytes()).shape[-1] == 4
