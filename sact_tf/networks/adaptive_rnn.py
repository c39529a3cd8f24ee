"""Recurrent networks that choose how often to update their state (Graves, 2016).

At every time step t the cell runs on the same input several times; a flag tells it the
first:

    s_t^n = cell(s_t^(n-1), [n = 1, x_t]),   s_t^0 = s_(t-1)

Any halting rule of images decides after how many updates to stop, by a score of the
state, h_t^n. State and output are the sums of those of all updates by its weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf
import tf_keras as keras

from sact_tf import halting, latent_losses
from sact_tf.domains import AT_LEAST_0, COUNT
from sact_tf.layers import restored, saved

_UNROLLED = 20


@keras.utils.register_keras_serializable("sact_tf")
class AdaptiveRNN(keras.Model):
    """A cell that repeats itself, and a linear layer of its state.

    Maps sequences [batch, time, features] to outputs [batch, time, outputs]. Its losses
    hold tau times the ponder cost, averaged over batch and time. Compiled with a loss,
    `fit` trains with any rule.

    Args:
        cell: Of Keras, such as `SimpleRNNCell(128)`, whose output is the first of its
            states.
        outputs: Numbers that come out at every time step.
        model_type: Of `halting.model_types()`, one that halts images; "vanilla": the
            state is updated `max_steps` times, always.
        max_steps: The most updates in a time step.
        tau: Weight of the ponder cost, at least 0.
        halting_bias: Initial bias of the halting score.
        name: Keras name of the model.
        **rule_options: Of the halting rule.

    Raises:
        ValueError: On any other value, naming the argument.
    """

    def __init__(
        self,
        cell: keras.layers.Layer | Mapping[str, Any],
        outputs: int = 1,
        model_type: str = "act",
        max_steps: int = 10,
        tau: float = 0.01,
        halting_bias: float = 1.0,
        name: str | None = None,
        trainable: bool = True,
        dtype=None,
        **rule_options,
    ):
        super().__init__(name=name, trainable=trainable, dtype=dtype)
        kind = halting.model_type(model_type)
        if kind.is_adaptive and kind.domain != "image":
            raise ValueError(
                "model_type must be one that halts images, such as 'act'; got "
                f"{model_type!r}"
            )
        self.rule = kind.make_rule(model_type, rule_options)
        self.max_steps = COUNT.check(max_steps, "max_steps")
        self.tau = AT_LEAST_0.check(tau, "tau")
        self._made_with = dict(
            outputs=COUNT.check(outputs, "outputs"),
            model_type=model_type,
            halting_bias=halting_bias,
        )
        self.cell = restored(cell) if isinstance(cell, Mapping) else cell
        self.readout = keras.layers.Dense(outputs, name="readout")
        self.head = None
        if self.rule is not None:
            bias = keras.initializers.Constant(halting_bias)
            self.head = keras.layers.Dense(1, bias_initializer=bias, name="halting")
        self._baseline = latent_losses.make_baseline(self.rule)

    def get_config(self):
        return {
            **self._made_with,
            "cell": saved(self.cell),
            "max_steps": self.max_steps,
            "tau": self.tau,
            "name": self.name,
            **(self.rule.get_config() if self.rule is not None else {}),
        }

    def training_state(self) -> dict[str, tf.Variable]:
        """As of `Network`."""
        return {} if self._baseline is None else self._baseline.variables()

    @tf.autograph.experimental.do_not_convert
    def call(self, x, training=None, return_end_points=False, seed=None):
        """Runs the network.

        Args:
            x: [batch, time, features]; the number of time steps must be known.
            training: As of the rule.
            return_end_points: Whether more is returned than the output.
            seed: int32 [2], of rules that draw; None: one is drawn.

        Returns:
            Outputs [batch, time, outputs]; and where asked for, `num_units` int32,
            `ponder_cost` float32, [batch, time]; of rules that know it `log_prob`
            [batch], or of those that average losses [batch, time, n], with `states` [n,
            batch, time, units] in training.
        """
        if seed is None and self.rule is not None and self.rule.needs_seed(training):
            seed = tf.random.uniform([2], maxval=tf.int32.max, dtype=tf.int32)
        states = self.cell.get_initial_state(batch_size=tf.shape(x)[0], dtype=x.dtype)
        single = not tf.nest.is_nested(states)
        states = [states] if single else list(states)
        times = []
        for t, x_t in enumerate(tf.unstack(x, axis=1)):
            folded = None
            if seed is not None:
                folded = tf.random.experimental.stateless_fold_in(seed, t)
            states, results = self._ponder(x_t, states, training, folded)
            times.append((states[0], results))
        outputs = self.readout(tf.stack([state for state, _ in times], 1))
        end_points = self._end_points([results for _, results in times], training)
        if self.rule is not None:
            self.add_loss(self._halting_loss([results for _, results in times]))
        return (outputs, end_points) if return_end_points else outputs

    def _update(self, x_t, states, is_first):
        """Updates the state once; returns what comes of it."""
        flag = tf.fill([tf.shape(x_t)[0], 1], tf.cast(is_first, x_t.dtype))
        _, states = self.cell(tf.concat([flag, x_t], 1), states)
        return list(states) if tf.nest.is_nested(states) else [states]

    def _ponder(self, x_t, states, training, seed):
        """Makes all updates of a time step; returns the next state, and results."""
        if self.rule is None:
            for n in range(self.max_steps):
                states = self._update(x_t, states, n == 0)
            units = tf.fill([tf.shape(x_t)[0]], self.max_steps)
            return states, {"num_units": units, "cost": tf.cast(units, tf.float32)}
        state = self.rule.initial([tf.shape(x_t)[0]])
        total = [tf.zeros_like(part) for part in states]
        carried = (states, total, state)
        outputs = None
        if self.rule.is_hard(training):
            carried = self._while_active(x_t, carried, training, seed)
        else:
            outputs = []
            for n in range(self.max_steps):
                carried = self._step(x_t, carried, n, training, seed)
                outputs.append(carried[0][0])
        _, total, state = carried
        return total, {
            "state": state,
            "num_units": state.num_units,
            "cost": self.rule.cost(state),
            "outputs": outputs,
        }

    def _while_active(self, x_t, carried, training, seed):
        """Makes updates until everything has stopped; the last one stops the rest."""
        # A while loop is slow to differentiate, and so begins late.
        unrolled = min(_UNROLLED, self.max_steps)
        for n in range(unrolled):
            carried = self._step(x_t, carried, n, training, seed)
        if unrolled == self.max_steps:
            return carried

        def goes_on(n, carried):
            return (n < self.max_steps - 1) & tf.reduce_any(carried[2].active)

        def step(n, carried):
            return n + 1, self._step(x_t, carried, n, training, seed, is_last=False)

        _, carried = tf.while_loop(goes_on, step, (unrolled, carried))
        return tf.cond(
            tf.reduce_any(carried[2].active),
            lambda: self._step(x_t, carried, self.max_steps - 1, training, seed),
            lambda: carried,
        )

    def _step(self, x_t, carried, n, training, seed, is_last=None):
        """Makes update n, from 0."""
        states, total, state = carried
        if is_last is None:
            is_last = n == self.max_steps - 1
        states = self._update(x_t, states, tf.equal(n, 0))
        score, options = None, {}
        if not is_last:
            score = tf.cast(self.head(states[0])[:, 0], tf.float32)
            if not self.rule.reads_logits:
                score = tf.sigmoid(score)
        if self.rule.needs_seed(training):
            options["seed"] = tf.random.experimental.stateless_fold_in(seed, n)
        weight, state = self.rule.step(
            state, score, is_last, training=training, **options
        )
        total = [
            sum_ + tf.cast(weight, part.dtype)[:, tf.newaxis] * part
            for sum_, part in zip(total, states)
        ]
        return states, total, state

    def _halting_loss(self, times):
        """Returns what the rule adds to the loss, averaged over batch and time."""
        tau = self.tau if self.rule.is_charged else 0.0
        loss = tau * tf.reduce_mean(tf.stack([results["cost"] for results in times]))
        own = [self.rule.loss(results["state"]) for results in times]
        return loss if own[0] is None else loss + tf.reduce_mean(tf.stack(own))

    def _end_points(self, times, training):
        def stacked(values):
            return tf.stack(values, 1)

        end_points = {
            "num_units": stacked([results["num_units"] for results in times]),
            "ponder_cost": stacked([results["cost"] for results in times]),
        }
        if self.rule is None:
            return end_points
        log_probs = [self.rule.log_prob(r["state"], training) for r in times]
        if log_probs[0] is None:
            return end_points
        if training and self.rule.averages_losses:
            end_points["log_prob"] = stacked(log_probs)
            outputs = [tf.stack(results["outputs"]) for results in times]
            end_points["states"] = tf.stack(outputs, 2)
        else:
            end_points["log_prob"] = tf.add_n(log_probs)
        return end_points

    def train_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            outputs, end_points = self(x, training=True, return_end_points=True)
            loss = self._training_loss(x, y, outputs, end_points, sample_weight)
        self.optimizer.minimize(loss, self.trainable_variables, tape=tape)
        return self.compute_metrics(x, y, outputs, sample_weight)

    def _training_loss(self, x, y, outputs, end_points, sample_weight):
        """As of `Network`."""
        if self.rule is not None and self.rule.averages_losses:
            return self.compute_loss(
                x,
                *latent_losses.averaged_over_units(
                    end_points["states"],
                    end_points["log_prob"],
                    self.readout,
                    y,
                    sample_weight,
                ),
            )
        loss = self.compute_loss(x, y, outputs, sample_weight)
        if self._baseline is None:
            return loss
        losses = latent_losses.per_example_losses(self.loss, y, outputs)
        losses = tf.reduce_mean(tf.reshape(losses, [tf.shape(x)[0], -1]), 1)
        costs = [(self.tau, end_points["ponder_cost"])]
        term = latent_losses.reinforce_term(
            x, losses, costs, [end_points["log_prob"]], self._baseline
        )
        return loss + term / tf.distribute.get_strategy().num_replicas_in_sync
