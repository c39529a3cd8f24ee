"""Keras layers that run a list of residual units under a halting rule.

A block is made of parts that know little of each other: units (`sact_tf.units`), a
halting rule, what it halts and the heads that score it (`sact_tf.halting`), and the way
a step is computed (`sact_tf.executions`). A unit is any layer that keeps the shape of
its input, but for the block's first; `Unit` says what it may do beside that. A layer
that stands in the list several times shares its weights, and its head, over steps.

Images of several sizes share a batch by padding: `block(x, valid=mask)` tells which
positions [batch, height, width] of x lie inside of their image. The others cost nothing
and are not counted, and an image gets what it would get alone. This needs masked
execution, and units that take `valid`, as `BottleneckUnit` does.

Every block returns its output, or with `return_end_points=True` the output and a
dictionary, where S is [batch] for images and [batch, height, width] for positions:

| key | value |
|---|---|
| `flops` | int64 [batch], where all units count their operations |
| `ponder_cost` | float32 S (adaptive blocks, as all below) |
| `num_units` | int32 S |
| `halting_distribution` | float32 [*S, n], weights of the n units' outputs |
| `unit_k/halting_proba` | float32 [*S, 1], what the rule read of unit k's head |

Some rules add `log_prob`, float32 [batch]: log q of where an image has stopped (or
[batch, n], of all its units); `expected_flops`, float32 [batch]: each unit times the
probability that it runs; and in training `states`, [n, batch, height, width, channels]:
the outputs of all units.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from sact_tf import native_blocks
from sact_tf.executions import EXECUTIONS, Step
from sact_tf.halting import (
    HaltingDomain,
    HaltingRule,
)
from sact_tf.halting.domain import get_domain
from sact_tf.halting.heads import HaltingHead, head_flops
from sact_tf.layers import (
    BatchNorm,
    MadeLike,
    build_child,
    policy_of,
    restored,
    saved,
)
from sact_tf.plain_block import (
    Block,
    first_scopes,
    given_masks,
    sum_flops,
)
from sact_tf.units.unit import OrdinaryUnit, Unit, saved_unit

_IMPOSED_LOGIT = 30.0  # a score of 1 in float32, and of 0 for any rule


@keras.utils.register_keras_serializable("sact_tf")
class AdaptiveBlock(Block):
    """Runs its residual units under a halting rule.

    Adds `tau` times the mean ponder cost to the losses.

    Args:
        units: Non-empty list of residual units.
        rule: The halting rule.
        domain: What halts: "image" or "position".
        tau: Weight of the ponder cost, at least 0.
        head: Class or function `head(batch_norm, weight_decay, name)` that makes the
            layer that scores a unit's output (see `sact_tf.halting.heads`); called for
            every unit but the last, and once for units that share their weights. None:
            the domain's own.
        execution: One of `EXECUTIONS`; "tiled" with a `tile_size` above 1.
        batch_norm: Makes the batch normalizations of the heads, given a name.
        weight_decay: L2 coefficient of the heads.
        tile_size: With domain "position", side k of the square tiles whose positions
            share their mean halting score, and so halt together (SACT, section 2.3).
        early_stopping: Whether units are skipped at run time once everything in the
            batch has halted. The results are the same; time is saved.
        group_grid: With domain "position": g lets the positions of every one of g x g
            equal rectangles share their mean score, and so halt together; g must divide
            the map. None: each position alone.
        name: Keras name of the layer.
        precision: One of `custom_ops.PRECISIONS`, of what units multiply in perforated
            execution. Other executions, and training, are float32 whatever it is.

    Raises:
        ValueError: On any other value, naming the argument; or (when built) on units
            after the first that do not keep their input's shape.
    """

    def __init__(
        self,
        units: Sequence[keras.layers.Layer],
        rule: HaltingRule,
        domain: str | HaltingDomain = "position",
        tau: float = 0.01,
        head: Callable[..., keras.layers.Layer] | Mapping[str, Any] | None = None,
        execution: str = "masked",
        batch_norm: Callable[..., keras.layers.Layer] | None = None,
        weight_decay: float = 0.0,
        tile_size: int = 1,
        early_stopping: bool = False,
        name: str | None = None,
        group_grid: int | None = None,
        precision: str = "float32",
        **kwargs,
    ):
        domain = get_domain(domain, group_grid)
        executions = EXECUTIONS if domain.has_tiles else EXECUTIONS[:2]
        super().__init__(units, execution, executions, name, precision, **kwargs)
        if not isinstance(rule, HaltingRule):
            raise ValueError(f"rule must be a HaltingRule; got {rule!r}")
        if not tau >= 0:
            raise ValueError(f"tau must be a number >= 0, got {tau}")
        at_least = 2 if execution == "tiled" else 1
        if tile_size != int(tile_size) or tile_size < at_least:
            raise ValueError(
                f"tile_size must be an integer >= {at_least} with execution="
                f"{execution!r}; got {tile_size}"
            )
        if tile_size > 1 and not domain.has_tiles:
            groups = "" if group_grid is None else f" and group_grid={group_grid}"
            raise ValueError(
                f"tile_size must be 1 with domain={domain.name!r}{groups}; got "
                f"{tile_size}"
            )
        if rule.averages_losses and domain.name != "image":
            raise ValueError(
                f"domain must be 'image' with {type(rule).__name__}; got "
                f"{domain.name!r}"
            )
        self.rule = rule
        self.domain = domain
        self.group_grid = group_grid
        self.tau = tau if rule.is_charged else 0.0
        self.tile_size = int(tile_size)
        self.early_stopping = early_stopping
        self._imposed = None
        # In a namespace, where Keras does not look for variables.
        self._steered = types.SimpleNamespace(factor=None)
        if isinstance(head, Mapping):
            head = MadeLike(head)
        self.heads = self._make_heads(
            head or domain.default_head, batch_norm or _batch_norm, weight_decay
        )

    def _make_heads(self, head, batch_norm, weight_decay):
        made = {}
        with policy_of(self):
            for k, unit in enumerate(self.units[:-1], 1):
                if id(unit) not in made:
                    name = f"unit_{k}_halting_proba"
                    made[id(unit)] = head(batch_norm, weight_decay, name=name)
        return [made[id(unit)] for unit in self.units[:-1]]

    @property
    def is_adaptive(self):
        return True

    @property
    def halts_as_a_whole(self) -> bool:
        """Whether images halt, rather than positions."""
        return self.domain.name == "image"

    @property
    def slim_scopes(self):
        heads = first_scopes("unit_{}/halting_proba", self.heads)
        return {**super().slim_scopes, **heads}

    def get_config(self):
        return {
            **super().get_config(),
            "rule": saved(self.rule),
            "domain": self.domain.name,
            "tau": self.tau,
            "head": saved_unit(self.heads[0]) if self.heads else None,
            "tile_size": self.tile_size,
            "early_stopping": self.early_stopping,
            "group_grid": self.group_grid,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        if "rule" in config:
            config["rule"] = restored(config["rule"])
        return super().from_config(config)

    def build(self, input_shape):
        shapes = self._build_units(input_shape)
        for k, shape in enumerate(shapes[1:], 2):
            if shape.rank != 4 or not shape.is_compatible_with(shapes[0]):
                raise ValueError(
                    f"units after the first must keep the shape [batch, height, width, "
                    f"channels] of their input: unit {k} ({self.units[k - 1].name}) "
                    f"maps {shapes[k - 2]} to {shape}"
                )
        for head, shape in zip(self.heads, shapes):
            build_child(head, shape)
        super().build(input_shape)

    def impose_units(self, units: tf.Tensor | Callable[[int, int], Any] | None) -> None:
        """Makes everything halt where it is told to, from the next call on.

        Heads run all the same, so that they are paid for; what they say is then
        overridden. For benchmarks, and functions that are traced after this.

        Args:
            units: How many units run, ints of shape S or one that broadcasts to it,
                such as [height, width]; or a function from height and width of the
                features, which must be known when it is called, to that. None: heads
                decide again.
        """
        self._imposed = units

    def steer(self, factor: tf.Variable | None) -> None:
        """Multiplies tau by a variable, in functions that are traced after this.

        Args:
            factor: Float []; None: tau alone counts.
        """
        self._steered.factor = factor

    def current_tau(self) -> float | tf.Tensor:
        """Returns tau, times the factor that steers it."""
        factor = self._steered.factor
        return self.tau if factor is None else self.tau * factor.read_value()

    def call(
        self,
        x,
        training=None,
        return_end_points=False,
        valid=None,
        seed=None,
        trains_rule=None,
    ):
        rule = self.rule
        # Batch normalization may be kept from training where the rule is not.
        trains = training if trains_rule is None else trains_rule
        is_hard = rule.is_hard(trains)
        run = self._run(
            self.domain, training, valid, is_masked=not is_hard, trains=bool(trains)
        )
        native = native_blocks.parameters(self, run, x.dtype)
        if native is not None:
            return self._call_native(x, run, native, return_end_points)
        inputs, state, output = x, None, None
        weights, scores, flops, expected, outputs = [], [], [], [], []
        if seed is None and rule.needs_seed(trains):
            seed = tf.random.uniform([2], maxval=tf.int32.max, dtype=tf.int32)

        for k, unit in enumerate(self._steps()):
            before = self._before(k, inputs, state, valid, trains)

            def step(unit=unit, before=before, x=x, state=state, output=output):
                return self._step(unit, run, before, x, state, output, trains, seed)

            def skip(x=x, state=state, output=output):
                zeros = tf.zeros(self.domain.shape(x))
                return x, state, output, zeros, zeros

            unit_input, survival = x, None
            if state is not None and not is_hard:
                survival = rule.survival(state, trains)
            if k and self.early_stopping and run.is_masked and is_hard:
                x, state, output, weight, score = tf.cond(
                    tf.reduce_any(before.active), step, skip
                )
            else:
                x, state, output, weight, score = step()
            valid = unit.valid_after(valid)
            weights.append(weight)
            scores.append(score)
            if trains and rule.averages_losses:
                outputs.append(x)
            if return_end_points:
                counts = self._flops(unit, unit_input, x, before, valid)
                flops += counts
                expected.append((counts, survival))

        self._add_losses(state, valid)
        if not return_end_points:
            return output
        end_points = self._end_points(state, tf.stack(weights, axis=-1), scores, flops)
        end_points.update(self._of_random_rule(state, expected, outputs, valid, trains))
        return output, end_points

    def later_units(self) -> list[Unit | OrdinaryUnit]:
        """Returns the units after the first, as steps run them."""
        return self._steps()[1:]

    def _call_native(self, x, run, native, return_end_points):
        """As a call in inference, by one native operation after the first unit."""
        unit, before = self._steps()[0], Step(0, x, None, None)
        first = run.run(unit, x, before)
        results = run.run_later_units(
            first, *native, self.rule.epsilon, self._imposed_units(first)
        )
        state = native_blocks.final_state(results)
        self._add_losses(state, None)
        if not return_end_points:
            return results.output
        flops = self._flops(unit, x, first, before, None)
        flops += native_blocks.later_flops(self, results.counts)
        scores = [*tf.unstack(results.scores), None]
        return results.output, self._end_points(state, results.weights, scores, flops)

    def _add_losses(self, state, valid):
        cost = self.domain.mean(self.rule.cost(state), valid)
        self.add_loss(self.current_tau() * cost)
        own_loss = self.rule.loss(state)
        if own_loss is not None:
            self.add_loss(self.domain.mean(own_loss, valid))

    def _end_points(self, state, weights, scores, flops):
        """Returns what every rule tells; the last score is none."""
        end_points = {
            "ponder_cost": self.rule.cost(state),
            "num_units": state.num_units,
            "halting_distribution": weights,
            **sum_flops(flops),
        }
        for k, score in enumerate(scores[:-1], 1):
            end_points[f"unit_{k}/halting_proba"] = score[..., tf.newaxis]
        return end_points

    def _before(self, k, inputs, state, valid, trains):
        """Returns what unit k (from 0) is told; at first, everything is active."""
        if state is None:
            return Step(k, inputs, None, valid)
        if self.rule.is_hard(trains):
            return Step(k, inputs, state.active, valid)
        gate = self.rule.gate(state, trains)
        return Step(k, inputs, None, valid, gate)

    def _of_random_rule(self, state, expected, outputs, valid, trains):
        """Returns the end points of rules that know probabilities."""
        end_points = {}
        log_prob = self.rule.log_prob(state, trains)
        if log_prob is not None:
            end_points["log_prob"] = self.domain.total(log_prob, self.tile_size)
        if outputs:
            end_points["states"] = tf.stack(outputs)
        counts = [count for counts, _ in expected for count in counts]
        is_known = any(survival is not None for _, survival in expected)
        if is_known and not any(count is None for count in counts):
            end_points["expected_flops"] = self._expected_flops(expected, valid)
        return end_points

    def _expected_flops(self, expected, valid):
        """Sums what all units take, each times its mean survival in an image."""
        total = 0.0
        for counts, survival in expected:
            count = tf.cast(tf.add_n(counts), tf.float32)
            if survival is not None:
                count *= self.domain.per_image(survival, valid)
            total += count
        return total

    def _step(self, unit, run, before, x, state, output, trains, seed):
        """Runs a unit, and what comes with it.

        This is SACT, algorithms 1 and 2: a unit, its score, the halting rule, and the
        sum of the units' outputs.
        """
        k, unit_input = before.index, x
        x = run.run(unit, x, before, output)
        valid = unit.valid_after(before.valid)
        if state is None:
            state = self.rule.initial(self.domain.shape(x), self.domain.valid(valid))
        is_last = k == len(self.heads)
        score, drawn = None, {}
        if not is_last:
            head, after = self.heads[k], before._replace(valid=valid)
            residual = _residual(head, unit, k, unit_input, x)
            score = run.score(head, x, residual, after, self.rule.reads_logits)
            score = self.domain.share(score, self.tile_size, valid)
            score = self._impose(k, score, x)
        if seed is not None:
            seed = tf.random.experimental.stateless_fold_in(seed, k)
        if self.rule.reads_noise:
            needs_noise = not is_last and self.rule.needs_seed(trains)
            noise = self.domain.noise(x, seed, self.tile_size) if needs_noise else None
            drawn = {"noise": noise}
        weight, state = self.rule.step(
            state, score, is_last, training=trains, seed=seed, **drawn
        )
        output = run.add(output, weight, x, before)
        if score is None:  # a branch must return the same as its alternative
            score = tf.zeros(self.domain.shape(x))
        return x, state, output, weight, score

    def _impose(self, k, score, x):
        """Overrides the scores of unit k (from 0), where that is asked for."""
        units = self._imposed_units(x)
        if units is None:
            return score
        halts = self.domain.of_map(units) <= k + 1
        logits = self.rule.reads_logits
        low, high = (-_IMPOSED_LOGIT, _IMPOSED_LOGIT) if logits else (0.0, 1.0)
        # So little of the score that it changes nothing, but is not left out.
        return tf.where(halts, high, low) + 1e-6 * score

    def _imposed_units(self, x):
        """Returns how many units are imposed on features x, or None."""
        imposed = self._imposed
        if callable(imposed):
            imposed = imposed(*x.shape[1:3])
        return None if imposed is None else tf.cast(imposed, tf.int32)

    def _flops(self, unit, unit_input, x, before, valid):
        """Counts a unit and its head; `valid` is that of the output x."""

        def of_unit(active, valid):
            return unit.flops(unit_input, **given_masks(active, valid))

        counts = [self.domain.flops(of_unit, before.active, before.valid)]
        if before.index < len(self.heads):
            count = head_flops(self.heads[before.index])

            def of_head(active, valid):
                return count(x, **given_masks(active, valid))

            counts.append(self.domain.flops(of_head, before.active, valid))
        return counts


def _residual(head, unit, k, unit_input, x):
    """Returns what unit k (from 0) added to its input, for a head that reads it."""
    if isinstance(head, HaltingHead) and not head.reads_residual:
        return None
    if k == 0 and unit.starts_at_zero:
        return x
    keeps_shape = unit.output_stride() == 1 and unit_input.shape[-1] == x.shape[-1]
    return x - unit_input if keeps_shape else x


def _batch_norm(name):
    """The batch normalization of heads, unless a block is given another."""
    return BatchNorm(decay=0.99, epsilon=1e-3, name=name)
