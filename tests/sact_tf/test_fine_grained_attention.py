"""Fine-grained attention: a residual network for every glimpse."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import sact_tf
from sact_tf.halting import ConfidenceThreshold
from sact_tf.networks import glimpses
from sact_tf.networks.fine_grained_attention import fine_grained_attention

SEED = tf.constant([3, 5])
SIDE = 16


def make_backbone(**options):
    given = dict(model="1_1_1", base_channels=4, num_classes=0, pooling="avg")
    return sact_tf.cifar_resnet(**{**given, **options})


def make(steps=3, backbone=None, **options):
    options = {"image_size": SIDE, "glimpse_size": 6, "resized_to": 8, **options}
    return fine_grained_attention(5, backbone or make_backbone(), steps, **options)


def spread_weights(model):
    """Gives a model weights that tell images, steps and classes apart."""
    for k, step in enumerate(model.attention_steps):
        rng = np.random.default_rng(k)
        for layer in (step.classifier, step.locator, step.decider):
            if layer is not None:
                layer.kernel.assign(rng.normal(0, 0.6, layer.kernel.shape))
                layer.bias.assign(rng.normal(0, 0.3, layer.bias.shape))
    return model


def force(model, logit):
    for step in model.attention_steps:
        step.decider.kernel.assign(tf.zeros_like(step.decider.kernel))
        step.decider.bias.assign([logit])
    return model


@pytest.fixture(scope="module")
def images():
    return tf.random.stateless_normal([6, SIDE, SIDE, 3], [1, 2])


@pytest.fixture(scope="module")
def dynamic(images):
    """Half of the images stop after the first step."""
    model = spread_weights(make())
    first = model.attention_steps[0]
    logits = first.classifier(first.backbone(images))
    scores = first.decider(first.decider_hidden(tf.tanh(logits)))[:, 0]
    low, high = np.sort(scores)[2:4]
    # However close their scores are: 10 above and 10 below zero.
    scale = 20 / (high - low)
    first.decider.kernel.assign(scale * first.decider.kernel)
    first.decider.bias.assign(scale * (first.decider.bias - (low + high) / 2))
    return model


def test_the_answer_is_the_first_and_the_mean_of_the_others(images, dynamic):
    """By the equations, one image after the other."""
    points = dynamic.unroll(images)
    padded = [glimpses.pad(images, 6)]
    first, *others = dynamic.attention_steps
    h = first.backbone(images)
    own = [first.classifier(h)]
    for step in others:
        place = tf.clip_by_value(step.locator(step.locator_hidden(h)), -1, 1)
        place *= 150 / 224
        seen = glimpses.look(padded, tf.range(6), place, 6)
        x = step.backbone(tf.image.resize(seen, [8, 8]))
        h = tf.nn.relu(x + step.recurrence(h))
        own.append(step.classifier(h))
    answers = [own[0], own[0] + own[1], own[0] + (own[1] + own[2]) / 2]
    np.testing.assert_allclose(
        points["own_logits"], tf.stack(own, 1), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        points["step_logits"], tf.stack(answers, 1), rtol=1e-4, atol=1e-5
    )


def test_what_has_stopped_leaves_the_batch_and_no_bias_behind(images, dynamic):
    """An answer is that of the steps taken, whatever later classifiers would say."""
    run = tf.function(lambda x: dynamic(x, training=False, return_end_points=True))
    logits, end_points = run(images)
    units = end_points["num_units"].numpy()
    assert units.min() < units.max()
    assert end_points["glimpses"] == units.sum()
    masked = dynamic.unroll(images)
    np.testing.assert_array_equal(units, masked["num_units"])
    np.testing.assert_allclose(logits, masked["logits"], rtol=1e-4, atol=1e-5)
    at_stop = masked["step_logits"].numpy()[np.arange(6), units - 1]
    np.testing.assert_allclose(logits, at_stop, rtol=1e-4, atol=1e-5)
    flops = end_points["flops"].numpy()
    assert all(len(set(flops[units == n])) == 1 for n in set(units))
    assert flops[units.argmin()] < flops[units.argmax()]


def test_other_rules_stop_it_too(images):
    """Sureness of the answer, without deciders, and ACT's sum of their scores."""
    model = spread_weights(make(dynamic=False, confidence_threshold=0.5))
    every = tf.nn.softmax(model.unroll(images)["step_logits"]).numpy().max(-1)
    low, high = np.sort(every[:, 0])[2:4]
    model.rule = ConfidenceThreshold((low + high) / 2)
    sure = every > model.rule.threshold
    sure[:, -1] = True
    logits, points = model(images, return_end_points=True)
    units = points["num_units"].numpy()
    np.testing.assert_array_equal(units, sure.argmax(1) + 1)
    assert units.min() < units.max() and points["glimpses"] == units.sum()
    chosen = np.arange(6), units - 1
    np.testing.assert_allclose(
        tf.nn.softmax(logits).numpy().max(-1), every[chosen], rtol=1e-4
    )

    act = spread_weights(make(stop="act", tau=0.1))
    logits, points = act(images, return_end_points=True)
    masked = act.unroll(images)
    np.testing.assert_array_equal(points["num_units"], masked["num_units"])
    np.testing.assert_allclose(logits, masked["logits"], rtol=1e-4, atol=1e-5)
    assert (masked["ponder_cost"].numpy() >= points["num_units"].numpy()).all()


