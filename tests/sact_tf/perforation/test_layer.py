"""`PerforatedConv2D` against the dense convolution."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from sact_tf.perforation import PerforatedConv2D


def pair(shape=(2, 9, 10, 3), dtype="float64", **options):
    """A perforated and a dense convolution of the same weights, and an input."""
    mine = {"keep_fraction", "mask", "interpolation", "seed", "scores", "pool"}
    dense_options = {k: v for k, v in options.items() if k not in mine}
    x = tf.random.normal(shape, dtype=dtype)
    perforated = PerforatedConv2D(
        4, **{"kernel_size": 3, "dtype": dtype, "bias_initializer": "normal", **options}
    )
    dense = keras.layers.Conv2D(
        4, **{"kernel_size": 3, "padding": "same", "dtype": dtype, **dense_options}
    )
    perforated.build(shape), dense.build(shape)
    dense.kernel.assign(perforated.kernel), dense.bias.assign(perforated.bias)
    return perforated, dense, x


@pytest.mark.parametrize("interpolation", ["nearest", "zeros"])
@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(padding="valid", strides=(2, 1), activation="relu"),
        dict(strides=2, kernel_size=(5, 4)),
        dict(kernel_size=(2, 3), dilation_rate=(2, 3), activation="sigmoid"),
    ],
)
def test_full_mask_is_dense(options, interpolation):
    perforated, dense, x = pair(keep_fraction=1, interpolation=interpolation, **options)
    results = []
    for layer in (perforated, dense):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
            loss = tf.reduce_sum(y * tf.cos(y))
        results.append([y, *tape.gradient(loss, [x, layer.kernel, layer.bias])])
    for own, expected in zip(*results):
        np.testing.assert_allclose(own, expected, atol=1e-9)


@pytest.mark.parametrize("mask", ["grid", "uniform", "structure"])
def test_values_are_those_of_the_nearest_kept_position(mask):
    perforated, dense, x = pair(keep_fraction=0.3, mask=mask, pool=(3, 2), seed=5)
    expected = dense(x).numpy().reshape(2, 90, 4)
    kept, nearest = perforated.kept.numpy(), perforated.nearest.numpy()
    np.testing.assert_allclose(
        perforated(x), expected[:, kept[nearest.ravel()]].reshape(2, 9, 10, 4)
    )
    zeros, _, _ = pair(
        keep_fraction=0.3, mask=mask, pool=(3, 2), seed=5, interpolation="zeros"
    )
    zeros.kernel.assign(perforated.kernel), zeros.bias.assign(perforated.bias)
    is_kept = np.isin(np.arange(90), kept)[np.newaxis, :, np.newaxis]
    np.testing.assert_allclose(
        zeros(x), np.where(is_kept, expected, 0).reshape(2, 9, 10, 4)
    )


def test_zeros_are_what_the_activation_makes_of_zero():
    layer, _, x = pair(interpolation="zeros", activation="sigmoid", keep_fraction=0.1)
    dropped = np.isin(np.arange(90), layer.kept, invert=True)
    assert (layer(x).numpy().reshape(2, 90, 4)[:, dropped] == 0.5).all()


def test_regular_grid_upsamples_the_strided_convolution():
    mask = np.zeros([9, 12], bool)
    mask[1::3, 1::3] = True  # centres of 3x3 cells
    perforated, dense, x = pair(shape=(2, 9, 12, 3), mask=mask)
    strided = dense(x)[:, 1::3, 1::3]
    expected = keras.layers.UpSampling2D(3)(strided)
    np.testing.assert_allclose(perforated(x), expected, atol=1e-12)


def test_gradients_are_numerical_ones():
    layer, _, x = pair(shape=(1, 4, 5, 2), keep_fraction=0.4, mask="uniform")

    def loss(kernel, bias, images):
        layer.kernel.assign(kernel), layer.bias.assign(bias)
        return tf.reduce_sum(tf.sin(layer(images)))

    with tf.GradientTape() as tape:
        tape.watch(x)
        value = tf.reduce_sum(tf.sin(layer(x)))
    gradients = tape.gradient(value, [layer.kernel, layer.bias, x])
    point = [layer.kernel.numpy(), layer.bias.numpy(), x.numpy()]
    for which, gradient in enumerate(gradients):
        direction = np.random.default_rng(which).normal(size=gradient.shape)
        ends = []
        for step in (1e-5, -1e-5):
            moved = list(point)
            moved[which] = point[which] + step * direction
            ends.append(float(loss(*moved)))
        numerical = (ends[0] - ends[1]) / 2e-5
        assert numerical == pytest.approx(np.sum(gradient * direction), rel=1e-5)


def test_contract_of_sact():
    """x + M f(x) keeps x outside M, and f's first 1x1 is only read on dilate(M)."""
    mask = np.zeros([8, 8], bool)
    mask[2:5, 3:6] = mask[7, 0] = True
    dilated = tf.nn.max_pool2d(tf.cast(mask, tf.float32)[None, ..., None], 3, 1, "SAME")
    unread = dilated.numpy()[..., 0] == 0
    layer = PerforatedConv2D(4, 3, mask=mask, interpolation="zeros", use_bias=False)
    x = np.random.default_rng(0).normal(size=[1, 8, 8, 4]).astype(np.float32)
    poisoned = np.where(unread[..., np.newaxis], np.nan, x)
    y = x + layer(poisoned).numpy()
    assert (y[:, ~mask] == x[:, ~mask]).all()
    assert np.isfinite(y).all() and (y[:, mask] != x[:, mask]).all()


