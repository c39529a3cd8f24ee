"""Iterative residual networks: IterativeNet and IamNN."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import custom_ops
import sact_tf
from sact_tf import training
from sact_tf.halting.gates import IterativeGate
from sact_tf.networks.iterative_block import VARIANTS, IterativeBlock

BOTH = pytest.mark.parametrize("variant", VARIANTS)


def features(batch=3, side=8, channels=4):
    """What a stage gives to the next: at least 0; of images that differ."""
    x = tf.random.stateless_normal([batch, side, side, channels], [1, 2])
    means = tf.random.stateless_normal([batch, 1, 1, channels], [5, 6])
    return tf.nn.relu(x + 2 * means)


def images(batch=3, side=16):
    x = tf.random.stateless_normal([batch, side, side, 3], [3, 4])
    return x * tf.random.stateless_uniform([batch, 1, 1, 3], [5, 6], 0.1, 4.0)


def block(variant="iterative", iterations=4, lively=True, **options):
    """A block, whose gate (lively) tells images apart."""
    made = IterativeBlock(4, iterations, 1, variant, **options)
    made(features())
    if lively:
        enliven(made)
    return made


def enliven(block, bias=-0.5):
    """Gives a block weights with which it halts images at different iterations."""
    rng = np.random.default_rng(3)
    for norm in block.units[0].conv3_bn:
        norm.gamma.assign(tf.fill(norm.gamma.shape, 0.3))
    for head in block.heads[:1]:
        for layer in (*head.hidden, head.score):
            values = rng.normal(size=layer.kernel.shape)
            layer.kernel.assign(1.5 * values / np.sqrt(values.size / layer.filters))
        head.score.bias.assign([bias])


def impose(block, scores):
    """Has the gate say these scores, the same of all images, in turn."""
    scores = iter(scores)

    def call(x, *args, **kwargs):
        return tf.fill([tf.shape(x)[0]], next(scores))

    block.heads[0].call = call


def tiny(variant="iterative", limits=(1, 3, 2, 1), **options):
    options = {"stem": "cifar", "num_classes": 3, "base_channels": 4, **options}
    return sact_tf.iterative_net(variant, limits, **options)


def varied(network, bias):
    """Gives a network's blocks such weights."""
    for one in network.blocks:
        enliven(one, bias)
    return network


@BOTH
def test_a_unit_that_adds_nothing_leaves_the_input(variant):
    """Section 3.8, number 1: whatever the gate says."""
    one = block(variant)
    for norm in one.units[0].conv3_bn:
        norm.gamma.assign(tf.zeros_like(norm.gamma))
    np.testing.assert_allclose(one(features()), features(), atol=1e-6)


@BOTH
def test_a_closed_gate_is_a_stage_of_tied_units(variant):
    """Number 2: the output is s_L, that of units one after the other."""
    one = block(variant)
    impose(one, [0.0] * 3)
    x = state = features()
    for k in range(4):
        state = one.units[0](state, step=k, inputs=x)
    expected = tf.nn.relu(state + x if variant == "iamnn" else state)
    output, end_points = one(x, return_end_points=True)
    np.testing.assert_allclose(output, expected, atol=1e-6)
    np.testing.assert_array_equal(end_points["num_units"], [4] * 3)


@BOTH
def test_an_open_gate_runs_one_iteration(variant):
    one = block(variant)
    impose(one, [1.0] * 3)
    x = features()
    first = one.units[0](x, step=0, inputs=x)
    output, end_points = one(x, return_end_points=True)
    expected = tf.nn.relu(first + x if variant == "iamnn" else first)
    np.testing.assert_allclose(output, expected, atol=1e-6)
    np.testing.assert_array_equal(end_points["flops"], one.dense_flops(x, None, 1))
    macs = one.dense_flops(x, None, 1) // 2 + one.heads[0].macs()
    np.testing.assert_array_equal(end_points["macs"], macs)


