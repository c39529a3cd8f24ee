"""PACT: its three modes, what they share, and where they agree with other rules."""

import math

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import sact_tf
from sact_tf import AdaptiveBlock
from sact_tf.halting import CumulativeHalting
from sact_tf.halting.domain import DOMAINS, GroupDomain, get_domain, uniform
from sact_tf.halting.probabilistic import MODES, ProbabilisticHalting

HARD = ("discrete", "thresholded")


def run(logits, mode, seed=(1, 2), temperature=2 / 3, **options):
    """Runs the rule in training; `logits` are those of all units but the last.

    Returns the weights [n, ...] and the final state.
    """
    rule = ProbabilisticHalting(mode, temperature, **options)
    logits = [tf.convert_to_tensor(score, tf.float32) for score in logits]
    state, weights = rule.initial(logits[0].shape), []
    for k, score in enumerate([*logits, None]):
        weight, state = rule.step(
            state, score, score is None, training=True, seed=[seed[0], seed[1] + k]
        )
        weights.append(weight.numpy())
    return np.stack(weights), state


def lively_logits(count=4, shape=(50,), scale=2.0):
    return scale * tf.random.stateless_normal([count, *shape], [3, 4])


def steps_of(weights):
    return weights.argmax(0) + 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_weights_are_a_distribution(mode, scale):
    weights, state = run(lively_logits(scale=scale), mode)
    assert np.isfinite(weights).all() and weights.min() >= 0
    np.testing.assert_allclose(weights.sum(0), 1, atol=1e-6)
    survivals = weights[::-1].cumsum(0)  # sum_{k>=l} w_k = s_l
    steps = np.arange(1, len(weights) + 1)[:, np.newaxis]
    np.testing.assert_allclose((steps * weights).sum(0), survivals.sum(0), rtol=1e-5)
    assert not state.active.numpy().any()
    if mode in HARD:
        assert set(np.unique(weights)) <= {0.0, 1.0}
        np.testing.assert_array_equal(state.num_units, steps_of(weights))
        np.testing.assert_array_equal(state.cost, steps_of(weights))


@pytest.mark.parametrize("temperature", [0.01, 2 / 3, 10.0])
def test_relaxed_samples_are_coupled_to_discrete_ones(temperature):
    """With the same noise, xi > 1/2 in relaxed mode is xi = 1 in discrete mode."""
    logits = lively_logits(shape=(2000,))
    relaxed, _ = run(logits, "relaxed", temperature=temperature)
    discrete, _ = run(logits, "discrete", temperature=3.0)
    left = 1 - np.concatenate([np.zeros([1, 2000]), relaxed[:-1].cumsum(0)])
    hardened = relaxed / np.maximum(left, 1e-30) > 0.5
    is_known = left.min(0) > 1e-4  # elsewhere rounding decides
    assert is_known.mean() > 0.3 or temperature == 0.01
    first = hardened.argmax(0) + 1
    near = (np.abs(relaxed / np.maximum(left, 1e-30) - 0.5) < 1e-4).any(0)
    kept = ~near & (np.take_along_axis(left, first[np.newaxis] - 1, 0)[0] > 1e-4)
    assert kept.mean() > 0.9
    np.testing.assert_array_equal(first[kept], steps_of(discrete)[kept])
    if temperature == 0.01:
        assert np.abs(relaxed - discrete).mean() < 0.005


@pytest.mark.parametrize(
    "bias, length, expected", [(-3, 5, 4.5477), (-3, 18, 12.2920), (0, 5, 1.9375)]
)
def test_expected_units(bias, length, expected):
    _, state = run(np.full([length - 1, 1], bias), "relaxed")
    np.testing.assert_allclose(state.cost, [expected], atol=6e-5)
    h = 1 / (1 + math.exp(-bias))
    np.testing.assert_allclose(state.cost, [(1 - (1 - h) ** length) / h], rtol=1e-6)


