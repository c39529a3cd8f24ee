"""What a halting rule is, and the registry of model types.

A rule says, after every unit of a block, how much of the unit's output goes into the
block's output and where the next unit still runs. It knows nothing of what halts
(`sact_tf.halting.domain`), of where its scores come from (`sact_tf.halting.heads`) or
of how units are computed (`sact_tf.executions`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf
import tf_keras as keras


class HaltingRule:
    """Interface of halting rules.

    A rule is configuration only, and changes nothing of itself when it is used. It has
    to define `initial`, `step` and `cost`. Its state is any `NamedTuple` of tensors
    with the two fields

    * `active`: bool of shape S, True where the next unit still runs,
    * `num_units`: int32 of shape S, how many units have run.

    S is the shape of what halts: [batch] for images, [batch, height, width] for
    positions. All attributes are arguments of the constructor, by the same names; that
    makes a rule serializable (or `get_config` says what to give the constructor).

    Attributes:
        reads_logits: Whether `step` is given the logit of a halting score rather than
            the score in [0, 1].
        is_random: Whether `step` needs a seed. A block that is called without one
            draws it.
        reads_noise: Whether `step` is given noise as well, see there.
        is_charged: Whether blocks add `tau` times the mean cost to the losses.
        averages_losses: Whether training averages the losses of all units' outputs, by
            `log_prob` [*S, n], rather than to take that of their weighted sum. Such a
            rule halts images, in the last block of a network only.
        scores_samples: Whether training takes the gradient of what is sampled from its
            `log_prob` (REINFORCE).
        test_modes: What its option `test_mode`, how it stops in inference, may be.
        baseline: Of REINFORCE, "average" or "linear"; see
            `sact_tf.latent_losses.RewardBaseline`.
    """

    reads_logits: bool = False
    is_random: bool = False
    reads_noise: bool = False
    is_charged: bool = True
    averages_losses: bool = False
    scores_samples: bool = False
    test_modes: Sequence[str] = ()
    baseline: str = "average"

    def initial(self, shape: Sequence[int] | tf.Tensor, valid: tf.Tensor | None = None):
        """Returns the state before the first unit.

        Args:
            shape: The shape S, a list of ints or an int tensor.
            valid: Bool of shape S; where it is False nothing ever runs and nothing is
                paid. None: it is True everywhere.
        """
        raise NotImplementedError(f"{type(self).__name__} must define initial")

    def step(
        self,
        state,
        score: tf.Tensor | None,
        is_last: bool,
        *,
        training: bool | None = False,
        seed: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, Any]:
        """Goes one unit further.

        Args:
            state: The state before the unit.
            score: What the head makes of the unit's output, float32 of shape S. None
                after the last unit, where everything halts.
            is_last: Whether the unit is the last of its block.
            training: Whether the network is being trained.
            seed: int32 [2], for a rule that `is_random`.
            noise: For a rule that `reads_noise`, which then has this argument too:
                float32 of shape S, uniform in (0, 1), drawn once for what shares its
                score (positions of a tile or a group).

        Returns:
            The weight of the unit's output in the block's output, float32 of shape S
            and zero where the unit did not run; and the new state.
        """
        raise NotImplementedError(f"{type(self).__name__} must define step")

    def cost(self, state) -> tf.Tensor:
        """Returns the ponder cost of a final state, float32 of shape S.

        A block adds `tau` times its mean to the losses, so it should be differentiable.
        """
        raise NotImplementedError(f"{type(self).__name__} must define cost")

    def needs_seed(self, training: bool | None) -> bool:
        """Returns whether `step` draws anything in training, or in inference."""
        return self.is_random

    def is_hard(self, training: bool | None) -> bool:
        """Returns whether what is not active needs no more computation.

        Otherwise blocks run all their units everywhere, whatever their execution.
        """
        return True

    def gate(self, state, training: bool | None) -> tf.Tensor | None:
        """Returns how much of what the next unit adds to its input is kept.

        For a rule that is not hard: float32 of shape S in [0, 1], 0 where nothing ever
        runs. None: all of it.
        """
        return None

    def survival(self, state, training: bool | None) -> tf.Tensor | None:
        """Returns the probability that the next unit runs, float32 of shape S.

        For a rule that is not hard; blocks then tell `expected_flops`. None: they do
        not.
        """
        return None

    def log_prob(self, state, training: bool | None) -> tf.Tensor | None:
        """Returns log q(z) of where it has stopped, float32 of shape S; None: unknown.

        Of a final state. A rule that `averages_losses` returns log q of all n units,
        [*S, n].
        """
        return None

    def loss(self, state) -> tf.Tensor | None:
        """Returns a loss of the rule's own, float32 of shape S; None: it has none.

        A block adds its mean to the losses, whatever `tau` is.
        """
        return None

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make this rule."""
        return dict(vars(self))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> HaltingRule:
        """Makes a rule of what `get_config` returned."""
        return cls(**config)

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        package = "sact_tf" if cls.__module__.startswith("sact_tf.") else cls.__module__
        keras.utils.register_keras_serializable(package)(cls)

    def __eq__(self, other):
        return type(self) is type(other) and self.get_config() == other.get_config()

    def __hash__(self):
        return hash((type(self), repr(self.get_config())))

    def __repr__(self):
        options = ", ".join(f"{k}={v!r}" for k, v in self.get_config().items())
        return f"{type(self).__name__}({options})"


