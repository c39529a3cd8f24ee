"""Recurrent attention: its sensor, how it stops and the gradients of its losses."""

import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import sact_tf
from sact_tf.halting import ConfidenceThreshold
from sact_tf.networks import glimpses
from sact_tf.networks.recurrent_attention import recurrent_attention

SEED = tf.constant([3, 5])


def make(steps=4, **options):
    return recurrent_attention(10, steps, **{"units": 16, **options})


def force(model, logit):
    """Has the decider always tell the same logit."""
    model.decider.kernel.assign(tf.zeros_like(model.decider.kernel))
    model.decider.bias.assign([logit])
    return model


def share(model, other):
    """Gives a model the weights of another, where both have them."""
    of_other = sact_tf.slim_variables(other)
    for name, variable in sact_tf.slim_variables(model).items():
        if name in of_other:
            variable.assign(of_other[name])


def spread_stops(model, images):
    """Has half of the images stop after the first glimpse."""
    head = model.decider or model.classifier
    head.kernel.assign(30 * head.kernel)
    first = model._first_carry(tf.constant(len(images)))
    rows = tf.range(len(images))
    taken = model._step(0, model._prepare(images), rows, first, None, False)
    if model.decider is None:
        scores = np.sort(model._score(0, taken))
        model.rule = ConfidenceThreshold((scores[2] + scores[3]) / 2)
    else:
        scores = np.sort(model._decide(0, taken.carry))
        model.decider.bias.assign([-(scores[2] + scores[3]) / 2])


@pytest.fixture(scope="module")
def images():
    return tf.random.stateless_uniform([6, 28, 28, 1], [1, 2])


@pytest.mark.parametrize("y", [-1, 0, 1])
@pytest.mark.parametrize("x", [-1, 0, 1])
def test_glimpses_are_slices_of_the_padded_image(images, y, x):
    padded = np.pad(images, [[0, 0], [3, 3], [3, 3], [0, 0]])
    corner = {-1: 0, 0: 13, 1: 26}  # of the padded image, 34 pixels wide
    top, left = corner[y], corner[x]
    place = tf.fill([6, 1], 1.0) * [[y, x]]
    window = glimpses.glimpse(images, place).numpy()
    np.testing.assert_array_equal(window, padded[:, top : top + 8, left : left + 8])
    if y == -1:
        assert not window[:, :3].any() and window[:, 3:, 4].any()
    if x == 0:
        same_rows = np.pad(images, [[0, 0], [3, 3], [0, 0], [0, 0]])
        np.testing.assert_array_equal(window, same_rows[:, top : top + 8, 10:18])


def test_wider_glimpses_are_averaged(images):
    window = glimpses.glimpse(images, tf.zeros([6, 2]), scales=2).numpy()
    assert window.shape == (6, 8, 8, 2)
    wide = images.numpy()[:, 6:22, 6:22, 0].reshape(6, 8, 2, 8, 2).mean((2, 4))
    np.testing.assert_allclose(window[..., 1], wide, rtol=1e-5)


def test_stops_forced_off_and_on(images):
    dynamic = force(make(), -20.0)
    fixed = make(dynamic=False)
    share(fixed, dynamic)
    expected = fixed(images)
    logits, end_points = dynamic(images, return_end_points=True)
    np.testing.assert_allclose(logits, expected, rtol=1e-5)
    assert (end_points["num_units"].numpy() == 4).all()
    in_training = [m.unroll(images, True, SEED)["logits"] for m in (dynamic, fixed)]
    np.testing.assert_allclose(*in_training, rtol=1e-5)
    force(dynamic, 20.0)
    logits, end_points = dynamic(images, return_end_points=True)
    assert (end_points["num_units"].numpy() == 1).all()
    assert not end_points["locations"][:, 1:].numpy().any()
    first = dynamic.unroll(images)["step_logits"][:, 0]
    np.testing.assert_allclose(logits, first, rtol=1e-5)
    assert np.abs(logits - expected).max() > 1e-4