@pytest.mark.parametrize(
    "mode, temperature, units, weights",
    [
        ("discrete", 1.0, 2.773, (0.300, 0.210, 0.147, 0.103, 0.240)),
        ("relaxed", 0.1, 2.761, (0.302, 0.211, 0.147, 0.103, 0.237)),
        ("relaxed", 0.5, 2.642, (0.326, 0.220, 0.148, 0.100, 0.207)),
        ("relaxed", 2 / 3, 2.579, (0.339, 0.224, 0.148, 0.098, 0.191)),
        ("relaxed", 1.0, 2.468, (0.363, 0.231, 0.147, 0.094, 0.165)),
        ("relaxed", 1e6, 1.9375, (0.5, 0.25, 0.125, 0.0625, 0.0625)),
    ],
)
def test_relaxation_is_biased_towards_stopping(mode, temperature, units, weights):
    """h = 0.3 in five steps; the figures come from 200,000 samples."""
    h, count = 0.3, 200_000
    logits = np.full([4, count], math.log(h / (1 - h)))
    sampled, _ = run(logits, mode, temperature=temperature)
    steps = np.arange(1, 6)
    each = steps @ sampled
    error = 4 * math.sqrt(2) * each.std() / math.sqrt(count) + 5e-4  # of both means
    assert abs(each.mean() - units) < error
    deviations = 4 * math.sqrt(2) * sampled.std(1) / math.sqrt(count) + 5e-4
    assert (np.abs(sampled.mean(1) - weights) < deviations).all()


def test_thresholded_is_not_the_likeliest():
    """Every score 0.45 makes one unit likeliest, and the threshold takes all five."""
    logits = np.full([4, 1], math.log(0.45 / 0.55))
    weights, state = run(logits, "thresholded")
    assert int(state.num_units[0]) == 5
    np.testing.assert_allclose(state.log_prob, [4 * math.log(0.55)], rtol=1e-6)
    assert 0.55**4 < 0.45


def test_noise_lies_strictly_between_0_and_1():
    noise = uniform([100_000], [1, 2])
    for extreme in (noise, tf.constant([2.0**-24, 1 - 2.0**-24])):
        assert np.isfinite(np.log(extreme) - np.log1p(-extreme)).all()
    assert abs(float(tf.reduce_mean(noise)) - 0.5) < 0.005


def test_log_prob_is_that_of_the_steps():
    logits = np.repeat([[-1.0], [0.0], [0.5], [-0.3]], 200, 1)
    h = 1 / (1 + np.exp(-logits[:, 0]))
    chance = np.append(h, 1) * np.append(1, np.cumprod(1 - h))
    _, state = run(logits, "discrete")
    z = state.num_units.numpy()
    np.testing.assert_allclose(np.exp(state.log_prob), chance[z - 1], rtol=1e-5)
    assert set(z) == {1, 2, 3, 4, 5}


# In blocks and networks.


def images(batch=2, side=16):
    return tf.random.stateless_normal([batch, side, side, 3], [1, 2])


class Gates(keras.layers.Layer):
    """Hands over what it was made with, whatever the features."""

    def __init__(self, values):
        super().__init__()
        self.values = tf.constant(values, tf.float32)

    def call(self, x, residual, inputs):
        return self.values


def gated_block(rule, gates, domain="position", logits=False, **options):
    """A block of five convolutions whose heads say what is given, [4, *S]."""
    gates = np.asarray(gates, np.float32)
    remaining = iter(60 * gates - 30 if logits else gates)
    units = [sact_tf.units.BasicUnit(3, 1, _norm, _norm, False) for _ in range(5)]
    return AdaptiveBlock(
        units, rule, domain, head=lambda *_, **__: Gates(next(remaining)), **options
    )


def _norm(name):
    return sact_tf.layers.BatchNorm(0.9, 1e-3, name=name)


@pytest.mark.parametrize("domain", ["image", "position"])
def test_certain_gates_make_all_rules_agree(domain):
    shape = [3] if domain == "image" else [3, 6, 6]
    gates = np.random.default_rng(0).integers(0, 2, [4, *shape])
    x = images(3, 6)
    block = gated_block(CumulativeHalting(), gates, domain)
    expected, end_points = block(x, return_end_points=True)
    units = end_points["num_units"].numpy()
    assert set(np.unique(units)) == (
        {1, 2, 3, 4, 5} if domain == "position" else set(np.unique(units))
    )
    for mode in MODES:
        rule = ProbabilisticHalting(test_mode=mode, temperature=0.1)
        other = gated_block(rule, gates, domain, logits=True)
        other(x)
        other.set_weights(block.get_weights())
        output, results = other(x, return_end_points=True, seed=[1, 2])
        np.testing.assert_allclose(output, expected, atol=1e-4)
        np.testing.assert_allclose(results["ponder_cost"], units, atol=1e-5)
        if mode in HARD:
            np.testing.assert_array_equal(results["num_units"], units)
            np.testing.assert_allclose(results["log_prob"], 0, atol=1e-5)