def test_stops_forced_off_and_on(images):
    model = force(spread_weights(make(steps=2)), -20.0)
    fixed = make(steps=2, dynamic=False)
    of_dynamic = sact_tf.slim_variables(model)
    for name, variable in sact_tf.slim_variables(fixed).items():
        variable.assign(of_dynamic[name])
    expected = fixed(images)
    np.testing.assert_allclose(model(images), expected, rtol=1e-4, atol=1e-5)
    logits, points = force(model, 20.0)(images, return_end_points=True)
    assert (points["num_units"].numpy() == 1).all()
    first = model.attention_steps[0]
    alone = first.classifier(first.backbone(images))
    np.testing.assert_allclose(logits, alone, rtol=1e-4, atol=1e-5)


def test_the_dynamic_phase_trains_deciders_and_sees_nothing_after_the_stop(images):
    model = force(spread_weights(make()), 20.0)  # all stop after the whole image
    model.freeze_attention()
    names = {v.name.split("/")[-2] for v in model.trainable_variables if "/" in v.name}
    assert names == {"decider", "decider_hidden"}
    before = [v.numpy() for v in model.variables]

    def gradients():
        with tf.GradientTape() as tape:
            loss, points = model.losses_of(images, tf.range(6) % 5, SEED)
        assert (points["num_units"].numpy() == 1).all()
        return loss, tape.gradient(loss, model.trainable_variables)

    loss, expected = gradients()
    # As if the later steps saw something else.
    for step in model.attention_steps[1:]:
        step.classifier.bias.assign_add(tf.range(5.0))
        step.recurrence.bias.assign_add(tf.ones(model.channels))
    other_loss, got = gradients()
    assert loss == other_loss
    for a, b in zip(expected, got):
        if a is not None:
            np.testing.assert_array_equal(a, b)
    # Nor has training mode changed any moving average.
    averages = [k for k, v in enumerate(model.variables) if "moving" in v.name]
    assert averages
    for k in averages:
        np.testing.assert_array_equal(model.variables[k], before[k])


def test_losses_and_rewards(images):
    labels = tf.range(6) % 5
    model = spread_weights(make(dynamic=False))
    model.baseline.assign(0.3)
    for step in model.attention_steps:  # whose weight decay is not the question
        step.freeze(all_of_it=True)
    loss, points = model.losses_of(images, labels, SEED)
    own = points["own_logits"].numpy()
    right = own.argmax(-1) == labels.numpy()[:, np.newaxis]
    assert 0 < right.mean() < 1
    np.testing.assert_allclose(points["reward"], right.mean(1), rtol=1e-6)
    chosen = tf.nn.log_softmax(own).numpy()[np.arange(6), :, labels]
    expected = -chosen.sum(1).mean() + ((0.3 - right) ** 2).mean()
    others = float(tf.add_n(model.losses))
    np.testing.assert_allclose(loss, expected + others, rtol=1e-5)
    # gamma^T of the answer where it decides.
    stops = spread_weights(make(gamma=0.9))
    _, points = stops.losses_of(images, labels, SEED)
    right = points["logits"].numpy().argmax(1) == labels.numpy()
    reward = np.where(right, 0.9 ** points["num_units"].numpy(), 0)
    np.testing.assert_allclose(points["reward"], reward, rtol=1e-6)


def test_a_place_is_rewarded_by_its_own_step(images):
    """The score function's gradient, against that of the log density."""
    model = spread_weights(make(steps=2, dynamic=False))
    model.attention_steps[1].freeze(all_of_it=True)
    locator = model.attention_steps[1].locator
    locator.trainable = True
    locator.kernel.assign(0.1 * locator.kernel)  # means inside of (-1, 1)
    labels = tf.range(6) % 5
    with tf.GradientTape() as tape:
        loss, points = model.losses_of(images, labels, SEED)
    got = tape.gradient(loss, locator.bias)
    own = points["own_logits"][:, 1].numpy()
    right = own.argmax(-1) == labels.numpy()
    h = model.attention_steps[0].backbone(images, training=True)
    mean = locator(model.attention_steps[1].locator_hidden(h)).numpy()
    seed = tf.random.experimental.stateless_fold_in(SEED, 2)
    noise = tf.random.stateless_normal([6, 2], seed).numpy()
    inside = np.abs(mean) < 1
    score = inside * 0.24 * noise / 0.24**2
    np.testing.assert_allclose(
        got, -(right[:, np.newaxis] * score).mean(0), rtol=1e-3, atol=1e-4
    )