@dataclasses.dataclass(frozen=True)
class ModelType:
    """A kind of network, by what its blocks do.

    Attributes:
        rule: Makes the halting rule from its options; None: all units run.
        domain: Name of what halts; see `sact_tf.halting.domain`.
        early_stopping: As of `sact_tf.AdaptiveBlock`.
        description: For the help of programs.
        last_block_only: Whether only the last block of a network halts; the others run
            all their units.
    """

    rule: Callable[..., HaltingRule] | None
    domain: str = "image"
    early_stopping: bool = False
    description: str = ""
    last_block_only: bool = False

    @property
    def is_adaptive(self) -> bool:
        """Whether blocks decide how many of their units to run."""
        return self.rule is not None

    def make_rule(self, name: str, options: Mapping[str, Any]) -> HaltingRule | None:
        """Makes the rule, None for a network that runs all units.

        Args:
            name: Of the model type, for messages.
            options: Arguments of the rule.

        Raises:
            ValueError: The rule does not take one of them.
        """
        if self.rule is None:
            if options:
                raise ValueError(
                    f"{next(iter(options))}: model_type {name!r} has no halting rule, "
                    "and takes no option of one"
                )
            return None
        try:
            return self.rule(**options)
        except TypeError as error:
            raise ValueError(
                f"model_type {name!r} makes a {self.rule.__name__} of its options; "
                f"got {dict(options)}: {error}"
            ) from error


_MODEL_TYPES: dict[str, ModelType] = {}


def register_model_type(name: str, model_type: ModelType) -> None:
    """Lets networks and programs be of a new type.

    >>> from sact_tf.halting import CumulativeHalting
    >>> patient = ModelType(lambda: CumulativeHalting(epsilon=0.001), "image")
    >>> register_model_type("patient_act", patient)
    >>> "patient_act" in model_types()
    True

    Args:
        name: What `model_type=` of networks is called with.
        model_type: What that means. It takes the place of an earlier one.
    """
    _MODEL_TYPES[name] = model_type


def model_types() -> tuple[str, ...]:
    """Returns the names of all model types, in the order they were registered."""
    return tuple(_MODEL_TYPES)


def model_type(name: str) -> ModelType:
    """Returns a model type.

    Raises:
        ValueError: There is none of that name.
    """
    if name not in _MODEL_TYPES:
        raise ValueError(
            f"model_type must be one of {', '.join(_MODEL_TYPES)}; got {name!r}"
        )
    return _MODEL_TYPES[name]


class CountingState(NamedTuple):
    """The least that a rule's state holds.

    Attributes:
        active: Bool, True where the next unit still runs.
        num_units: int32, units run so far.
    """

    active: tf.Tensor
    num_units: tf.Tensor


register_model_type(
    "vanilla", ModelType(None, description="an ordinary network, all units run")
)