@pytest.fixture(scope="module")
def built(lively):
    """A PACT network of random weights in which positions stop at all units."""
    keras.utils.set_random_seed(3)
    model = lively(sact_tf.cifar_resnet("3", "pact", base_channels=4, tau=0.1))
    return model, model.get_weights()


@pytest.fixture
def network(built):
    """The same, which a test may change by `vary`."""
    model, weights = built
    yield model
    model.set_weights(weights)
    vary(model)


def vary(
    model, execution="masked", group_grid=None, tile_size=1, bias=None, **rule_options
):
    """Gives a network other options without building another, which takes longer.

    Args:
        bias: What all heads say everywhere, if anything.
    """
    for block in model.blocks:
        block.rule = ProbabilisticHalting(**rule_options)
        block.execution, block.tile_size = execution, tile_size
        block.domain = get_domain("position", group_grid)
    for variable in model.variables if bias is not None else []:
        if "halting_proba" in variable.name and "kernel" in variable.name:
            variable.assign(tf.zeros_like(variable))
        elif "halting_proba" in variable.name and "bias" in variable.name:
            variable.assign(tf.fill(variable.shape, bias))
    return model


def all_flops(model):
    """What all units and heads take on an image of `images`."""
    vary(model, test_mode="relaxed")
    return int(model.with_end_points(images(1), False)[1]["flops"][0])


@pytest.fixture(scope="module")
def plain(built):
    """The network without heads, and what it says."""
    model = sact_tf.cifar_resnet("3", base_channels=4)
    of_plain = sact_tf.slim_variables(model)
    for name, variable in sact_tf.slim_variables(built[0]).items():
        if name in of_plain:
            of_plain[name].assign(variable)
    return model(images(), training=False).numpy(), float(tf.add_n(model.losses))


@pytest.mark.parametrize("mode", MODES)
def test_certain_heads_give_the_plain_network_or_one_unit(network, plain, mode):
    expected, losses = plain
    scale = np.abs(expected).max()
    vary(network, bias=-30.0, test_mode=mode)
    logits, end_points = network.with_end_points(images(), training=False)
    np.testing.assert_allclose(logits, expected, atol=1e-4 * scale)
    np.testing.assert_allclose(end_points["block_2/ponder_cost"], 3, atol=1e-5)
    # Heads without weights have no decay; three blocks of three units cost 0.9.
    np.testing.assert_allclose(tf.add_n(network.losses), losses + 0.9, rtol=1e-5)
    vary(network, bias=30.0, test_mode=mode)
    logits, end_points = network.with_end_points(images(), training=False)
    np.testing.assert_allclose(end_points["block_2/ponder_cost"], 1, atol=1e-5)
    weights = end_points["block_1/halting_distribution"].numpy()
    np.testing.assert_allclose(weights[..., 0], 1, atol=1e-5)
    assert np.abs(logits - expected).max() > 0.1 * scale


@pytest.mark.parametrize(
    "mode, execution, options",
    [
        ("discrete", "perforated", {}),
        ("thresholded", "perforated", {"group_grid": 2}),
        ("discrete", "tiled", {"tile_size": 3}),
        pytest.param("thresholded", "tiled", {"tile_size": 3}, marks=pytest.mark.long),
    ],
)
def test_executions_agree_in_the_hard_modes(network, mode, execution, options):
    results = []
    for way in ("masked", execution):
        vary(network, way, test_mode=mode, **options)
        results.append(network.with_end_points(images(), training=False, seed=[7, 8]))
    (logits, expected), (others, end_points) = results
    np.testing.assert_allclose(others, logits, atol=1e-4)
    for key in ("flops", "block_1/num_units", "block_1/ponder_cost"):
        np.testing.assert_array_equal(end_points[key], expected[key])
    np.testing.assert_allclose(
        end_points["block_3/log_prob"], expected["block_3/log_prob"], rtol=1e-4
    )
    assert int(end_points["flops"][0]) < all_flops(network)


def test_relaxed_mode_runs_all_units_whatever_the_execution(network):
    results = []
    for execution in ("masked", "perforated"):
        vary(network, execution, test_mode="relaxed")
        results.append(network.with_end_points(images(), False, seed=[1, 2]))
    (logits, _), (others, end_points) = results
    np.testing.assert_array_equal(others, logits)
    np.testing.assert_array_equal(end_points["block_1/num_units"], 3)
    flops = end_points["flops"].numpy()
    vary(network, bias=-30.0, test_mode="thresholded")
    _, hard = network.with_end_points(images(), False)
    np.testing.assert_array_equal(flops, hard["flops"])
    assert "expected_flops" not in hard
    assert (end_points["expected_flops"].numpy() < 0.9 * flops).all()