@BOTH
def test_gradients_of_iterations_add_up(variant):
    """Number 3: the shared kernel's is the sum of those of untied copies."""
    one = block(variant, iterations=3)
    unit, x = one.units[0], features()
    copies = [type(unit).from_config(unit.get_config()) for _ in range(3)]
    for copy in copies:
        copy.build(x.shape)
        copy.set_weights(unit.get_weights())
    impose(one, [0.0] * 2)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(one(x, training=True)))
    shared = tape.gradient(loss, unit.conv2.kernel)
    kernels = [copy.conv2.kernel for copy in copies]
    with tf.GradientTape() as tape:
        state = x
        for k, copy in enumerate(copies):
            state = copy(state, step=k, inputs=x, training=True)
        state = tf.nn.relu(state + x if variant == "iamnn" else state)
        loss = tf.reduce_sum(tf.square(state))
    untied = tape.gradient(loss, kernels)
    np.testing.assert_allclose(shared, tf.add_n(untied), rtol=1e-3, atol=1e-4)


CIFAR = {"stem": "cifar", "num_classes": 10}
LIMITS = (3, 8, 36, 3)


def published(side, millions, least=None, most=None, is_long=True, **options):
    marks = [pytest.mark.long] if is_long else []
    return pytest.param(options, side, millions, least, most, marks=marks)