@pytest.mark.parametrize(
    "options",
    [
        dict(stop_threshold=0.5),
        dict(stop="act"),
        dict(dynamic=False, confidence_threshold=0.2),
    ],
    ids=str,
)
def test_what_has_stopped_leaves_the_batch(images, options):
    model = make(**options)
    contrasts = images * tf.reshape(tf.range(1.0, 7.0), [6, 1, 1, 1])
    spread_stops(model, contrasts)
    run = tf.function(lambda x: model(x, training=False, return_end_points=True))
    logits, end_points = run(contrasts)
    units = end_points["num_units"].numpy()
    assert units.min() < units.max()
    assert end_points["glimpses"] == units.sum()
    masked = model.unroll(contrasts)
    np.testing.assert_allclose(logits, masked["logits"], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(units, masked["num_units"])
    alone = np.concatenate([run(contrasts[k : k + 1])[0] for k in range(6)])
    np.testing.assert_allclose(logits, alone, rtol=1e-4, atol=1e-5)


def test_gradient_of_the_gaussian_is_that_of_its_density():
    rng = np.random.default_rng(0)
    mean, sample = rng.normal(size=[2, 3, 2])
    variable = tf.Variable(mean)
    with tf.GradientTape() as tape:
        density = glimpses.log_density(tf.constant(sample), variable, 0.22)
    expected = -0.5 * ((sample - mean) / 0.22) ** 2 - np.log(0.22 * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(density, expected.sum(1))
    got, step = tape.gradient(density, variable).numpy(), 1e-5
    for place in np.ndindex(3, 2):
        moved = [mean.copy(), mean.copy()]
        moved[0][place] += step
        moved[1][place] -= step
        high, low = (glimpses.log_density(sample, tf.constant(m), 0.22) for m in moved)
        slope = (tf.reduce_sum(high) - tf.reduce_sum(low)) / (2 * step)
        np.testing.assert_allclose(got[place], slope, rtol=1e-6)


@pytest.mark.parametrize("baseline", ["scalar", "state"])
def test_a_constant_reward_with_its_baseline_has_no_gradient(images, baseline):
    model = make(gamma=1.0, steps=3, baseline=baseline)
    model.classifier.kernel.assign(tf.zeros_like(model.classifier.kernel))
    model.classifier.bias.assign(10 * tf.one_hot(2, 10))  # right whatever it saw
    policy = [model.locator.kernel, model.decider.kernel]

    def gradients(expected):
        model.baseline.assign(tf.fill(model.baseline.shape, expected))
        with tf.GradientTape() as tape:
            loss, end_points = model.losses_of(images, tf.fill([6], 2), SEED)
        assert (end_points["reward"].numpy() == 1).all()
        return [np.abs(g).max() for g in tape.gradient(loss, policy)]

    assert gradients(1.0) == [0, 0]
    assert min(gradients(0.5)) > 1e-3


@pytest.mark.parametrize("supervision", [False, True])
def test_pixels_seen_only_after_the_stop_change_nothing(images, supervision):
    model = force(make(intermediate_supervision=supervision), 20.0)
    labels = tf.range(6)

    def loss_and_gradients(images):
        with tf.GradientTape() as tape:
            loss, end_points = model.losses_of(images, labels, SEED)
        return loss, tape.gradient(loss, model.trainable_variables), end_points

    loss, gradients, end_points = loss_and_gradients(images)
    assert (end_points["num_units"].numpy() == 1).all()
    seen = np.zeros([6, 34, 34, 1], bool)
    first = end_points["locations"][:, 0].numpy()
    for k, (y, x) in enumerate(((first + 1) / 2 * 26).astype(int)):
        seen[k, y : y + 8, x : x + 8] = True
    changed = tf.where(seen[:, 3:31, 3:31], images, 1 - images)
    other_loss, other_gradients, other_points = loss_and_gradients(changed)
    later = [p["step_logits"][:, 1:] for p in (end_points, other_points)]
    assert np.abs(later[0] - later[1]).max() > 1e-4
    assert loss == other_loss
    for got, other in zip(gradients, other_gradients):
        np.testing.assert_array_equal(got, other)


def test_losses_are_those_of_the_paper(images):
    labels = tf.range(6) % 3
    for supervision in (False, True):
        model = make(gamma=0.9, intermediate_supervision=supervision)
        model.baseline.assign(0.3)
        loss, points = model.losses_of(images, labels, SEED)
        units, logits = points["num_units"].numpy(), points["logits"].numpy()
        right = logits.argmax(1) == labels.numpy()
        reward = np.where(right, 0.9**units, 0)
        np.testing.assert_allclose(points["reward"], reward, rtol=1e-6)
        every = tf.nn.log_softmax(points["step_logits"]).numpy()
        own = -every[np.arange(6), :, labels]
        first = 0 if supervision else units - 1
        terms = [
            own[k, (first if supervision else first[k]) : units[k]].sum()
            for k in range(6)
        ]
        expected = np.mean(terms) + np.mean((0.3 - reward) ** 2)
        np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_freezing_leaves_decider_and_classifier(images):
    model = make()
    model.freeze_attention()
    before = [v.numpy() for v in model.variables]
    model.compile(keras.optimizers.Adam(0.01))
    model.fit(images, tf.range(6), epochs=2, verbose=0)
    changed = {
        v.name.split("/")[-2]
        for v, old in zip(model.variables, before)
        if "/" in v.name and (v.numpy() != old).any()
    }
    assert changed == {"classifier", "decider", "decider_hidden"}


# Logical devices must be made before TensorFlow starts: it runs in its own process.
_ON_TWO_DEVICES = """
import tensorflow as tf, tf_keras as keras
from sact_tf.networks.recurrent_attention import recurrent_attention
cpu = tf.config.list_physical_devices("CPU")[0]
halves = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(cpu, halves)
shades = tf.random.stateless_uniform([8, 1, 1, 1], [1, 2])
data = tf.data.Dataset.from_tensors((shades * tf.ones([8, 9, 9, 1]), tf.range(8)))
made = []
for devices in (["CPU:0"], ["CPU:0", "CPU:1"]):
    keras.utils.set_random_seed(0)
    with tf.distribute.MirroredStrategy(devices).scope():
        model = recurrent_attention(
            8, 2, False, glimpse_size=1, image_shape=(9, 9, 1), units=8
        )
        # Nothing depends on places, which replicas draw by themselves.
        for layer in (model.locator, model.location_path):
            layer.trainable = False
            layer.kernel.assign(0 * layer.kernel)
        for layer in (model.glimpse_path, model.fusion_1, model.fusion_2):
            layer.kernel.assign(5 * layer.kernel)
        before = [v.numpy() for v in model.trainable_variables]
        model.compile(keras.optimizers.SGD(0.5, momentum=0.9))
    model.fit(data.repeat(3), verbose=0)
    made.append([v.numpy() for v in model.trainable_variables])
    assert min(abs(v - old).max() for v, old in zip(made[-1], before)) > 1e-4
for one, two in zip(*made):
    tf.debugging.assert_near(one, two, 1e-4, 1e-5)
"""


@pytest.mark.long
def test_mirrored_training_is_that_on_one_device():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", _ON_TWO_DEVICES]
    subprocess.run(command, check=True, env=environment, timeout=600)


@pytest.mark.long
def test_mixed_precision(images):
    """Places, what is decided and the loss stay float32."""
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model = make()
        model.compile(keras.optimizers.Adam(0.01))
        before = model.classifier.kernel.numpy()
        history = model.fit(images, tf.range(6), epochs=4, verbose=0)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert np.isfinite(history.history["loss"]).all()
    assert model.fusion_1(tf.zeros([1, 16])).dtype == tf.float16
    logits, points = model(images, return_end_points=True)
    assert logits.dtype == points["locations"].dtype == tf.float32
    assert (model.classifier.kernel.numpy() != before).any()


def easy_and_hard(count, seed):
    """Digits are strokes here: an easy class in the centre, two hard ones in a corner.

    Class 0 has a stroke where the first glimpse looks. Classes 1 and 2 have nothing
    there; a stroke in the top left corner, lying or standing, tells them apart.
    """
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = rng.uniform(0, 0.2, [count, 28, 28, 1]).astype(np.float32)
    images[labels == 0, 13:15, 10:18] += 0.5
    images[labels == 1, 1:3, :8] += 0.5
    images[labels == 2, :8, 1:3] += 0.5
    return images, labels


@pytest.mark.long
def test_easy_images_stop_earlier():
    """Both phases of DT-RAM, with places that are not learned here, but made.

    The first glimpse is in the centre, all others in the corner, as a ReLU state is 0
    at first, then positive. In training they are scattered as always.
    """
    images, labels = easy_and_hard(384, 0)
    data = tf.data.Dataset.from_tensor_slices((images, labels)).cache()
    data = data.shuffle(384, seed=1).repeat().batch(96)

    def train(rate, start=None, **options):
        model = recurrent_attention(3, steps=3, units=32, **options)
        model.locator.kernel.assign(tf.fill([32, 2], -10.0))
        model.locator.bias.assign(tf.zeros([2]))
        model.locator.trainable = False
        if start is not None:
            share(model, start)
            model.freeze_attention()
        model.compile(keras.optimizers.Adam(rate))
        model.fit(data, steps_per_epoch=300, verbose=0)
        return model

    ram = train(0.001, dynamic=False, intermediate_supervision=True)
    model = train(0.002, ram, gamma=0.9, baseline="state")
    images, labels = easy_and_hard(96, 1)
    every = np.argmax(ram.unroll(images)["step_logits"], -1) == labels[:, np.newaxis]
    assert every[labels == 0].mean() > 0.9  # after any glimpse
    assert every[labels != 0, 0].mean() < 0.7 and every[:, 1:].mean() > 0.9
    logits, end_points = model(images, return_end_points=True)
    assert (np.argmax(logits, 1) == labels).mean() > 0.9
    units = end_points["num_units"].numpy()
    assert units[labels == 0].mean() + 0.5 < units[labels != 0].mean()


def test_exploring_batches_stop_anywhere_and_teach_no_stop(images):
    model = make(exploration=1.0, exploration_steps=10)
    force(model, -20.0)  # it would never stop
    found = set()
    for k in range(12):
        with tf.GradientTape() as tape:
            _, points = model.losses_of(images, tf.range(6), tf.constant([k, 1]))
        (unit,) = set(points["num_units"].numpy())  # of the whole batch
        found.add(unit)
        gradient = tape.gradient(points["log_probs"], model.decider.bias)
        assert gradient is None or not gradient.numpy().any()
    assert len(found) > 2
    # It falls after every pass, to 0.1.
    model.compile("adam")
    model.optimizer.iterations.assign(10_000)
    explored = [int(model._explored(tf.constant([k, 2]))) > 0 for k in range(300)]
    assert 0.05 < np.mean(explored) < 0.16


def test_the_baseline_of_every_step_learns_what_to_expect(images):
    """Where the reward is known, expectations go there, and only for steps reached."""
    model = make(gamma=1.0, baseline="state")
    force(model, 20.0)  # stops after the first glimpse
    model.classifier.kernel.assign(tf.zeros_like(model.classifier.kernel))
    model.classifier.bias.assign(10 * tf.one_hot(2, 10))
    model.freeze_attention()
    model.compile(keras.optimizers.SGD(0.1))
    model.fit(images, tf.fill([6], 2), epochs=60, verbose=0)
    baseline = model.unroll(images, True, SEED)["baseline"].numpy()
    np.testing.assert_allclose(baseline[:, :2], 1, atol=0.1)
    assert not baseline[:, 2:].any()


def test_the_curriculum_adds_steps(images):
    model = make(dynamic=False, steps=3, curriculum_steps=10)
    model.compile("adam")
    for step, units in ((0, 1), (9, 1), (10, 2), (25, 3), (1000, 3)):
        model.optimizer.iterations.assign(step)
        points = model.unroll(images, True, SEED)
        assert (points["num_units"].numpy() == units).all()
        np.testing.assert_allclose(
            points["logits"], points["step_logits"][:, units - 1], rtol=1e-5
        )
    assert (model(images, return_end_points=True)[1]["num_units"].numpy() == 3).all()


def test_confidence_stops_from_the_first_step_to_the_last(images):
    for threshold, units in ((0.0, 1), (1.0, 4)):
        model = make(dynamic=False, confidence_threshold=threshold)
        _, end_points = model(images, return_end_points=True)
        assert (end_points["num_units"].numpy() == units).all()


def test_a_keras_file_keeps_all(images, tmp_path):
    model = make(stop_threshold=0.5, scales=2)
    path = str(tmp_path / "model.keras")
    model.save(path)
    loaded = keras.models.load_model(path)
    assert loaded.get_config() == model.get_config()
    np.testing.assert_array_equal(loaded(images), model(images))


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(steps=0), "steps must be an integer >= 1"),
        (dict(gamma=0.0), r"gamma must lie in \(0, 1\]; got 0.0"),
        (dict(gamma=1.5), "gamma must be a finite number from 0 to 1.*got 1.5"),
        (dict(glimpse_size=30), "glimpse_size must be at most the images' 28 x 28"),
        (
            dict(image_shape=(1, 1, 1), glimpse_size=1, scales=2),
            "glimpse_size must be such that windows fit.*got 1 at 2 scales",
        ),
        (
            dict(scales=4),
            "scales must be such that windows are at most twice.*got 4, 64",
        ),
        (dict(stop="never"), "stop must be one of bernoulli, act; got 'never'"),
        (dict(baseline="none"), "baseline must be one of scalar, state; got 'none'"),
        (dict(exploration=1.5), "exploration must be a finite number from 0 to 1"),
        (dict(stop_threshold=1.0), r"stop_threshold must lie in \(0, 1\)"),
        (dict(confidence_threshold=0.5), "confidence_threshold is for a RAM"),
        (dict(dynamic=False, confidence_threshold=2.0), "confidence_threshold must be"),
    ],
    ids=str,
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
