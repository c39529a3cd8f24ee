"""Recurrent visual attention (RAM), and DT-RAM, which decides when to stop.

A network that looks at an image through small windows, "glimpses" (Mnih et al., 2014):

    h_t = relu(fusion(glimpse(x, l_t), l_t) + A h_(t-1)),   l_t ~ N(locator(h_(t-1)))

and answers after T of them, y = classifier(h_T). RAM has a constant T. DT-RAM (Li et
al., 2017) draws after every glimpse whether to stop, with a probability that it learns.
Both choices are learned by REINFORCE, from the reward

    R = gamma^T if y is correct, else 0

so that gamma < 1 is what rewards stopping early. The sizes of all parts are those of
the public Torch code. That code leaves gamma out where it classifies birds and cars,
and has gamma = 1 on MNIST; here it is as in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf
import tf_keras as keras

from sact_tf import halting, latent_losses
from sact_tf.data import inception
from sact_tf.domains import AT_LEAST_0, COUNT, FRACTION
from sact_tf.halting import BernoulliStop, ConfidenceThreshold, CumulativeHalting

HALTINGS = ("bernoulli", "act")
LOCATION_STD = 0.22
_LOCATION_SCALE = 13 / 14  # 13 of the 14 pixels from the centre of MNIST to its edge
_LARGEST_LOGIT = 10.0
_FROZEN = ("glimpse_path", "location_path", "fusion_1", "fusion_2", "recurrence")


def pad(images: tf.Tensor, size: int) -> tf.Tensor:
    """Pads images [batch, height, width, channels] by zeros for glimpses of a size.

    Places (-1, -1) to (1, 1) are then those whose glimpse's centre is in the image.
    """
    width = (size - 1) // 2
    return tf.pad(images, [[0, 0], [width, width], [width, width], [0, 0]])


def crop(
    padded: tf.Tensor, rows: tf.Tensor, locations: tf.Tensor, size: int
) -> tf.Tensor:
    """Cuts windows out of padded images.

    Args:
        padded: [batch, height, width, channels].
        rows: int32 [n], which image each window is of.
        locations: float32 [n, 2], y and x in [-1, 1]; not differentiated through.
        size: Side of the windows.

    Returns:
        [n, size, size, channels].
    """
    shape = tf.shape(padded)
    free = tf.cast(shape[1:3] - size, tf.float32)
    corner = tf.clip_by_value((locations + 1) / 2 * free, 0.0, free)
    corner = tf.cast(corner, tf.int32)  # towards 0
    # Where training has diverged, NaN became any number; the loss shall tell.
    corner = tf.clip_by_value(corner, 0, shape[1:3] - size)
    y = corner[:, :1] + tf.range(size)
    x = corner[:, 1:] + tf.range(size)
    flat = (rows[:, tf.newaxis, tf.newaxis] * shape[1] + y[:, :, tf.newaxis]) * shape[2]
    pixels = tf.reshape(padded, [-1, padded.shape[-1]])
    return tf.gather(pixels, flat + x[:, tf.newaxis, :])


def glimpse(
    images: tf.Tensor, locations: tf.Tensor, size: int = 8, scales: int = 1
) -> tf.Tensor:
    """Looks at every image in one place; zeros surround it.

    Args:
        images: float [batch, height, width, channels].
        locations: float32 [batch, 2], y and x in [-1, 1]; (-1, -1) is the top left
            corner.
        size: Side of the window.
        scales: How many; the second window is twice as wide at half the resolution.

    Returns:
        [batch, size, size, scales * channels].

    >>> image = tf.reshape(tf.range(784.0), [1, 28, 28, 1])
    >>> float(glimpse(image, tf.zeros([1, 2]))[0, 0, 0, 0]) == 28 * 10 + 10
    True
    """
    padded = [pad(images, size * 2**k) for k in range(scales)]
    return _look(padded, tf.range(tf.shape(images)[0]), locations, size)


def _look(padded, rows, locations, size):
    windows = []
    for k, images in enumerate(padded):
        window = crop(images, rows, locations, size * 2**k)
        windows.append(tf.nn.avg_pool2d(window, 2**k, 2**k, "VALID") if k else window)
    return tf.concat(windows, -1)


def log_density(sample: tf.Tensor, mean: tf.Tensor, std: float) -> tf.Tensor:
    """Log density of independent Gaussians, summed over the last axis.

    The sample is taken as a constant: d log p / d mean = (sample - mean) / std^2.
    """
    scaled = (tf.stop_gradient(sample) - mean) / std
    constant = float(np.log(std * np.sqrt(2 * np.pi)))
    return tf.reduce_sum(-0.5 * tf.square(scaled) - constant, -1)


@keras.utils.register_keras_serializable("sact_tf")
class RecurrentAttention(keras.Model):
    """RAM or DT-RAM; `recurrent_attention` makes it, which see for the arguments."""

    slim_scope = "recurrent_attention"
    classifier_scopes = ("recurrent_attention/logits/",)

    def __init__(
        self,
        num_classes: int,
        steps: int,
        dynamic: bool = True,
        gamma: float = 0.99,
        glimpse_size: int = 8,
        scales: int = 1,
        image_shape: Sequence[int] = (28, 28, 1),
        units: int = 256,
        stop: str = "bernoulli",
        stop_threshold: float = 0.9,
        confidence_threshold: float | None = None,
        tau: float = 0.01,
        intermediate_supervision: bool = False,
        curriculum_steps: int | None = None,
        name: str | None = None,
        trainable: bool = True,
        dtype=None,
    ):
        super().__init__(name=name, trainable=trainable, dtype=dtype)
        self.num_classes = COUNT.check(num_classes, "num_classes")
        self.steps = COUNT.check(steps, "steps")
        self.gamma = FRACTION.check(gamma, "gamma")
        if not self.gamma:
            raise ValueError(f"gamma must lie in (0, 1]; got {gamma}")
        self.tau = AT_LEAST_0.check(tau, "tau")
        self.glimpse_size = COUNT.check(glimpse_size, "glimpse_size")
        self.scales = COUNT.check(scales, "scales")
        self.units = COUNT.check(units, "units")
        self.image_shape = tuple(image_shape)
        _check_windows(self.image_shape, glimpse_size, scales)
        self.intermediate_supervision = bool(intermediate_supervision)
        if curriculum_steps is not None:
            COUNT.check(curriculum_steps, "curriculum_steps")
        self.curriculum_steps = curriculum_steps
        self.is_dynamic = bool(dynamic)
        self.stop = stop
        self.rule = _make_rule(dynamic, stop, stop_threshold, confidence_threshold)
        self._thresholds = (stop_threshold, confidence_threshold)
        self._make_layers()
        self._trackers = {
            "loss": keras.metrics.Mean("loss"),
            "accuracy": keras.metrics.SparseCategoricalAccuracy("accuracy"),
            "reward": keras.metrics.Mean("reward"),
            "steps": keras.metrics.Mean("steps"),
        }
        self(tf.zeros([1, *self.image_shape]))

    def _make_layers(self):
        half = max(self.units // 2, 1)
        self.location_path = _dense(half, "relu", "location_path")
        self.glimpse_path = _dense(half, "relu", "glimpse_path")
        self.fusion_1 = _dense(self.units, "relu", "fusion_1")
        self.fusion_2 = _dense(self.units, None, "fusion_2")
        self.recurrence = _dense(self.units, None, "recurrence")
        self.locator = _dense(2, None, "locator")
        self.classifier = _dense(self.num_classes, None, "classifier")
        self.decider_hidden = self.decider = None
        if self.is_dynamic:
            self.decider_hidden = _decider_dense(self.units, "relu", "decider_hidden")
            self.decider = _decider_dense(1, None, "decider")
        self.baseline = self.add_weight("baseline", [], initializer="zeros")

    def build(self, input_shape):
        """Does nothing: the constructor has built all layers."""
        self.built = True

    @property
    def metrics(self):
        return list(self._trackers.values())

    @property
    def slim_scopes(self) -> dict[str, keras.layers.Layer]:
        """Layers by their names in checkpoints."""
        scopes = {name: getattr(self, name) for name in (*_FROZEN, "locator")}
        scopes["logits"] = self.classifier
        if self.is_dynamic:
            scopes["decider/halting_proba/hidden"] = self.decider_hidden
            scopes["decider/halting_proba/score"] = self.decider
        return scopes

    def training_state(self) -> dict[str, tf.Variable]:
        """As of `Network`."""
        return {"optimizer/baseline/value": self.baseline}

    def get_config(self):
        names = "num_classes steps gamma glimpse_size scales image_shape units stop tau"
        names += " intermediate_supervision curriculum_steps name"
        return {
            **{name: getattr(self, name) for name in names.split()},
            "dynamic": self.is_dynamic,
            "stop_threshold": self._thresholds[0],
            "confidence_threshold": self._thresholds[1],
        }

    def freeze_attention(self) -> None:
        """Keeps all but decider, classifier and baseline: the second phase of DT-RAM.

        Compile the model after it.
        """
        for name in (*_FROZEN, "locator"):
            getattr(self, name).trainable = False

    def _padded(self, images):
        images = tf.cast(images, self.compute_dtype)
        return [pad(images, self.glimpse_size * 2**k) for k in range(self.scales)]

    def _location(self, h, noise=None):
        """Returns where to look next, float32 [n, 2], and log p of it [n]."""
        mean = tf.clip_by_value(tf.cast(self.locator(h), tf.float32), -1.0, 1.0)
        if noise is None:
            return mean * _LOCATION_SCALE, None
        sample = tf.stop_gradient(mean + LOCATION_STD * noise)
        place = tf.clip_by_value(sample, -1.0, 1.0) * _LOCATION_SCALE
        return place, log_density(sample, mean, LOCATION_STD)

    def _update(self, padded, rows, locations, h):
        """Takes a glimpse; returns h_t."""
        seen = _look(padded, rows, locations, self.glimpse_size)
        seen = tf.reshape(seen, [-1, int(np.prod(seen.shape[1:]))])
        parts = [self.glimpse_path(seen), self.location_path(locations)]
        x = self.fusion_2(self.fusion_1(tf.concat(parts, -1)))
        return tf.nn.relu(x + self.recurrence(h))

    def _logits(self, h):
        logits = tf.cast(self.classifier(h), tf.float32)
        if self.is_dynamic:
            logits = tf.clip_by_value(logits, -_LARGEST_LOGIT, _LARGEST_LOGIT)
        return logits

    def _score(self, h):
        """Returns what the rule reads of a state, float32 [n]."""
        if isinstance(self.rule, ConfidenceThreshold):
            return tf.reduce_max(tf.nn.softmax(self._logits(h)), -1)
        score = tf.cast(self.decider(self.decider_hidden(h))[:, 0], tf.float32)
        return score if self.rule.reads_logits else tf.sigmoid(score)

    @tf.autograph.experimental.do_not_convert
    def call(self, images, training=None, return_end_points=False, seed=None):
        """Classifies images.

        In inference, images that have stopped leave the batch.

        Args:
            images: [batch, height, width, channels].
            training: Whether places and stops are drawn.
            return_end_points: Whether more is returned than the logits.
            seed: int32 [2], of all that is drawn; None: one is drawn.

        Returns:
            Logits, float32 [batch, classes]; and where asked for, `num_units` int32
            [batch], the glimpses taken; `locations` float32 [batch, steps, 2], of those
            not taken zero; in inference `glimpses`, int32, how many were computed for
            the whole batch; in training those of `unroll`.
        """
        run = self._infer
        if training:
            run = self._unroll_in_training
        end_points = run(images, seed)
        logits = end_points["logits"]
        return (logits, end_points) if return_end_points else logits

    def _unroll_in_training(self, images, seed):
        return self.unroll(images, True, seed)

    def unroll(self, images, training=False, seed=None) -> dict[str, tf.Tensor]:
        """Takes all glimpses of all images, those that have stopped masked.

        Args:
            images: [batch, height, width, channels].
            training: As of `call`.
            seed: As of `call`.

        Returns:
            `logits`, `num_units` and `locations` as of `call`, these of all steps;
            `step_logits` [batch, steps, classes]; `ponder_cost` [batch]; in training
            `log_prob` [batch], of all places and stops until T.
        """
        if training and seed is None:
            seed = tf.random.uniform([2], maxval=tf.int32.max, dtype=tf.int32)
        batch = tf.shape(images)[0]
        padded, rows = self._padded(images), tf.range(batch)
        h = tf.zeros([batch, self.units], self.compute_dtype)
        state, total, log_prob = self._initial(batch), tf.zeros_like(h), tf.zeros(batch)
        states, places = [], []
        for n in range(self.steps):
            noise = None
            if training:
                seeds = [_fold(seed, 2 * n), _fold(seed, 2 * n + 1)]
                noise = tf.random.stateless_normal([batch, 2], seeds[0])
            place, log_p = self._location(h, noise)
            if training:
                log_prob += tf.where(state.active, log_p, tf.zeros_like(log_p))
            h = self._update(padded, rows, place, h)
            options = {}
            if training and self.rule is not None and self.rule.needs_seed(training):
                options["seed"] = seeds[1]
            is_last = n == self.steps - 1
            weight, state = self._halt(state, h, n, is_last, training, **options)
            total += tf.cast(weight, h.dtype)[:, tf.newaxis] * h
            states.append(h)
            places.append(place)
        end_points = {
            "logits": self._logits(total),
            "step_logits": self._logits(tf.stack(states, 1)),
            "num_units": state.num_units,
            "locations": tf.stack(places, 1),
            "ponder_cost": tf.cast(state.num_units, tf.float32)
            if self.rule is None
            else self.rule.cost(state),
        }
        if training:
            stops = None if self.rule is None else self.rule.log_prob(state, training)
            end_points["log_prob"] = log_prob if stops is None else log_prob + stops
        return end_points

    def _initial(self, batch):
        if self.rule is None:
            return halting.CountingState(
                tf.ones(batch, tf.bool), tf.zeros(batch, tf.int32)
            )
        return self.rule.initial(batch[tf.newaxis])

    def _halt(self, state, h, n, is_last, training, **options):
        """Asks the rule after step n, from 0; returns weight and new state."""
        if self.rule is not None:
            score = None if is_last else self._score(h)
            return self.rule.step(state, score, is_last, training=training, **options)
        stops = state.active & tf.fill(tf.shape(state.active), is_last)
        if training and self.curriculum_steps is not None:
            stops = state.active & tf.equal(n, self._curriculum() - 1)
        units = state.num_units + tf.cast(state.active, tf.int32)
        state = halting.CountingState(state.active & ~stops, units)
        return tf.cast(stops, tf.float32), state

    def _curriculum(self):
        """Returns how many steps training has come to, from 1 to all, int32."""
        stage = self.optimizer.iterations // self.curriculum_steps
        return 1 + tf.cast(tf.minimum(stage, self.steps - 1), tf.int32)

    def _infer(self, images, seed=None):
        batch = tf.shape(images)[0]
        padded = self._padded(images)
        results = {
            "state": tf.zeros([batch, self.units], self.compute_dtype),
            "num_units": tf.zeros([batch], tf.int32),
            "locations": tf.zeros([batch, self.steps, 2]),
            "glimpses": tf.constant(0),
        }
        # What is left of the batch: which images, their h and the rule's state.
        left = (tf.range(batch), results["state"], self._initial(batch))

        def step(n, left, results, is_last):
            rows, h, state = left
            place, _ = self._location(h)
            h = self._update(padded, rows, place, h)
            weight, state = self._halt(state, h, n, is_last, False)
            at = rows[:, tf.newaxis]
            moment = tf.stack([rows, tf.fill(tf.shape(rows), n)], 1)
            add = tf.tensor_scatter_nd_add
            results = {
                "state": add(
                    results["state"], at, tf.cast(weight, h.dtype)[:, tf.newaxis] * h
                ),
                "num_units": add(results["num_units"], at, tf.ones_like(rows)),
                "locations": add(results["locations"], moment, place),
                "glimpses": results["glimpses"] + tf.size(rows),
            }
            keep = tf.where(state.active)[:, 0]
            left = tf.nest.map_structure(lambda x: tf.gather(x, keep), (rows, h, state))
            return left, results

        def body(n, left, results):
            return (n + 1, *step(n, left, results, False))

        def shapes(tensors):
            return tf.nest.map_structure(
                lambda x: tf.TensorShape([None, *x.shape[1:]]), tensors
            )

        _, left, results = tf.while_loop(
            lambda n, left, results: (n < self.steps - 1) & (tf.size(left[0]) > 0),
            body,
            (tf.constant(0), left, results),
            shape_invariants=(
                tf.TensorShape([]),
                shapes(left),
                tf.nest.map_structure(lambda x: x.shape, results),
            ),
        )
        _, results = step(tf.constant(self.steps - 1), left, results, True)
        return {"logits": self._logits(results.pop("state")), **results}

    def losses_of(self, images, labels, seed=None):
        """Returns the loss of training, and what it is made of.

        Args:
            images: [batch, height, width, channels].
            labels: int [batch].
            seed: As of `call`.

        Returns:
            The loss, a scalar; and end points of `unroll` with `reward`, float32
            [batch].
        """
        end_points = self.unroll(images, True, seed)
        logits = end_points["logits"]
        labels = tf.cast(tf.reshape(labels, [-1]), tf.int32)
        cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        correct = tf.equal(tf.argmax(logits, -1, tf.int32), labels)
        reward = tf.cast(correct, tf.float32)
        steps = tf.cast(end_points["num_units"], tf.float32)
        if self.is_dynamic:
            reward *= self.gamma**steps
        if self.intermediate_supervision:
            every = tf.nn.sparse_softmax_cross_entropy_with_logits(
                tf.repeat(labels[:, tf.newaxis], self.steps, 1),
                end_points["step_logits"],
            )
            taken = tf.sequence_mask(end_points["num_units"], self.steps, tf.float32)
            cross_entropy = tf.reduce_sum(taken * every, 1)
        loss = tf.reduce_mean(cross_entropy)
        loss += tf.reduce_mean(tf.square(tf.cast(self.baseline, tf.float32) - reward))
        loss += latent_losses.score_function_term(
            end_points["log_prob"], reward, tf.cast(self.baseline, tf.float32)
        )
        if self.is_dynamic and self.rule.is_charged:
            loss += self.tau * tf.reduce_mean(end_points["ponder_cost"])
        return loss, {**end_points, "reward": reward}

    @property
    def flops_per_step(self) -> int:
        """Floating point operations of a glimpse, two for a multiplication and sum.

        The classifier's are counted where it is asked after every step.
        """
        layers = [getattr(self, name) for name in (*_FROZEN, "locator")]
        if self.is_dynamic:
            layers += [self.decider_hidden, self.decider]
        elif isinstance(self.rule, ConfidenceThreshold):
            layers.append(self.classifier)
        return sum(2 * int(np.prod(layer.kernel.shape)) for layer in layers)

    def preprocess(self, image: tf.Tensor) -> tf.Tensor:
        """Makes an input of an image, as in evaluation.

        Args:
            image: uint8 [height, width, 3].

        Returns:
            float32 of `image_shape`; in [0, 1] if that is grey, else in [-1, 1].
        """
        height, width, channels = self.image_shape
        if channels != 1:
            return inception.for_evaluation(image, height, width)
        grey = tf.image.rgb_to_grayscale(tf.cast(image, tf.float32) / 255.0)
        return tf.image.resize(grey, [height, width])

    def export_saved_model(self, path: str) -> str:
        """Exports for serving; what has stopped leaves the batch there too.

        The signature `serving_default` takes `images`, float32 [batch, height, width,
        channels], `serving_bytes` `image_bytes`, strings [batch] of JPEG or PNG files.
        Both return `logits` and `probabilities` [batch, classes], `num_units` int32
        [batch], and `locations` [batch, steps, 2].

        Args:
            path: Directory to write.

        Returns:
            `path`.
        """
        from sact_tf import exporting  # which imports what few networks need

        def serve(images):
            logits, end_points = self(images, training=False, return_end_points=True)
            names = ("num_units", "locations")
            return {
                "logits": logits,
                "probabilities": tf.nn.softmax(logits),
                **{name: end_points[name] for name in names},
            }

        def serve_bytes(image_bytes):
            made = exporting.map_images(image_bytes, self.preprocess, tf.float32)
            return serve(tf.ensure_shape(made, [None, *self.image_shape]))

        images = tf.TensorSpec([None, *self.image_shape], name="images")
        image_bytes = tf.TensorSpec([None], tf.string, "image_bytes")
        return exporting.write_saved_model(
            self,
            path,
            tf.function(serve, [images], autograph=False),
            tf.function(serve_bytes, [image_bytes], autograph=False),
        )

    def train_step(self, data):
        images, labels, _ = keras.utils.unpack_x_y_sample_weight(data)
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        with tf.GradientTape() as tape:
            loss, end_points = self.losses_of(images, labels)
            scaled = loss / replicas
        self.optimizer.minimize(scaled, self.trainable_variables, tape=tape)
        return self._track(loss, labels, end_points)

    def test_step(self, data):
        images, labels, _ = keras.utils.unpack_x_y_sample_weight(data)
        logits, end_points = self(images, training=False, return_end_points=True)
        labels = tf.cast(tf.reshape(labels, [-1]), tf.int32)
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        return self._track(loss, labels, end_points)

    def _track(self, loss, labels, end_points):
        track = self._trackers
        track["loss"].update_state(loss)
        track["accuracy"].update_state(labels, end_points["logits"])
        track["steps"].update_state(end_points["num_units"])
        if "reward" in end_points:
            track["reward"].update_state(end_points["reward"])
        return {name: tracker.result() for name, tracker in track.items()}


def _dense(units, activation, name):
    spread = [keras.initializers.RandomUniform(-0.1, 0.1) for _ in range(2)]
    return keras.layers.Dense(units, activation, True, *spread, name=name)


def _decider_dense(units, activation, name):
    # A variance of 4 / (fan_in + fan_out).
    spread = keras.initializers.VarianceScaling(2.0, "fan_avg", "untruncated_normal")
    return keras.layers.Dense(units, activation, True, spread, name=name)


def _fold(seed, n):
    return tf.random.experimental.stateless_fold_in(seed, n)


def _check_windows(image_shape, glimpse_size, scales):
    height, width, _ = image_shape
    largest = glimpse_size * 2 ** (scales - 1)
    side = min(height, width)
    if side < glimpse_size:
        raise ValueError(
            f"glimpse_size must be at most the images' {height} x {width} pixels; got "
            f"{glimpse_size}"
        )
    padded = side + 2 * ((largest - 1) // 2)
    if largest > padded:
        raise ValueError(
            f"glimpse_size must be such that windows fit the padded images' {padded} "
            f"pixels; got {glimpse_size} at {scales} scales, {largest} pixels"
        )


def _make_rule(dynamic, stop, stop_threshold, confidence_threshold):
    """Returns the halting rule, None for a RAM that takes all steps."""
    if stop not in HALTINGS:
        raise ValueError(f"stop must be one of {', '.join(HALTINGS)}; got {stop!r}")
    if confidence_threshold is not None:
        rule = ConfidenceThreshold(confidence_threshold)
        if dynamic:
            raise ValueError(
                f"confidence_threshold is for a RAM (dynamic=False) only; got "
                f"{confidence_threshold} with dynamic=True"
            )
        return rule
    bernoulli = BernoulliStop(stop_threshold)
    if not dynamic:
        return None
    return bernoulli if stop == "bernoulli" else CumulativeHalting()


def recurrent_attention(
    num_classes: int,
    steps: int,
    dynamic: bool = True,
    gamma: float = 0.99,
    glimpse_size: int = 8,
    scales: int = 1,
    **options,
) -> RecurrentAttention:
    """Makes a RAM, or a DT-RAM.

    Compiled with an optimizer, `fit` trains all of it; `freeze_attention` leaves the
    decider and the classifier, for a DT-RAM that starts from a trained RAM.

    Args:
        num_classes: Number of classes.
        steps: Glimpses taken (RAM), or the most of them (DT-RAM).
        dynamic: Whether it decides when to stop.
        gamma: Discount of the reward for every step, in (0, 1].
        glimpse_size: Side of the window in pixels.
        scales: How many windows, each twice as wide as the one before, averaged to
            the same number of pixels.
        **options: `image_shape` (28, 28, 1); `units` (256), the size of h; `stop`:
            "bernoulli", or "act", which adds halting scores up and is charged `tau`
            for every step; `stop_threshold` (0.9), above which probability it stops in
            inference; `confidence_threshold` of a RAM: it stops once its likeliest
            class is likelier than that; `intermediate_supervision`: the loss is the sum
            of the cross-entropies of all steps taken; `curriculum_steps`: a RAM takes
            one glimpse for so many training steps, then two, and so on; `name`.

    Raises:
        ValueError: On any other value, naming the argument.

    >>> model = recurrent_attention(10, steps=3, units=8)
    >>> logits, end_points = model(tf.zeros([2, 28, 28, 1]), return_end_points=True)
    >>> logits.shape, end_points["locations"].shape
    (TensorShape([2, 10]), TensorShape([2, 3, 2]))
    """
    return RecurrentAttention(
        num_classes, steps, dynamic, gamma, glimpse_size, scales, **options
    )