@pytest.mark.parametrize(
    "options, side, millions, least, most",
    [
        published(32, 4.13, 0.19, 2.32, is_long=False, **CIFAR),
        published(32, 9.20, 0.40, 3.69, expansion=4, **CIFAR),
        published(32, None, None, 0.65, depthwise=True, **CIFAR),
        published(32, None, None, 1.55, depthwise=True, expansion=3, **CIFAR),
        published(224, 6.50, expansion=2),
        published(224, 11.24, 1.35, 11.40, expansion=4),
        published(32, 4.56, variant="iamnn", **CIFAR),
        published(32, 4.60, variant="iamnn", stem="cifar", num_classes=100),
        published(224, 5.07, 0.75, 7.84, variant="iamnn"),
        published(224, 4.87, variant="iamnn", max_iterations=(1, 1, 1, 1)),
    ],
)
def test_size_and_cost_are_as_published(options, side, millions, least, most):
    """Numbers 4 and 7: kernels and biases, and GMAC of convolutions.

    Limits change neither the former nor what an iteration takes.
    """
    with tf.Graph().as_default():  # where nothing is initialized
        network = sact_tf.iterative_net(**{"max_iterations": [2] * 4, **options})
        names = [v for v in network.trainable_variables if "_bn" not in v.name]
        x = tf.zeros([1, side, side, 3])
        one = network.dense_flops(x, 1)
        more = []
        for spec, block, limit in zip(network.block_specs, network.blocks, LIMITS):
            x = tf.zeros([1, side // spec.stride, side // spec.stride, 1])
            more.append((limit - 1) * block.units[0].flops(x))
        with tf.compat.v1.Session() as session:
            one, more = session.run([one[0], sum(more)[0]])
    count = sum(int(np.prod(variable.shape)) for variable in names)
    if millions is not None:
        assert count == pytest.approx(millions * 1e6, rel=0.01)
    if least is not None:
        assert one / 2e9 == pytest.approx(least, rel=0.03)
    if most is not None:
        assert (one + more) / 2e9 == pytest.approx(most, rel=0.01)


def count(network):
    """Kernels and biases."""
    names = [v for v in network.trainable_variables if "bn" not in v.name]
    names = [v for v in names if "preact" not in v.name and "postnorm" not in v.name]
    return sum(int(np.prod(variable.shape)) for variable in names)


def test_fewer_parameters_than_the_ordinary_network_as_deep():
    """The bar: under 25 % of them, with five iterations a stage."""
    with tf.Graph().as_default():
        options = dict(num_classes=10, base_channels=16)
        iterative = tiny(limits=(5, 5, 5, 5), **options)
        ordinary = sact_tf.cifar_bottleneck_resnet("5", **options)
        assert ordinary.options.model == "5_5_5_5"
        assert count(iterative) == 283070 and count(ordinary) == 1990218


@pytest.mark.long
def test_the_network_that_papers_compare_with():
    """ResNet-152 on CIFAR: 58 million parameters, 3.7 GMAC."""
    with tf.Graph().as_default():
        network = sact_tf.cifar_bottleneck_resnet()
        assert count(network) == pytest.approx(58.16e6, rel=0.01)
        with tf.compat.v1.Session() as session:
            flops = session.run(network.dense_flops(tf.zeros([1, 32, 32, 3])))[0]
    assert flops / 2 == pytest.approx(3.722e9, rel=0.01)


@BOTH
def test_iterations_have_statistics_of_their_own(variant):
    """Number 5."""
    unit = block(variant).units[0]
    before = [norm.moving_mean.numpy() for norm in unit.conv1_bn]
    unit(features(), training=True, step=2, inputs=features())
    after = [norm.moving_mean.numpy() for norm in unit.conv1_bn]
    changed = [np.abs(a - b).max() > 0 for a, b in zip(after, before)]
    assert changed == [False, False, True, False]


@BOTH
def test_weights_add_up_to_1(variant):
    """Number 6."""
    one = block(variant)
    _, end_points = one(features(20), return_end_points=True)
    weights = end_points["halting_distribution"].numpy()
    np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-5)
    cost = end_points["ponder_cost"].numpy()
    assert (cost >= 1).all() and (cost <= 5).all()
    assert len(np.unique(end_points["num_units"])) > 1
    np.testing.assert_allclose(one.losses[-1], 0.001 * cost.mean(), rtol=1e-5)


def test_ponder_cost_of_the_papers_example():
    """SACT, figure 3: N = 4, R = 0.6."""
    one = block(iterations=5)
    impose(one, [0.1, 0.1, 0.2, 0.8])
    _, end_points = one(features(), return_end_points=True)
    np.testing.assert_array_equal(end_points["num_units"], [4] * 3)
    np.testing.assert_allclose(end_points["ponder_cost"], [4.6] * 3, rtol=1e-6)


def mismatch(shares):
    """How far evaluation is from training, once moving averages have converged."""
    unit, x = block(iterations=3, lively=False).units[0], features()
    for norms in (unit.conv1_bn, unit.conv2_bn, unit.conv3_bn):
        if shares:
            norms[1:] = [norms[0]] * 2
        for norm in norms:
            norm.decay = 0.7

    def run(training):
        state = x
        for k in range(3):
            state = unit(state, step=k, inputs=x, training=training)
        return state

    for _ in range(20):
        trained = run(training=True)
    return float(tf.norm(run(training=False) - trained) / tf.norm(trained))


def test_shared_batch_normalization_does_not_fit_any_iteration():
    """Number 8: statistics of all iterations together are those of none."""
    alone, shared = mismatch(shares=False), mismatch(shares=True)
    assert alone < 0.01 and shared > 5 * alone, (alone, shared)


def test_gates_start_closed_even_in_the_longest_stage():
    gate = IterativeGate()
    score = float(gate(features(1), features(1) - 5)[0])
    assert 35 * score < 0.99
    np.testing.assert_allclose(score, 1 / (1 + np.exp(4.0)), rtol=1e-5)


def test_a_stage_may_have_two_blocks():
    network = tiny(double=True, depthwise=True, expansion=2, base_channels=2)
    logits, end_points = network.with_end_points(images(2, 8), training=False)
    names = [f"block_{stage}_{part}" for stage in range(1, 5) for part in (1, 2)]
    assert end_points["block_scopes"] == names and logits.shape == (2, 3)
    assert [spec.channels for spec in network.block_specs[::2]] == [4, 8, 16, 32]
    assert [spec.stride for spec in network.block_specs[::2]] == [1, 2, 4, 8]
    for name, limit in zip(names[::2], (1, 3, 2, 1)):
        for part in (name, f"{name[:-1]}2"):
            np.testing.assert_array_equal(end_points[f"{part}/num_units"], limit)


@pytest.fixture(scope="module", params=VARIANTS)
def network(request):
    """One whose gates' bias is such that images differ."""
    keras.utils.set_random_seed(1)
    network = tiny(request.param)
    for bias in np.arange(-2.0, 12.0, 0.5):
        varied(network, bias)
        _, end_points = network.with_end_points(images(6), training=False)
        if len(np.unique(end_points["macs"])) > 1:
            break
    return network


def test_end_points(network):
    _, end_points = network.with_end_points(images(6), training=False)
    names = network.block_scopes
    assert names == ["block_1", "block_2", "block_3", "block_4"]
    total = int(network.dense_flops(images(1))[0])
    classifier = int(np.prod(network.classifier.kernel.shape))
    gated = [one for one in network.blocks if one.heads]
    gates = sum(len(one.heads) * one.heads[0].macs() for one in gated)
    macs = end_points["macs"].numpy()
    assert macs.dtype == end_points["flops"].dtype == np.int64
    least = int(network.dense_flops(images(1), 1)[0]) // 2 + classifier
    assert (macs >= least).all() and (macs <= total // 2 + classifier + gates).all()
    assert len(np.unique(macs)) > 1
    scored = 0
    for one in gated:
        units = end_points[f"{one.name}/num_units"].numpy()
        scored += np.minimum(units, len(one.heads)) * one.heads[0].macs()
    expected = end_points["flops"].numpy() // 2 + scored + classifier
    np.testing.assert_array_equal(macs, expected)


def test_images_that_have_halted_leave_the_batch(network):
    gathered = network.with_execution("perforated")
    x = images(6)
    logits, expected = network.with_end_points(x, training=False)
    signature = [tf.TensorSpec([None, None, None, 3])]

    @tf.function(input_signature=signature, autograph=False)
    def run(x):
        return gathered.with_end_points(x, training=False)

    actual, end_points = run(x)
    np.testing.assert_allclose(actual, logits, rtol=1e-4, atol=1e-4)
    for key in expected:
        if key.rpartition("/")[2] in ("flops", "macs", "num_units", "ponder_cost"):
            np.testing.assert_allclose(end_points[key], expected[key], rtol=1e-5)
    assert run(x[:0])[0].shape == (0, 3)
    for k in range(2):
        alone = run(x[k : k + 1])[0][0]
        np.testing.assert_allclose(alone, logits[k], rtol=1e-4, atol=1e-4)


def test_units_see_only_images_that_run(monkeypatch):
    one = block(execution="perforated")
    sizes, run = [], one.units[0].run_gathered

    def count(x, *args):
        sizes.append(len(x))
        return run(x, *args)

    monkeypatch.setattr(one.units[0], "run_gathered", count)
    _, end_points = one(features(20), training=False, return_end_points=True)
    units = end_points["num_units"].numpy()
    expected = [(units > k).sum() for k in range(4)]
    assert sizes == [count for count in expected if count]
    assert len(set(sizes)) > 1


@pytest.mark.parametrize("implementation", ["auto", "tensorflow"])
@BOTH
def test_native_kernels_run_the_same_unit(variant, implementation, monkeypatch):
    monkeypatch.setattr(sact_tf.units.iterative, "_NATIVE_CHANNELS", 1)
    one = block(variant, iterations=2)
    unit, x = one.units[0], features()
    inputs = features() + 1
    for step in range(2):
        state = 0 * x if unit.starts_at_zero and not step else x
        with custom_ops.default_implementation(implementation):
            norms = [norm[step] for norm in unit.stacked_norms()]
            actual = unit.run_gathered(state, norms, inputs)
        expected = unit(x, training=False, step=step, inputs=inputs)
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_other_sizes_share_a_batch(network):
    """An image in a padded batch gets what it gets alone."""
    x = images(2)
    sizes = tf.constant([[16, 16], [10, 13]])
    output, _ = network.run_blocks(x, training=False, sizes=sizes)
    alone, _ = network.run_blocks(x[1:, :10, :13], training=False)
    height, width = alone.shape[1:3]
    inside = output[1:, :height, :width]
    np.testing.assert_allclose(inside, alone, rtol=1e-4, atol=1e-4)


def test_networks_are_saved(network, tmp_path):
    path = str(tmp_path / "network.keras")
    network.save(path)
    loaded = keras.models.load_model(path)
    np.testing.assert_array_equal(loaded(images()), network(images()))
    assert loaded.get_config() == network.get_config()


@pytest.mark.long
@pytest.mark.parametrize("options", [{}, {"depthwise": True, "expansion": 2}])
def test_training_goes_on_from_a_checkpoint(options, tiny_examples, tmp_path):
    log_dir = str(tmp_path)
    made = tiny(limits=(1, 2, 2, 1), tau=0.01, **options)
    before = made.get_weights()
    last = training.train(made, tiny_examples, log_dir, 1, 8, verbose=0)
    again = tiny(limits=(1, 2, 2, 1), tau=0.01, **options)
    sact_tf.load_slim_checkpoint(again, last)
    np.testing.assert_array_equal(again(images()), made(images()))
    last = training.train(again, tiny_examples, log_dir, 2, 8, verbose=0)
    assert sact_tf.checkpoint_step(last) == 2
    for a, b, variable in zip(before, made.get_weights(), made.variables):
        if "kernel" in variable.name:
            assert np.abs(a - b).max() > 0, variable.name


@pytest.mark.parametrize(
    "others",
    [
        {"limits": (1, 2, 2, 1)},
        {"expansion": 2},
        pytest.param({"limits": (1, 1, 1, 1)}, marks=pytest.mark.long),
        pytest.param({"double": True}, marks=pytest.mark.long),
        pytest.param({"variant": "iamnn"}, marks=pytest.mark.long),
    ],
)
def test_checkpoints_of_other_limits_are_refused(others, tmp_path):
    path = str(tmp_path / "model.ckpt-0")
    saved = tiny(limits=(1, 2, 1, 1), base_channels=1)
    sact_tf.save_slim_checkpoint(saved, path)
    network = tiny(**{"limits": (1, 2, 1, 1), "base_channels": 1, **others})
    before = network.blocks[1].get_weights()
    with pytest.raises(ValueError, match="holds weights of a network with") as error:
        sact_tf.load_slim_checkpoint(network, path)
    assert "max_iterations=1,2,1,1, expansion=1" in str(error.value)
    assert "\n" not in str(error.value)
    for a, b in zip(before, network.blocks[1].get_weights()):
        np.testing.assert_array_equal(a, b)


def test_checkpoints_are_pretrained_weights(tmp_path):
    """For a detector, say: gates are taken, and the classifier is not."""
    options = dict(limits=(1, 2, 1, 1), base_channels=1)
    saved, network = tiny(**options), tiny(num_classes=2, **options)
    path = sact_tf.save_slim_checkpoint(saved, str(tmp_path / "model.ckpt-0"))
    loaded = sact_tf.load_pretrained(
        network, path, fresh_halting=None, without_classifier=True
    )
    assert loaded.variables and not any("logits" in n for n in loaded.variables)
    for a, b in zip(saved.blocks, network.blocks):
        for one, other in zip(a.get_weights(), b.get_weights()):
            np.testing.assert_array_equal(one, other)


@pytest.mark.long
@BOTH
def test_exports_answer_the_same(variant, tmp_path):
    network = varied(tiny(variant), 1.0)
    logits, end_points = network.with_end_points(images(), training=False)
    path = network.export_saved_model(str(tmp_path / "m"), execution="perforated")
    served = tf.saved_model.load(path).signatures["serving_default"](images())
    np.testing.assert_allclose(served["logits"], logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(served["macs"], end_points["macs"])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"limits": (3, 8, 36)}, "max_iterations must be 4 integers from 1 to 1000"),
        ({"limits": (3, 8, 0, 3)}, "max_iterations must be 4 integers"),
        ({"limits": (3, 8, 2.5, 3)}, "max_iterations must be 4 integers"),
        ({"limits": "3,8,x,3"}, "max_iterations must be 4 .* got '3,8,x,3'"),
        ({"limits": 3}, "max_iterations must be 4 integers"),
        ({"expansion": 5}, "expansion must be an integer from 1 to 4; got 5"),
        ({"expansion": 0}, "expansion must be an integer from 1 to 4; got 0"),
        ({"depthwise": 1}, "depthwise must be True or False; got 1"),
        ({"variant": "act"}, "variant must be one of iterative, iamnn; got 'act'"),
        ({"stem": "7x7"}, "stem must be one of imagenet, cifar; got '7x7'"),
        ({"execution": "tiled"}, "execution must be one of masked, perforated"),
        ({"tau": -1.0}, "tau must be"),
        ({"tile_size": 2}, "tile_size, group_grid must be 1 and None"),
        ({"temperature": 2}, "iterative networks halt by CumulativeHalting"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        tiny(**options)


def test_images_need_positions():
    network = tiny(limits=(1, 1, 1, 1), base_channels=1)
    assert network(images(1, side=1)).shape == (1, 3)
    with pytest.raises(ValueError, match="images must have a pixel or more.*0 x 0"):
        network(images(1, side=0))