def test_expected_flops_are_units_by_their_survival(network):
    vary(network, bias=0.0, test_mode="relaxed")
    _, end_points = network.with_end_points(images(1), False)
    total = int(end_points["flops"][0])
    for b, positions in ((1, 256), (2, 64), (3, 16)):
        channels = 4 * 2 ** (b - 1)
        unit = 2 * 2 * 9 * channels**2 * positions
        first = unit if b == 1 else unit * 3 / 4
        head = 2 * 9 * channels * positions + 2 * channels
        expected = first + head + 0.5 * (unit + head) + 0.25 * unit
        np.testing.assert_allclose(
            end_points[f"block_{b}/expected_flops"], [expected], rtol=1e-6
        )
        total += expected - (first + 2 * unit + 2 * head)
    np.testing.assert_allclose(end_points["expected_flops"], [total], rtol=1e-6)


@pytest.mark.parametrize("mask_state", [True, False])
def test_the_state_of_the_relaxed_model(mask_state):
    """Unmasked, the weights alone attenuate: x0 + sum_l s_l f_l; masked, twice."""
    rule = ProbabilisticHalting(test_mode="relaxed", mask_state=mask_state)
    block = gated_block(rule, np.full([4, 1, 5, 5], 0.5), logits=True)
    x = images(1, 5)
    output, end_points = block(x, return_end_points=True, seed=[1, 2])
    weights = end_points["halting_distribution"].numpy()[..., np.newaxis, :]
    survivals = weights[..., ::-1].cumsum(-1)[..., ::-1]
    state, expected, states = x, x, []
    for k, unit in enumerate(block.units):
        residual = unit(state) - state
        expected += survivals[..., k] * residual
        state = state + (survivals[..., k] if mask_state else 1.0) * residual
        states.append(state)
    weighted = sum(weights[..., k] * states[k] for k in range(5))
    np.testing.assert_allclose(output, weighted, atol=1e-5)
    is_once = np.allclose(output, expected, atol=1e-4)
    assert is_once is not mask_state


def test_mask_state_matters_in_relaxed_mode_alone():
    """A hard survival is its own square."""
    gates, differences = np.random.default_rng(0).normal(0.5, 0.02, [4, 1, 5, 5]), {}
    for mode in ("relaxed", *HARD):
        outputs = []
        for mask_state in (True, False):
            keras.utils.set_random_seed(1)  # the same units
            rule = ProbabilisticHalting(test_mode=mode, mask_state=mask_state)
            block = gated_block(rule, gates, logits=True)
            outputs.append(block(images(1, 5), seed=[1, 2]))
        differences[mode] = float(tf.reduce_max(tf.abs(outputs[0] - outputs[1])))
    assert differences["relaxed"] > 1e-3
    assert all(differences[mode] == 0 for mode in HARD)


@pytest.mark.parametrize("mode", HARD)
def test_one_latent_per_block_is_an_image_that_halts(network, mode):
    vary(network, group_grid=1, test_mode=mode)
    _, end_points = network.with_end_points(images(4), False, seed=[5, 6])
    units = end_points["block_2/num_units"].numpy()
    assert (units == units[:, :1, :1]).all()
    scores = [end_points[f"block_2/unit_{k}/halting_proba"] for k in (1, 2)]
    gates = iter([score[:, 0, 0, 0] for score in scores])
    block = network.blocks[1]
    image = AdaptiveBlock(
        block.units, block.rule, "image", head=lambda *_, **__: Gates(next(gates))
    )
    seed = tf.random.experimental.stateless_fold_in([5, 6], 1)
    output, results = image(end_points["block_1"], return_end_points=True, seed=seed)
    np.testing.assert_allclose(output, end_points["block_2"], atol=1e-5)
    np.testing.assert_array_equal(results["num_units"], units[:, 0, 0])
    np.testing.assert_allclose(
        results["log_prob"], end_points["block_2/log_prob"], rtol=1e-5
    )


