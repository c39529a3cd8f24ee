"""What networks of glimpses share: the loop over them, the stops and the losses.

Such a network looks at an image step by step (Mnih et al., 2014), and may decide after
every step whether to stop (DT-RAM; Li et al., 2017). Places and stops are drawn, and
learned by REINFORCE from a reward R. With S all that was drawn up to the stop at T,

    loss = L_S + sum_k (b_k - R)^2 - (R - b_k) log p(S_k),    R = gamma^T if correct

where the last term stands for its gradient only. L_S is the cross-entropy of the
answer, or the sum of those of all steps taken. The baseline b is one number, or one
linear function of the state for every step (b_t of Mnih et al.).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf
import tf_keras as keras

from sact_tf import halting, latent_losses
from sact_tf.domains import COUNT
from sact_tf.halting import BernoulliStop, ConfidenceThreshold
from sact_tf.networks.attention_options import AttentionOptions

# Of the public code: what exploration is multiplied by after every pass, its floor.
_EXPLORATION_DECAY, _EXPLORATION_FLOOR = 0.8, 0.1
_SURE = 20.0  # a logit that exploration stops by


class Taken(NamedTuple):
    """What a step makes.

    Attributes:
        carry: What the next step reads; a structure of tensors [n, ...].
        output: [n, size]; weighted sums of it make the answer.
        place: Where it looked, float32 [n, 2].
        log_p: Log density of the place, float32 [n]; None where none was drawn.
        flops: Floating point operations, int64 [n].
    """

    carry: object
    output: tf.Tensor
    place: tf.Tensor
    log_p: tf.Tensor | None
    flops: tf.Tensor


def fold(seed: tf.Tensor, n: int) -> tf.Tensor:
    """Returns the n-th seed of a seed."""
    return tf.random.experimental.stateless_fold_in(seed, n)


def dense(units: int, activation, name: str, initializer) -> keras.layers.Dense:
    """Makes a layer of which weights alone are random."""
    return keras.layers.Dense(units, activation, True, initializer, name=name)


def uniform_dense(units: int, activation, name: str) -> keras.layers.Dense:
    """Makes a layer whose weights and biases are drawn from [-0.1, 0.1]."""
    spread = [keras.initializers.RandomUniform(-0.1, 0.1) for _ in range(2)]
    return keras.layers.Dense(units, activation, True, *spread, name=name)


class AttentionNetwork(keras.Model):
    """A network of glimpses.

    A subclass makes its layers, calls `_finish`, and defines what stands below under
    "of a subclass".

    Args:
        num_classes: Number of classes.
        options: How it stops and learns.
        image_shape: Height, width and channels.
        **kwargs: Of `keras.Model`.
    """

    def __init__(
        self,
        num_classes: int,
        options: AttentionOptions,
        image_shape: Sequence[int],
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_classes = COUNT.check(num_classes, "num_classes")
        self.options = options
        self.image_shape = tuple(image_shape)
        self.steps = options.steps
        self.is_dynamic = options.dynamic
        self.rule = options.make_rule()
        self._trackers = {
            "loss": keras.metrics.Mean("loss"),
            "accuracy": keras.metrics.SparseCategoricalAccuracy("accuracy"),
            "reward": keras.metrics.Mean("reward"),
            "steps": keras.metrics.Mean("steps"),
        }

    def _finish(self, state_size: int) -> None:
        """Makes the baseline, and builds all layers.

        Args:
            state_size: Of what `_state` returns.
        """
        zeros = dict(initializer="zeros")
        self.baseline_slope = None
        if self.options.baseline == "state":
            shape = [self.steps, state_size]
            self.baseline_slope = self.add_weight("baseline_slope", shape, **zeros)
            self.baseline = self.add_weight("baseline", [self.steps], **zeros)
        else:
            self.baseline = self.add_weight("baseline", [], **zeros)
        self(tf.zeros([1, *self.image_shape]))

    # Of a subclass:

    slim_scope: str

    def _prepare(self, images: tf.Tensor) -> object:
        """Returns what steps read of images."""
        raise NotImplementedError

    def _first_carry(self, batch: tf.Tensor) -> object:
        """Returns what the first step reads."""
        raise NotImplementedError

    def _step(self, n, context, rows, carry, noise, training) -> Taken:
        """Takes step n, from 0.

        Args:
            n: Number of the step, an int, in a while loop a tensor.
            context: As of `_prepare`.
            rows: int32 [n], which images.
            carry: Of the step before.
            noise: Standard normal, float32 [n, 2]; None: the place is not drawn.
            training: Whether it trains.
        """
        raise NotImplementedError

    def _state(self, carry) -> tf.Tensor:
        """Returns the state [n, size] that a baseline reads."""
        raise NotImplementedError

    def _decide(self, n, carry) -> tf.Tensor:
        """Returns the logit of stopping after step n, [n]."""
        raise NotImplementedError

    def _answer(self, output: tf.Tensor) -> tf.Tensor:
        """Returns logits, float32, of (weighted) outputs."""
        raise NotImplementedError

    def _every_logits(self, taken: Sequence[Taken]) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns logits [batch, steps, classes]: of each step's own, and answers."""
        raise NotImplementedError

    def _rewards(self, end_points, labels) -> tf.Tensor:
        """Returns the reward of what was drawn at every step, float32 [batch, steps].

        By default all have the same: gamma^T where the answer is correct.
        """
        correct = tf.equal(tf.argmax(end_points["logits"], -1, tf.int32), labels)
        reward = tf.cast(correct, tf.float32)
        if self.is_dynamic:
            units = tf.cast(end_points["num_units"], tf.float32)
            reward *= tf.constant(self.options.gamma, tf.float32) ** units
        return tf.repeat(reward[:, tf.newaxis], self.steps, 1)

    def preprocess(self, image: tf.Tensor) -> tf.Tensor:
        """Makes an input of an image, uint8 [height, width, 3], as in evaluation."""
        raise NotImplementedError

    # Of all:

    def build(self, input_shape):
        """Does nothing: the constructor has built all layers."""
        self.built = True

    @property
    def metrics(self):
        return list(self._trackers.values())

    def training_state(self) -> dict[str, tf.Variable]:
        """As of `Network`."""
        state = {"optimizer/baseline/value": self.baseline}
        if self.baseline_slope is not None:
            state["optimizer/baseline/slope"] = self.baseline_slope
        return state

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
            not taken zero; in inference `flops`, int64 [batch], and `glimpses`, int32,
            how many were computed for the whole batch; in training those of `unroll`.
        """
        if training:
            end_points = self.unroll(images, True, seed)
        else:
            end_points = self._infer(images)
        logits = end_points["logits"]
        return (logits, end_points) if return_end_points else logits

    def unroll(self, images, training=False, seed=None) -> dict[str, tf.Tensor]:
        """Takes all glimpses of all images, those that have stopped masked.

        Args:
            images: [batch, height, width, channels].
            training: As of `call`.
            seed: As of `call`.

        Returns:
            `logits`, `num_units` and `locations` as of `call`, these of all steps;
            [batch, steps, classes] `own_logits`, of every step, and `step_logits`, the
            answers if it stopped there; `ponder_cost` [batch]. In training [batch,
            steps] `log_probs`, of the stop after step k - 1 and of the place at step k,
            0 where it had stopped, and `baseline`, of the same.
        """
        if training and seed is None:
            seed = tf.random.uniform([2], maxval=tf.int32.max, dtype=tf.int32)
        batch = tf.shape(images)[0]
        context, rows = self._prepare(images), tf.range(batch)
        carry, state = self._first_carry(batch), self._initial(batch)
        explored = self._explored(seed) if training else None
        total, stop_log_p = 0.0, tf.zeros([batch])
        everything, log_probs, baselines = [], [], []
        for n in range(self.steps):
            noise = options = None
            if training:
                noise = tf.random.stateless_normal([batch, 2], fold(seed, 2 * n))
                options = {"explored": explored, "seed": fold(seed, 2 * n + 1)}
                baselines.append(self._baseline_of(n, carry))
            taken = self._step(n, context, rows, carry, noise, training)
            carry = taken.carry
            if training:
                log_p = stop_log_p
                if taken.log_p is not None:
                    zero = tf.zeros_like(taken.log_p)
                    log_p += tf.where(state.active, taken.log_p, zero)
                log_probs.append(log_p)
            before = self._log_prob(state, batch)
            weight, state = self._halt(state, taken, n, n == self.steps - 1, options)
            stop_log_p = self._log_prob(state, batch) - before
            total += tf.cast(weight, taken.output.dtype)[:, tf.newaxis] * taken.output
            everything.append(taken)
        own, answers = self._every_logits(everything)
        end_points = {
            "logits": self._answer(total),
            "own_logits": own,
            "step_logits": answers,
            "num_units": state.num_units,
            "locations": tf.stack([taken.place for taken in everything], 1),
            "ponder_cost": tf.cast(state.num_units, tf.float32)
            if self.rule is None
            else self.rule.cost(state),
        }
        if training:
            end_points["log_probs"] = tf.stack(log_probs, 1)
            end_points["baseline"] = tf.stack(baselines, 1)
        return end_points

    def _log_prob(self, state, batch):
        """Returns the log probability of all stops so far, [batch]."""
        found = None if self.rule is None else self.rule.log_prob(state, True)
        return tf.zeros([batch]) if found is None else found

    def _baseline_of(self, n, carry):
        """Returns what reward to expect before step n, float32 [batch]."""
        h = tf.cast(tf.stop_gradient(self._state(carry)), tf.float32)
        if self.baseline_slope is None:
            return tf.fill(tf.shape(h)[:1], tf.cast(self.baseline, tf.float32))
        slope = tf.cast(self.baseline_slope[n], tf.float32)
        return tf.linalg.matvec(h, slope) + tf.cast(self.baseline[n], tf.float32)

    def _explored(self, seed):
        """Returns the step after which an exploring batch stops, of others 0."""
        options = self.options
        if not options.exploration or not isinstance(self.rule, BernoulliStop):
            return None
        optimizer = getattr(self, "optimizer", None)
        passes = 0
        if optimizer is not None:
            passes = optimizer.iterations // options.exploration_steps
        chance = options.exploration * _EXPLORATION_DECAY ** tf.cast(passes, tf.float32)
        chance = tf.maximum(chance, min(options.exploration, _EXPLORATION_FLOOR))
        draws = tf.random.stateless_uniform([2], fold(seed, 2 * self.steps))
        step = 1 + tf.cast(draws[1] * self.steps, tf.int32)
        return tf.where(draws[0] < chance, step, 0)

    def _initial(self, batch):
        if self.rule is None:
            return halting.CountingState(
                tf.ones(batch, tf.bool), tf.zeros(batch, tf.int32)
            )
        return self.rule.initial(batch[tf.newaxis])

    def _halt(self, state, taken, n, is_last, drawn=None):
        """Asks the rule after step n; returns weight and new state.

        Args:
            state: Of the rule.
            taken: What the step made.
            n: Number of the step.
            is_last: Whether all stops here.
            drawn: In training `explored` and `seed`; None: it is inference.
        """
        training = drawn is not None
        if self.rule is not None:
            options = {}
            if training and self.rule.needs_seed(training):
                options["seed"] = drawn["seed"]
            score = None if is_last else self._score(n, taken)
            if score is not None and training and drawn["explored"] is not None:
                forced = tf.where(n + 1 >= drawn["explored"], _SURE, -_SURE)
                score = tf.where(drawn["explored"] > 0, forced, score)
            return self.rule.step(state, score, is_last, training=training, **options)
        stops = state.active & tf.fill(tf.shape(state.active), is_last)
        if training and self.options.curriculum_steps is not None:
            stops = state.active & tf.equal(n, self._curriculum() - 1)
        units = state.num_units + tf.cast(state.active, tf.int32)
        state = halting.CountingState(state.active & ~stops, units)
        return tf.cast(stops, tf.float32), state

    def _score(self, n, taken):
        """Returns what the rule reads after a step, float32 [n]."""
        if isinstance(self.rule, ConfidenceThreshold):
            return tf.reduce_max(tf.nn.softmax(self._answer(taken.output)), -1)
        score = tf.cast(self._decide(n, taken.carry), tf.float32)
        return score if self.rule.reads_logits else tf.sigmoid(score)

    def _curriculum(self):
        """Returns how many steps training has come to, from 1 to all, int32."""
        stage = self.optimizer.iterations // self.options.curriculum_steps
        return 1 + tf.cast(tf.minimum(stage, self.steps - 1), tf.int32)

    def _infer(self, images):
        batch = tf.shape(images)[0]
        context = self._prepare(images)
        # What is left of the batch: which images, what they carry, the rule's state.
        left = (tf.range(batch), self._first_carry(batch), self._initial(batch))
        results = {
            "total": tf.zeros([batch, self._output_size], self.compute_dtype),
            "num_units": tf.zeros([batch], tf.int32),
            "locations": tf.zeros([batch, self.steps, 2]),
            "flops": tf.zeros([batch], tf.int64),
            "glimpses": tf.constant(0),
        }

        def step(n, left, results, is_last):
            rows, carry, state = left
            taken = self._step(n, context, rows, carry, None, False)
            weight, state = self._halt(state, taken, n, is_last)
            weight = tf.cast(weight, taken.output.dtype)[:, tf.newaxis]
            at = rows[:, tf.newaxis]
            moment = tf.stack([rows, tf.fill(tf.shape(rows), n)], 1)
            add = tf.tensor_scatter_nd_add
            results = {
                "total": add(results["total"], at, weight * taken.output),
                "num_units": add(results["num_units"], at, tf.ones_like(rows)),
                "locations": add(results["locations"], moment, taken.place),
                "flops": add(results["flops"], at, taken.flops),
                "glimpses": results["glimpses"] + tf.size(rows),
            }
            keep = tf.where(state.active)[:, 0]
            return tf.nest.map_structure(
                lambda x: tf.gather(x, keep), (rows, taken.carry, state)
            ), results

        results = self._run_steps(step, left, results)
        return {"logits": self._answer(results.pop("total")), **results}

    def _run_steps(self, step, left, results):
        """Runs a step after the other while images are left; returns the results."""
        raise NotImplementedError

    def losses_of(self, images, labels, seed=None):
        """Returns the loss of training, and what it is made of.

        Args:
            images: [batch, height, width, channels].
            labels: int [batch].
            seed: As of `call`.

        Returns:
            The loss, a scalar; and end points of `unroll` with `reward`, float32
            [batch], the mean over steps.
        """
        end_points = self.unroll(images, True, seed)
        labels = tf.cast(tf.reshape(labels, [-1]), tf.int32)
        units = end_points["num_units"]
        rewards = self._rewards(end_points, labels)
        loss = tf.reduce_mean(self._cross_entropy(end_points, labels))
        # Expected before step k and after step k - 1, so that the stop's counts too.
        asked = tf.sequence_mask(units + 1, self.steps, tf.float32)
        errors = asked * tf.square(end_points["baseline"] - rewards)
        loss += tf.reduce_mean(tf.reduce_sum(errors, 1) / tf.reduce_sum(asked, 1))
        loss += self.steps * latent_losses.score_function_term(
            end_points["log_probs"], rewards, end_points["baseline"]
        )
        if self.is_dynamic and self.rule.is_charged:
            loss += self.options.tau * tf.reduce_mean(end_points["ponder_cost"])
        if self.losses:
            loss += tf.add_n(self.losses)
        return loss, {**end_points, "reward": tf.reduce_mean(rewards, 1)}

    def _cross_entropy(self, end_points, labels):
        """Returns the cross-entropy of the answer, or of all steps taken, [batch]."""
        if not self.options.intermediate_supervision:
            return tf.nn.sparse_softmax_cross_entropy_with_logits(
                labels, end_points["logits"]
            )
        every = tf.nn.sparse_softmax_cross_entropy_with_logits(
            tf.repeat(labels[:, tf.newaxis], self.steps, 1), end_points["own_logits"]
        )
        taken = tf.sequence_mask(end_points["num_units"], self.steps, tf.float32)
        return tf.reduce_sum(taken * every, 1)

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