@pytest.mark.parametrize(
    "options",
    [
        dict(mask="impact", scores=np.random.default_rng(0).random([6, 6])),
        dict(mask="structure", pool=(3, 2, "same"), padding="same"),
        dict(mask=np.eye(6, dtype=bool), interpolation="zeros", activation="relu"),
        dict(mask="uniform", seed=9, keep_fraction=0.2),
    ],
)
def test_files(options, tmp_path):
    inputs = keras.Input([6, 6, 2])
    model = keras.Model(inputs, PerforatedConv2D(3, 3, name="conv", **options)(inputs))
    x = tf.random.normal([2, 6, 6, 2])
    path = str(tmp_path / "model.keras")
    model.save(path)
    again = keras.models.load_model(path)
    assert (model(x).numpy() == again(x).numpy()).all()
    assert type(again.get_layer("conv")) is PerforatedConv2D
    config = model.get_layer("conv").get_config()
    assert config == PerforatedConv2D.from_config(config).get_config()


def test_tables_are_of_the_checkpoint(tmp_path):
    """Another seed would draw other ties: what was drawn is in the file."""

    def make(seed):
        inputs = keras.Input([8, 8, 2])
        layer = PerforatedConv2D(3, 3, mask="uniform", keep_fraction=0.3, seed=seed)
        return keras.Model(inputs, layer(inputs))

    first, second = make(1), make(2)
    x = tf.random.normal([1, 8, 8, 2])
    assert not np.allclose(first(x), second(x))
    first.save_weights(str(tmp_path / "w.weights.h5"))
    second.load_weights(str(tmp_path / "w.weights.h5"))
    assert (first(x).numpy() == second(x).numpy()).all()
    assert len(first.trainable_weights) == 2


def test_mixed_precision():
    layer = PerforatedConv2D(4, 3, dtype=keras.mixed_precision.Policy("mixed_float16"))
    y = layer(tf.ones([1, 6, 6, 2]))
    assert y.dtype == tf.float16 and layer.kernel.dtype == tf.float32


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(keep_fraction=0), "keep_fraction must be a finite number > 0 and <= 1"),
        (dict(keep_fraction=1.01), "got 1.01"),
        (dict(groups=2), "groups must be 1 in a perforated convolution; got 2"),
        (dict(data_format="channels_first"), "channels_first .expected channels_last"),
        (dict(mask="chess"), "mask must be one of uniform, .* got 'chess'"),
        (dict(interpolation="linear"), "interpolation must be one of nearest, zeros"),
        (dict(pool=(0, 1)), "pool size must be an integer >= 1"),
        (dict(mask=np.ones([7, 6], bool)), r"mask must be of shape \(6, 6\)"),
        (dict(mask=np.zeros([6, 6], bool)), "mask must keep at least one"),
        (dict(mask=np.ones([6, 6])), "mask must be bool; got float64"),
        (dict(mask="impact", scores=np.ones([9, 9])), r"scores must be .*\(9, 9\)"),
        (dict(kernel_size=7, padding="valid"), "is smaller than the kernel, 7x7"),
    ],
)
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PerforatedConv2D(4, **{"kernel_size": 3, **options}).build([1, 6, 6, 2])


def test_unknown_size_is_refused():
    with pytest.raises(ValueError, match="a static mask needs images of known size"):
        PerforatedConv2D(4, 3)(keras.Input([None, 6, 3]))