def test_without_local_filters_positions_stop_together(network):
    vary(network, bias=0.0)
    for variable in network.variables:
        if "global_conv" in variable.name and "kernel" in variable.name:
            variable.assign(tf.random.stateless_normal(variable.shape, [1, 2]))
    scales = tf.reshape([0.2, 1.0, 2.0, 6.0], [4, 1, 1, 1])
    _, end_points = network.with_end_points(scales * images(4), training=False)
    seen = set()
    for b in (1, 2, 3):
        units = end_points[f"block_{b}/num_units"].numpy()
        assert (units == units[:, :1, :1]).all()
        seen |= set(units[:, 0, 0])
    assert len(seen) > 1


@pytest.mark.parametrize("options", [{"group_grid": 4}, {"tile_size": 4}])
def test_what_halts_together_shares_its_noise(network, options):
    vary(network, test_mode="discrete", **options)
    _, end_points = network.with_end_points(images(3), False, seed=[2, 3])
    units = end_points["block_1/num_units"].numpy()
    parts = units.reshape(3, 4, 4, 4, 4)
    assert (parts == parts[:, :, :1, :, :1]).all() and len(np.unique(units)) == 3
    # One latent variable of each: probabilities multiply over 16, not 256.
    vary(network, test_mode="discrete")
    _, others = network.with_end_points(images(3), False, seed=[2, 3])
    ratio = end_points["block_1/log_prob"] / others["block_1/log_prob"]
    assert (np.abs(ratio - 1 / 16) < 0.03).all()


def test_groups_of_any_size_share_the_mean_of_their_logits():
    scores = tf.random.stateless_normal([2, 6, 9], [1, 2])
    shared = GroupDomain(3).share(scores, 1).numpy()
    parts = scores.numpy().reshape(2, 3, 2, 3, 3)
    np.testing.assert_allclose(
        shared.reshape(2, 3, 2, 3, 3),
        np.broadcast_to(parts.mean((2, 4), keepdims=True), parts.shape),
        rtol=1e-5,
    )
    with pytest.raises(ValueError, match="group_grid must divide .* got 4, .* 6 x 9"):
        GroupDomain(4).share(scores, 1)
    valid = tf.range(9)[tf.newaxis, tf.newaxis] < tf.constant([[[5]], [[9]]])
    valid = tf.broadcast_to(valid, [2, 6, 9])
    padded = tf.where(valid, scores, 1e6)
    means = GroupDomain(1).share(padded, 1, valid)[:, 0, 0]
    np.testing.assert_allclose(means[0], np.mean(scores[0, :, :5]), rtol=1e-5)
    with pytest.raises(ValueError, match="group_grid must be 1 for images of several"):
        GroupDomain(3).share(padded, 1, valid)

    @tf.function(input_signature=[tf.TensorSpec([None, None, None])])
    def share(scores):
        return GroupDomain(3).share(scores, 1)

    np.testing.assert_allclose(share(scores), shared)
    with pytest.raises(tf.errors.InvalidArgumentError, match="group_grid must divide"):
        share(scores[:, :5])


def test_seeds_decide_all(network):
    vary(network, test_mode="discrete")
    runs = [
        network.with_end_points(images(), False, seed=seed)[1]["block_2/num_units"]
        for seed in ([1, 2], [1, 2], [1, 3])
    ]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert (runs[0] != runs[2]).numpy().any()
    drawn = [network.with_end_points(images(), False)[1]["flops"] for _ in range(2)]
    assert (drawn[0] != drawn[1]).numpy().any()
    vary(network)
    sure = [network(images(), training=False) for _ in range(2)]
    np.testing.assert_array_equal(*sure)


def test_every_mode_has_the_same_weights(tmp_path):
    options = dict(model="2_1_1", base_channels=2)
    network = sact_tf.cifar_resnet(
        model_type="pact", test_mode="relaxed", group_grid=4, **options
    )
    path = str(tmp_path / "network.keras")
    network.save(path)
    loaded = keras.models.load_model(path)
    assert loaded.options.group_grid == 4
    assert loaded.blocks[0].rule == ProbabilisticHalting(test_mode="relaxed")
    for value, other in zip(loaded.get_weights(), network.get_weights()):
        np.testing.assert_array_equal(value, other)
    scored = sact_tf.cifar_resnet(model_type="pact", estimator="reinforce", **options)
    assert scored.blocks[0].rule.mode == "discrete"
    sact = sact_tf.cifar_resnet(model_type="sact", **options)
    for other in (scored, sact):
        shapes = [[w.shape for w in m.get_weights()] for m in (network, other)]
        assert shapes[0] == shapes[1]
    prefix = sact_tf.save_slim_checkpoint(sact, str(tmp_path / "sact"))
    sact_tf.load_slim_checkpoint(scored, prefix)  # the heads are the same
    for value, other in zip(scored.get_weights(), sact.get_weights()):
        np.testing.assert_array_equal(value, other)


