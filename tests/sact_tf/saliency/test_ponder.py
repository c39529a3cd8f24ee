"""Maps from networks and from files."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import sact_tf
from sact_tf import visualization
from sact_tf.data.examples import DataError
from sact_tf.saliency import pictures, ponder


def test_input_size():
    assert ponder.input_size(320, (1080, 1920)) == (180, 320)
    assert ponder.input_size(320, (600, 300)) == (320, 160)
    assert ponder.input_size((320, 180), (600, 800)) == (180, 320)


@pytest.mark.parametrize("family", [sact_tf.imagenet_resnet, sact_tf.cifar_resnet])
def test_ponder_cost_is_the_map_of_the_network(family, rng):
    units = "1_1_1_1" if family is sact_tf.imagenet_resnet else "1_1_1"
    model = family(units, "sact", 3, base_channels=2)
    image = rng.integers(0, 256, [40, 60, 3]).astype(np.uint8)
    inputs = ponder.network_input(model, image, (40, 60))
    expected = image[np.newaxis] / 127.5 - 1
    if family is sact_tf.cifar_resnet:
        expected = model.preprocess(tf.constant(image[:40, :40]), 40)[np.newaxis]
        inputs = ponder.network_input(model, image[:40, :40], (40, 40))
    np.testing.assert_allclose(inputs, expected, atol=1e-4)
    _, end_points = model.with_end_points(ponder.network_input(model, image, (40, 60)))
    values = ponder.ponder_cost(model, image, (40, 60))
    assert values.shape == (40, 60)
    np.testing.assert_allclose(values, visualization.sact_map(end_points)[0, ..., 0])


def test_only_sact_networks_have_maps():
    model = sact_tf.cifar_resnet("1_1_1", "act", 3, base_channels=2)
    with pytest.raises(ValueError, match="only SACT networks have a ponder cost map"):
        ponder.ponder_cost(model, np.zeros([32, 32, 3], np.uint8), (32, 32))


def test_maps_come_back_from_a_file(tmp_path, rng):
    path = str(tmp_path / "maps.npz")
    assert ponder.saved_settings(path) is None
    made = {"Action/001": rng.random([4, 5]), "file": rng.random([3, 3])}
    ponder.save_maps(path, made, {"seed": 1})
    assert ponder.saved_settings(path) == {"seed": 1}
    loaded = ponder.load_maps(path, made)
    for name, values in made.items():
        np.testing.assert_array_equal(loaded[name], values)
    data = (tmp_path / "maps.npz").read_bytes()
    (tmp_path / "maps.npz").write_bytes(data[:-40])
    assert ponder.saved_settings(path) is None


def test_maps_of_others(tmp_path, rng):
    pixels = rng.integers(0, 256, [6, 8]).astype(np.uint8)
    (tmp_path / "Art").mkdir()
    Image.fromarray(pixels).save(tmp_path / "Art" / "1.png")
    loaded = ponder.load_maps(str(tmp_path), ["Art/1"])
    np.testing.assert_allclose(loaded["Art/1"], pixels)
    with pytest.raises(DataError, match=r"has no map Art/2\.png"):
        ponder.load_maps(str(tmp_path), ["Art/1", "Art/2"])
    path = str(tmp_path / "maps.npz")
    np.savez(path, a=pixels, b=np.ones([2, 2, 3]))
    np.testing.assert_array_equal(ponder.load_maps(path, ["a"])["a"], pixels)
    with pytest.raises(DataError, match="has no map of 1 of 2 images, such as 'c'"):
        ponder.load_maps(path, ["a", "c"])
    with pytest.raises(DataError, match=r"b must be numbers \[height, width\]"):
        ponder.load_maps(path, ["a", "b"])
    with pytest.raises(DataError, match="x.npz: does not exist"):
        ponder.load_maps(str(tmp_path / "x.npz"), ["a"])
    (tmp_path / "maps.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match="is no readable .npz file"):
        ponder.load_maps(path, ["a"])


def test_figure_of_several_aspects(tmp_path, rng):
    rows = [
        ("a", rng.random([20, 40, 3]), [rng.random([10, 20]), np.ones([20, 40])]),
        ("b", rng.random([40, 20, 3]), [rng.random([40, 20])] * 2),
    ]
    figure = pictures.saliency_figure(rows, ["humans", "model"])
    assert [len(axis.images) for axis in figure.axes] == [1] * 6
    # Brightness is the softmax at a temperature of 1/5 of the normalised map.
    values = rows[0][2][0]
    shown = figure.axes[1].images[0].get_array()
    order = np.exp((values - values.min()) / np.ptp(values) * 5)
    np.testing.assert_allclose(shown, order / order.sum())
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_maps_that_are_not_finite(tmp_path, value):
    path = str(tmp_path / "maps.npz")
    np.savez(path, a=np.eye(3), b=np.diag([1.0, value, 1]))
    assert list(ponder.load_maps(path, ["a"])) == ["a"]
    with pytest.raises(DataError, match=r"maps\.npz: b: 1 of 9 values are NaN or inf"):
        ponder.load_maps(path, ["a", "b"])
    np.savez(path, a=np.zeros([0, 4]))
    with pytest.raises(DataError, match=r"a must be numbers \[height, width\]"):
        ponder.load_maps(path, ["a"])


def test_an_image_that_is_not_finite():
    model = sact_tf.cifar_resnet("1", "sact", base_channels=2)
    image = np.zeros([16, 16, 3], np.float32)
    image[3, 4] = np.nan
    with pytest.raises(DataError, match="image: 3 of 768 values are NaN or infinite"):
        ponder.ponder_cost(model, image, (16, 16))


def test_settings_of_another_kind(tmp_path):
    path = str(tmp_path / "maps.npz")
    for settings in ("[1]", "[" * 100000, "{", "null"):
        np.savez(path, settings=np.array(settings))
        assert ponder.saved_settings(path) is None