def test_it_grows_step_by_step(images, tmp_path):
    def values(model):
        return {k: v.numpy() for k, v in sact_tf.slim_variables(model).items()}

    def save(model, name):
        return sact_tf.save_slim_checkpoint(model, str(tmp_path / name))

    one = spread_weights(make(steps=1, dynamic=False))
    two = spread_weights(make(steps=2, dynamic=False))
    fresh = values(two)
    two.start_from(save(one, "one"))
    source, got = values(one), values(two)
    root = "fine_grained_attention/step_"
    stem = next(n for n in source if n.endswith("weights"))[len(root) + 1 :]
    for step in (1, 2):  # the second is a clone, both classifiers are new
        np.testing.assert_array_equal(
            got[f"{root}{step}{stem}"], source[f"{root}1{stem}"]
        )
        name = f"{root}{step}/logits/weights"
        np.testing.assert_array_equal(got[name], fresh[name])
    three = make(steps=3, dynamic=False)
    path = save(two, "two")
    three.start_from(path)
    source, got = values(two), values(three)
    for name, value in source.items():
        np.testing.assert_array_equal(got[name], value)
        if name.startswith(f"{root}2/") and "/logits/" not in name:
            np.testing.assert_array_equal(got[name.replace("step_2", "step_3")], value)
    three.freeze_earlier_steps()
    assert len(three.trainable_variables) == len(
        three.attention_steps[2].trainable_variables + [three.baseline]
    )
    stops = make(steps=3)
    stops.start_from(save(three, "three"))
    np.testing.assert_allclose(
        stops.unroll(images)["step_logits"],
        three.unroll(images)["step_logits"],
        rtol=1e-5,
    )
    with pytest.raises(ValueError, match="steps must be 1 or 2, as .*; got 3"):
        make(steps=3).start_from(str(tmp_path / "one"))
    with pytest.raises(sact_tf.CheckpointMismatchError):
        make(steps=3, backbone=make_backbone(base_channels=2)).start_from(path)


@pytest.mark.long
def test_adaptive_networks_of_every_family_and_a_keras_file(images, tmp_path):
    sact = sact_tf.imagenet_resnet("1_1_1_1", "sact", 7, base_channels=2, tau=0.1)
    model = make(steps=2, backbone=sact)  # whose classifier is left out
    stem = sact.stem.kernel
    for step in model.attention_steps:
        np.testing.assert_array_equal(step.backbone.stem.kernel, stem)
    model.compile(keras.optimizers.Adam(0.01))
    history = model.fit(images, tf.range(6) % 5, verbose=0)
    assert np.isfinite(history.history["loss"][0])
    assert all(
        (step.backbone.stem.kernel != stem).numpy().any()
        for step in model.attention_steps
    )
    path = str(tmp_path / "model.keras")
    model.save(path)
    loaded = keras.models.load_model(path)
    assert loaded.get_config() == model.get_config()
    np.testing.assert_allclose(loaded(images), model(images), rtol=1e-5, atol=1e-6)
    iterative = sact_tf.iterative_net(
        "iterative",
        max_iterations="1,1,2,1",
        base_channels=2,
        num_classes=0,
        pooling="avg",
    )
    assert make(steps=2, backbone=iterative)(images).shape == [6, 5]


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(steps=0), "steps must be an integer >= 1"),
        (dict(backbone=keras.Sequential()), "backbone must be a network of this"),
        (dict(glimpse_size=17), "glimpse_size must be at most the images' 16 x 16"),
        (dict(resized_to=0), "resized_to must be"),
        (dict(curriculum_steps=5), "curriculum_steps must be None"),
        (dict(exploration=2.0), "exploration must be"),
        (dict(baseline="none"), "baseline must be one of scalar, state; got 'none'"),
    ],
    # Names alone: what an object shows as differs from process to process.
    ids=lambda value: value if isinstance(value, str) else ", ".join(value),
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_networks_with_losses_of_their_own_are_refused():
    with pytest.raises(ValueError, match="backbone must be one that its own loss"):
        make(backbone=make_backbone(model_type="pact", estimator="reinforce"))
