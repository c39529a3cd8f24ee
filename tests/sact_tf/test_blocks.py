"""Blocks around a user's own units, against the algorithms of SACT written out."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from sact_tf import ACTBlock, PlainBlock, SACTBlock
from sact_tf.layers import BatchNorm
from sact_tf.residual_units import BottleneckUnit


class Unit(keras.layers.Layer):
    """x + tanh(conv(x)); counts how often it runs."""

    def __init__(self, channels=4):
        super().__init__()
        self.conv = keras.layers.Conv2D(channels, 3, padding="same")
        self.runs = tf.Variable(0, trainable=False)

    def call(self, x, training=None):
        self.runs.assign_add(1)
        return x + tf.tanh(self.conv(x))

    def flops(self, x, active=None):
        return tf.fill([tf.shape(x)[0]], tf.constant(10, tf.int64))


class MaskedUnit(Unit):
    """The same, freezing positions itself."""

    def call(self, x, active=None, training=None):
        residual = tf.tanh(self.conv(x))
        if active is not None:
            residual *= tf.cast(active, x.dtype)[..., tf.newaxis]
        return x + residual


def images(batch=3):
    # Means far apart, so that images halt at different units.
    offset = 2.0 * tf.reshape(tf.range(batch, dtype=tf.float32) - 1.0, [-1, 1, 1, 1])
    return tf.random.stateless_normal([batch, 6, 5, 4], [1, 2]) + offset


def randomise_heads(block, bias):
    """Gives heads large random weights, so that halting differs between positions."""
    for k, head in enumerate(block.heads):
        for variable in head.trainable_variables:
            if "kernel" in variable.name:
                variable.assign(tf.random.stateless_normal(variable.shape, [k, 7]))
            if "bias" in variable.name:
                variable.assign(tf.fill(variable.shape, bias))


def make(block_type, num_units=4, unit=Unit, bias=-1.0, **options):
    block = block_type([unit() for _ in range(num_units)], **options)
    x = images()
    block(x)
    if hasattr(block, "heads"):
        randomise_heads(block, bias)
    return block, x


def test_plain_block_runs_all_units():
    block, x = make(PlainBlock)
    expected = x
    for unit in block.units:
        expected = unit(expected)
    output, end_points = block(x, return_end_points=True)
    np.testing.assert_array_equal(output, expected)
    np.testing.assert_array_equal(end_points["flops"], [40, 40, 40])


def test_act_block_is_algorithm_1():
    """ACT as SACT, section 2.2 and algorithm 1, tell it."""
    block, x = make(ACTBlock, tau=0.5)
    output, end_points = block(x, return_end_points=True)
    ponder_costs = []
    for i in range(3):
        state, total, cumulative, remainder = x[i : i + 1], 0.0, 0.0, 1.0
        for n, unit in enumerate(block.units, 1):
            state = unit(state)
            score = 1.0 if n == 4 else float(block.heads[n - 1](state)[0])
            cumulative += score
            if cumulative < 0.99 and n < 4:
                total += score * state
                remainder -= score
            else:
                total += remainder * state
                break
        np.testing.assert_allclose(output[i], total[0], atol=1e-5)
        assert int(end_points["num_units"][i]) == n
        ponder_costs.append(n + remainder)
        # 10 per unit and 8 per head: 1x1 over 4 channels.
        assert int(end_points["flops"][i]) == 10 * n + 8 * min(n, 3)
    np.testing.assert_allclose(end_points["ponder_cost"], ponder_costs, atol=1e-5)
    np.testing.assert_allclose(block.losses, [0.5 * np.mean(ponder_costs)], rtol=1e-5)
    assert len(set(end_points["num_units"].numpy())) > 1


def test_sact_block_is_algorithm_2():
    """SACT, section 2.3 and algorithm 2."""
    block, x = make(SACTBlock, unit=MaskedUnit, tau=0.5)
    output, end_points = block(x, return_end_points=True)
    # Position by position, with the masks and features of the whole image.
    shape = x.shape[:3]
    active, cumulative = np.ones(shape, bool), np.zeros(shape)
    remainder, num_units, total = np.ones(shape), np.zeros(shape), np.zeros(x.shape)
    state = x.numpy()
    for n, unit in enumerate(block.units, 1):
        state = np.where(active[..., None], unit(tf.constant(state)).numpy(), state)
        scores = np.ones(shape) if n == 4 else block.heads[n - 1](state).numpy()
        for p in np.ndindex(*shape):
            if not active[p]:
                continue
            num_units[p] += 1
            cumulative[p] += scores[p]
            if cumulative[p] < 0.99 and n < 4:
                total[p] += scores[p] * state[p]
                remainder[p] -= scores[p]
            else:
                total[p] += remainder[p] * state[p]
                active[p] = False
    np.testing.assert_allclose(output, total, atol=1e-4)
    np.testing.assert_array_equal(end_points["num_units"], num_units)
    np.testing.assert_allclose(
        end_points["ponder_cost"], num_units + remainder, atol=1e-4
    )
    np.testing.assert_allclose(
        block.losses, [0.5 * np.mean(num_units + remainder)], rtol=1e-5
    )
    assert len(np.unique(num_units)) > 2


def test_sact_block_freezes_units_that_know_no_mask():
    masked, x = make(SACTBlock, unit=MaskedUnit)
    plain = SACTBlock([Unit() for _ in range(4)])
    plain(x)
    plain.set_weights(masked.get_weights())
    np.testing.assert_allclose(plain(x), masked(x), atol=1e-6)


def test_tiles_share_their_mean_score():
    """SACT, section 2.3."""
    block, x = make(SACTBlock, unit=MaskedUnit, tile_size=4)
    alone, _ = make(SACTBlock, unit=MaskedUnit)
    for a, b in zip(alone.variables, block.variables):
        a.assign(b)
    key = "unit_1/halting_proba"
    _, end_points = block(x, return_end_points=True)
    expected = alone(x, return_end_points=True)[1][key].numpy()
    for y, x_ in ((0, 0), (0, 4), (4, 0), (4, 4)):  # of 6 by 5 positions
        tile = expected[:, y : y + 4, x_ : x_ + 4]
        tile[:] = tile.mean((1, 2), keepdims=True)
    np.testing.assert_allclose(end_points[key], expected, atol=1e-6)
    num_units = end_points["num_units"].numpy()
    assert (num_units[:, :4, :4] == num_units[:, :1, :1]).all()


def test_tiled_execution_takes_any_unit():
    block, x = make(SACTBlock, tile_size=2, execution="tiled")
    masked, _ = make(SACTBlock, tile_size=2)
    for a, b in zip(masked.variables, block.variables):
        a.assign(b)
    np.testing.assert_allclose(block(x), masked(x, training=False), atol=1e-5)


def test_early_stopping_changes_nothing_but_the_work():
    block, x = make(ACTBlock)
    early = ACTBlock([Unit() for _ in range(4)], early_stopping=True)
    early(x)
    early.set_weights(block.get_weights())
    run = tf.function(lambda b, x: b(x, return_end_points=True))
    output, end_points = run(block, x)
    early_output, early_end_points = run(early, x)
    np.testing.assert_allclose(early_output, output, atol=1e-6)
    assert end_points.keys() == early_end_points.keys()
    for key in ("ponder_cost", "num_units", "halting_distribution", "flops"):
        np.testing.assert_allclose(early_end_points[key], end_points[key], atol=1e-6)


@pytest.mark.parametrize("early_stopping, expected", [(True, 1), (False, 4)])
def test_early_stopping_skips_units(early_stopping, expected):
    block, x = make(ACTBlock, bias=50.0, early_stopping=early_stopping)
    for unit in block.units:
        unit.runs.assign(0)
    tf.function(block)(x)
    assert sum(int(unit.runs) for unit in block.units) == expected


@pytest.mark.parametrize(
    "block_type, options",
    [
        (ACTBlock, {}),
        (ACTBlock, dict(early_stopping=True)),
        (ACTBlock, dict(execution="perforated")),
        (SACTBlock, {}),
        (SACTBlock, dict(execution="perforated")),
    ],
)
def test_halting_in_the_middle(block_type, options):
    """Scores of 0.4 halt at the third of five units, and leave R = 0.2."""
    block, x = make(block_type, num_units=5, tau=1.0, **options)
    for head in block.heads:
        for variable in head.trainable_variables:
            value = np.log(0.4 / 0.6) if "bias" in variable.name else 0.0
            variable.assign(tf.fill(variable.shape, tf.constant(value, tf.float32)))
    for unit in block.units:
        unit.runs.assign(0)
    output, end_points = block(x, training=False, return_end_points=True)
    runs = [int(unit.runs) for unit in block.units]
    if options.get("early_stopping"):
        assert runs == [1, 1, 1, 0, 0]
    shape = x.shape[:1] if block_type is ACTBlock else x.shape[:3]
    np.testing.assert_array_equal(end_points["num_units"], np.full(shape, 3))
    states = [x]
    for unit in block.units:
        states.append(unit(states[-1]))
    expected = 0.4 * states[1] + 0.4 * states[2] + 0.2 * states[3]
    np.testing.assert_allclose(output, expected, atol=1e-5)
    costs = end_points["ponder_cost"]
    np.testing.assert_allclose(costs, np.full(shape, 3.2), rtol=1e-6)


class RegularizedUnit(keras.layers.Layer):
    """x + conv(x), with weight decay."""

    def __init__(self):
        super().__init__()
        self.conv = keras.layers.Conv2D(
            4, 3, padding="same", kernel_regularizer=keras.regularizers.L2(0.5)
        )

    def call(self, x, training=None):
        return x + self.conv(x)


@pytest.mark.parametrize("bias", [-1e4, 1e4])  # none is skipped; all but the first
def test_early_stopping_keeps_the_losses_of_units(bias):
    block, x = make(
        ACTBlock, unit=RegularizedUnit, bias=bias, tau=0.1, early_stopping=True
    )
    kernels = [unit.conv.kernel for unit in block.units]

    @tf.function
    def run(x):
        with tf.GradientTape() as tape:
            block(x, training=True)
            losses = tf.stack(block.losses)
            total = tf.reduce_sum(losses)
        return losses, tape.gradient(total, kernels)

    losses, gradients = run(x)
    decay = [0.5 * np.square(kernel).sum() for kernel in kernels]
    ponder_cost = 0.1 * (5.0 if bias < 0 else 2.0)
    np.testing.assert_allclose(
        np.sort(losses), np.sort([*decay, ponder_cost]), rtol=1e-5
    )
    for gradient, kernel in zip(gradients, kernels):
        np.testing.assert_allclose(gradient, kernel, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("block_type", [ACTBlock, SACTBlock])
def test_never_halting_is_the_plain_block(block_type):
    block, x = make(block_type, bias=-1e4)
    expected = x
    for unit in block.units:
        expected = unit(expected)
    np.testing.assert_allclose(block(x), expected, atol=1e-6)


@pytest.mark.parametrize("block_type", [ACTBlock, SACTBlock])
def test_halting_at_once_is_the_first_unit(block_type):
    block, x = make(block_type, bias=1e4)
    np.testing.assert_allclose(block(x), block.units[0](x), atol=1e-6)


@pytest.mark.parametrize("block_type", [ACTBlock, SACTBlock])
def test_single_unit(block_type):
    block, x = make(block_type, num_units=1)
    output, end_points = block(x, return_end_points=True)
    np.testing.assert_allclose(output, block.units[0](x), atol=1e-6)
    assert float(tf.reduce_max(end_points["ponder_cost"])) == 2.0


@pytest.mark.parametrize("block_type", [ACTBlock, SACTBlock])
def test_gradients_of_units_and_heads_match_differences(block_type):
    block, x = make(block_type, tau=0.1)
    x = x[:, :2, :3]

    @tf.function
    def run():
        output, end_points = block(x, training=True, return_end_points=True)
        loss = tf.reduce_sum(output**2) + 100 * block.losses[0]
        return loss, end_points["num_units"]

    with tf.GradientTape() as tape:
        value, num_units = run()
    variables = block.trainable_variables
    for k, (variable, gradient) in enumerate(
        zip(variables, tape.gradient(value, variables))
    ):
        direction = tf.random.stateless_normal(variable.shape, [k, 5])
        values = []
        for step in (1e-3, -2e-3):
            variable.assign_add(step * direction)
            value, same = run()
            np.testing.assert_array_equal(same, num_units)  # or there is no gradient
            values.append(float(value))
        variable.assign_add(1e-3 * direction)
        difference = (values[0] - values[1]) / 2e-3
        expected = float(tf.reduce_sum(gradient * direction))
        assert difference == pytest.approx(expected, rel=0.02, abs=0.1), variable.name


def test_no_flops_where_a_unit_does_not_count():
    x = images()
    units = [keras.layers.Conv2D(4, 3, padding="same") for _ in range(2)]
    _, end_points = SACTBlock(units)(x, return_end_points=True)
    assert "flops" not in end_points and "ponder_cost" in end_points


def test_fits_in_a_functional_model():
    inputs = keras.Input([None, None, 3])
    x = keras.layers.Conv2D(4, 3, padding="same")(inputs)
    x = SACTBlock([Unit() for _ in range(3)], tau=0.01)(x)
    outputs = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, outputs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    history = model.fit(
        np.random.default_rng(0).normal(size=[8, 9, 7, 3]).astype(np.float32),
        np.arange(8) % 2,
        batch_size=4,
        verbose=0,
    )
    # The ponder cost, at least 0.01 * 2, is in the loss.
    assert len(model.losses) == 1 and history.history["loss"][0] > 0.02


@pytest.mark.parametrize("block_type", [ACTBlock, SACTBlock])
def test_bad_arguments(block_type):
    with pytest.raises(ValueError, match="tau .* got -1"):
        block_type([Unit()], tau=-1)
    with pytest.raises(ValueError, match="epsilon .* got 1"):
        block_type([Unit()], epsilon=1)
    with pytest.raises(ValueError, match="at least one layer"):
        block_type([])
    with pytest.raises(ValueError, match="execution must be one of .* got 'fast'"):
        block_type([Unit()], execution="fast")
    widening = [Unit(), keras.layers.Conv2D(5, 3, padding="same")]
    with pytest.raises(ValueError, match="unit 2 .*must keep|must keep .*unit 2"):
        block_type(widening)(images())


def test_tiled_execution_needs_tiles():
    with pytest.raises(ValueError, match="tile_size must be an integer >= 2 .* got 1"):
        SACTBlock([Unit()], execution="tiled")
    with pytest.raises(ValueError, match="tile_size must be an integer >= 1 .* got 0"):
        SACTBlock([Unit()], tile_size=0)
    with pytest.raises(ValueError, match="execution must be one of .* got 'tiled'"):
        ACTBlock([Unit()], execution="tiled")


def padded(block_type):
    """A block of bottleneck units, and two images of different sizes in one batch."""

    def batch_norm(name):
        return BatchNorm(0.9, 1e-5, tf.nn.relu, name=name)

    units = [BottleneckUnit(8, 4, 2 if k == 0 else 1, batch_norm) for k in range(3)]
    block = block_type(units, **({"tau": 1.0} if block_type is not PlainBlock else {}))
    x = tf.random.stateless_normal([2, 9, 12, 6], [3, 4])
    block(x)
    if hasattr(block, "heads"):
        randomise_heads(block, -1.0)
    sizes = [(7, 12), (9, 5)]
    valid = np.zeros([2, 9, 12], bool)
    for k, (height, width) in enumerate(sizes):
        valid[k, :height, :width] = True
    return block, x, sizes, tf.constant(valid)


@pytest.mark.parametrize("block_type", [PlainBlock, ACTBlock, SACTBlock])
def test_images_of_several_sizes_in_one_batch(block_type):
    block, x, sizes, valid = padded(block_type)
    together, end_points = block(x, valid=valid, return_end_points=True)
    losses = [float(loss) for loss in block.losses]
    alone = []
    for k, (height, width) in enumerate(sizes):
        image = x[k : k + 1, :height, :width]
        expected, own = block(image, return_end_points=True)
        rows, columns = expected.shape[1:3]
        np.testing.assert_allclose(together[k, :rows, :columns], expected[0], atol=1e-5)
        assert int(end_points["flops"][k]) == int(own["flops"][0])
        dense = block.dense_flops(x, valid)[k]
        assert int(dense) == int(block.dense_flops(image)[0])
        if block_type is PlainBlock:
            assert int(dense) == int(own["flops"][0])
        if block_type is SACTBlock:
            costs = end_points["ponder_cost"][k].numpy()
            np.testing.assert_allclose(
                costs[:rows, :columns], own["ponder_cost"][0], atol=1e-5
            )
            assert not costs[rows:].any() and not costs[:, columns:].any()
        alone.append([float(loss) for loss in block.losses])
    np.testing.assert_allclose(losses, np.mean(alone, 0), rtol=1e-5)


def test_where_padding_cannot_be_told_apart():
    block, x = make(SACTBlock)
    valid = tf.ones(x.shape[:3], tf.bool)
    with pytest.raises(ValueError, match="valid: unit .* does not take it"):
        block(x, valid=valid)
    block, x = make(SACTBlock, execution="perforated")
    with pytest.raises(ValueError, match="valid: needs execution='masked'"):
        block(x, valid=valid)