def test_costs_are_float32_under_mixed_precision():
    model = sact_tf.cifar_resnet(
        "4_1_1", "pact", base_channels=2, dtype="mixed_float16", test_mode="relaxed"
    )
    _, end_points = model.with_end_points(images(), training=False)
    cost = end_points["block_1/ponder_cost"]
    assert cost.dtype == tf.float32
    scores = [
        end_points[f"block_1/unit_{k}/halting_proba"][..., 0].numpy() for k in (1, 2, 3)
    ]
    expected = 1 + np.cumprod([1 / (1 + np.exp(s)) for s in scores], 0).sum(0)
    np.testing.assert_allclose(cost, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"temperature": 0.0}, "temperature must be a finite number > 0; got 0.0"),
        ({"temperature": -1.0}, "temperature must be a finite number > 0; got -1"),
        ({"temperature": math.nan}, "temperature must be a finite number > 0; got nan"),
        (
            {"mode": "soft"},
            "mode must be one of relaxed, discrete, thresholded; .*soft",
        ),
        ({"test_mode": "soft"}, "test_mode must be one of relaxed, discrete, thr"),
        ({"estimator": "straight"}, "estimator must be one of relaxation, reinforce"),
        ({"baseline": "none"}, "baseline must be one of average, linear; got 'none'"),
        ({"mode": "relaxed", "estimator": "reinforce"}, "'reinforce' needs mode 'disc"),
        ({"mode": "thresholded", "estimator": "reinforce"}, "got mode 'thresholded'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ProbabilisticHalting(**options)
    with pytest.raises(ValueError, match=message):
        sact_tf.cifar_resnet("2", "pact", base_channels=2, **options)


def test_bad_groups_are_named(network):
    for grid in (0, -1, 2.5, "4"):
        with pytest.raises(ValueError, match="group_grid must be an integer >= 1"):
            sact_tf.cifar_resnet("2", "pact", base_channels=2, group_grid=grid)
    with pytest.raises(ValueError, match="group_grid must be None unless model_type"):
        sact_tf.cifar_resnet("2", "act", base_channels=2, group_grid=2)
    with pytest.raises(ValueError, match="group_grid must be None with tile_size=2"):
        sact_tf.cifar_resnet("2", "pact", base_channels=2, group_grid=2, tile_size=2)
    with pytest.raises(ValueError, match="group_grid must divide"):
        vary(network, group_grid=5)(images())
    with pytest.raises(ValueError, match="group_grid must be None with domain='image'"):
        gated_block(CumulativeHalting(), np.zeros([4, 1]), "image", group_grid=2)
    with pytest.raises(ValueError, match="seed must be given in discrete mode"):
        rule = ProbabilisticHalting(test_mode="discrete")
        rule.step(rule.initial([1]), tf.zeros([1]), False)


def test_a_temperature_anneals_nothing_of_its_own():
    """Gradients of the relaxed weights reach all logits, and are finite at extremes."""
    logits = tf.Variable([[-90.0, 0.3], [80.0, -2.0], [0.1, 0.2]])
    rule = ProbabilisticHalting()
    with tf.GradientTape() as tape:
        state, total = rule.initial([2]), 0.0
        for k, score in enumerate([*tf.unstack(logits), None]):
            weight, state = rule.step(state, score, k == 3, training=True, seed=[1, k])
            total += tf.reduce_sum(weight) * k + tf.reduce_sum(state.cost)
    gradient = tape.gradient(total, logits).numpy()
    assert np.isfinite(gradient).all() and (gradient[:, 1] != 0).all()


def test_the_domains_noise_is_that_of_the_seed():
    x = tf.zeros([2, 6, 6, 1])
    for domain, shape in ((DOMAINS["image"], [2]), (DOMAINS["position"], [2, 6, 6])):
        np.testing.assert_array_equal(
            domain.noise(x, [1, 2], 1), uniform(shape, [1, 2])
        )
    one = GroupDomain(1).noise(x, [1, 2], 1)
    np.testing.assert_array_equal(one[:, 3, 4], uniform([2], [1, 2]))
