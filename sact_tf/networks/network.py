"""What every network here does: end points, metrics, executions, and serving."""

from __future__ import annotations

import types
from typing import NamedTuple

import tensorflow as tf
import tf_keras as keras

from sact_tf import keras3, latent_losses
from sact_tf.layers import policy_of
from sact_tf.networks.options import NetworkOptions


class BlockSpec(NamedTuple):
    """What a block's output looks like.

    Attributes:
        name: Of the block.
        num_units: Units it may run.
        channels: Of its output.
        stride: Pixels of the image from one position of its output to the next.
    """

    name: str
    num_units: int
    channels: int
    stride: int


class Network(keras.Model):
    """A network of blocks that may decide how many of their units to run.

    Maps images [batch, height, width, 3] of any size to logits [batch, num_classes].
    Its losses hold the weight decay and tau times the mean ponder cost of every block.
    Compiled with a loss on logits, `fit` and `evaluate` also report the mean units per
    block and FLOPs; `AdaptivityMetrics` does that where it is a layer of another model.

    Images must be finite. The network does not look: max pooling turns NaN into finite
    numbers, and so an image of NaN may give finite logits that mean nothing.

    A subclass makes `blocks`, calls `_finish`, and defines `block_specs`, `run_blocks`,
    `_classify`, `loss_function` and `default_learning_rate`.

    Args:
        options: What it is made with.
        name: Keras name of the model.
        **kwargs: Of `keras.Model`, such as `dtype`, a mixed precision policy.

    Attributes:
        options: The same.
        blocks: The block layers.
        card: Of a network that `sact_tf.load` loaded, its `sact_tf.zoo.Card`.
    """

    card = None

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        keras3.explain_loading(cls.__name__)

    def __init__(self, options: NetworkOptions, name: str | None = None, **kwargs):
        super().__init__(name=name, **kwargs)
        # In namespaces, where Keras does not look for layers and variables.
        self._made_with = types.SimpleNamespace(options=options)
        self._tracked = types.SimpleNamespace(
            metrics=[], reports=False, target=None, baseline=None, is_frozen=False
        )

    def _finish(self):
        """Makes metrics and variables, once all layers are there."""
        names = [f"{block.name}/units" for block in self.blocks if block.is_adaptive]
        self._tracked.metrics = [
            keras.metrics.Mean(name=name, dtype="float64") for name in [*names, "flops"]
        ]
        with policy_of(self), tf.name_scope(self.name):
            self.build([None, None, None, 3])
        self._tracked.baseline = latent_losses.make_baseline(self.options.make_rule())

    @property
    def baseline(self) -> latent_losses.RewardBaseline | None:
        """The baseline of REINFORCE, where the halting rule is trained by that."""
        return self._tracked.baseline

    def training_state(self) -> dict[str, tf.Variable]:
        """Returns what training keeps beside weights, by its names in checkpoints."""
        return {} if self.baseline is None else self.baseline.variables()

    @property
    def options(self) -> NetworkOptions:
        """What the network was made with."""
        return self._made_with.options

    @property
    def execution(self) -> str:
        """How blocks run in inference."""
        return self.options.execution

    def get_config(self):
        policy = keras.layers.Layer.get_config(self)["dtype"]
        return {**self.options.get_config(), "name": self.name, "dtype": policy}

    def with_execution(
        self, execution: str | None, precision: str | None = None
    ) -> Network:
        """Returns this network, or a copy of it that runs another way.

        Args:
            execution: One of `EXECUTIONS`; None: its own.
            precision: One of `custom_ops.PRECISIONS`; None: its own.

        Raises:
            ValueError: If the network cannot run that way.
        """
        changes = {"execution": execution, "precision": precision}
        return self.with_options(
            **{name: value for name, value in changes.items() if value is not None}
        )

    def with_options(self, **changes) -> Network:
        """Returns this network, or a copy with the same weights and other options.

        Args:
            **changes: Options that leave the weights as they are.
        """
        config = self.get_config()
        if all(config.get(name) == value for name, value in changes.items()):
            return self
        copy = type(self).from_config({**config, **changes})
        copy.set_weights(self.get_weights())
        copy.card = self.card
        return copy

    def export_saved_model(self, path: str, **options) -> str:
        """Exports for serving; see `sact_tf.exporting.export_saved_model`."""
        from sact_tf import exporting  # which imports what few networks need

        return exporting.export_saved_model(self, path, **options)

    @property
    def block_scopes(self) -> list[str]:
        """Names of the blocks."""
        return [block.name for block in self.blocks]

    @property
    def block_specs(self) -> list[BlockSpec]:
        """Channels and stride of every block's output."""
        raise NotImplementedError

    @staticmethod
    def preprocess(image: tf.Tensor, size: int | None = None) -> tf.Tensor:
        """Preprocesses an image as in evaluation.

        Args:
            image: uint8 [height, width, 3].
            size: Side of the result; None: the original's.

        Returns:
            float32 [size, size, 3].
        """
        raise NotImplementedError

    def loss_function(self, label_smoothing: float = 0.0) -> keras.losses.Loss:
        """Returns the loss of logits and labels that training minimizes."""
        raise NotImplementedError

    def default_learning_rate(
        self, max_number_of_steps: int | None, num_examples: int, batch_size: int
    ) -> keras.optimizers.schedules.LearningRateSchedule:
        """Returns the schedule of learning rates that training takes by default."""
        raise NotImplementedError

    def compile(self, optimizer="rmsprop", loss=None, metrics=None, **options):
        """As of `keras.Model`; what is of Keras 3 is refused by name."""
        keras3.refuse([optimizer], "optimizer")
        keras3.refuse(tf.nest.flatten([loss, metrics]), "loss, metrics")
        super().compile(optimizer, loss, metrics, **options)

    def fit(self, *args, callbacks=None, **options):
        """As of `keras.Model`; callbacks of Keras 3 are refused by name."""
        keras3.refuse(tf.nest.flatten([callbacks]), "callbacks")
        return super().fit(*args, callbacks=callbacks, **options)

    def steer(self, target) -> None:
        """Lets a `TargetFlops` see operations and change tau, from now on.

        Args:
            target: The callback; None: tau alone counts again.
        """
        self._tracked.target = target
        for block in self.blocks:
            if block.is_adaptive:
                block.steer(None if target is None else target.factor)
        self.train_function = None  # which was traced without it

    def freeze_moments(self, is_frozen: bool = True) -> None:
        """Sets whether training normalizes with stored moments, and keeps them.

        For fine-tuning. Scales and shifts of batch normalizations train all the same.
        Moments of batches are over all positions, halted ones included; with stored
        ones training skips what its `execution` skips.

        Args:
            is_frozen: Whether it does, from the next function traced on.
        """
        self._tracked.is_frozen = is_frozen
        self.train_function = None  # which was traced otherwise

    def dense_flops(self, images: tf.Tensor, num_units: int | None = None) -> tf.Tensor:
        """Counts what the network would take if all its units ran everywhere.

        Args:
            images: [batch, height, width, 3]; only the shape counts.
            num_units: Only of the first units of each block; None: of all.

        Returns:
            int64 [batch].
        """
        raise NotImplementedError

    def run_blocks(
        self,
        images: tf.Tensor,
        training: bool | None = None,
        return_end_points: bool = False,
        sizes: tf.Tensor | None = None,
        num_blocks: int | None = None,
        seed: tf.Tensor | None = None,
        trains_rule: bool | None = None,
    ) -> tuple[tf.Tensor, dict[str, object]]:
        """Runs the network up to a block, without what comes after.

        For layers and models that put something else there. To be called from the
        `call` of one that has the blocks among its layers, for their losses to be its.

        Args:
            images: Float [batch, height, width, 3], preprocessed.
            training: Whether batch statistics are used, and moving averages updated.
            return_end_points: Whether the blocks are asked for more than their output.
            sizes: int32 [batch, 2], heights and widths of images of several sizes, each
                at the top left of its place in the batch; an image then gets what it
                would get alone. None: no image is padded.
            num_blocks: How many blocks are run; None: all.
            seed: int32 [2], of networks that halt at random; None: one is drawn.
            trains_rule: Whether halting rules do what they do in training; None: that
                is so where `training` is.

        Returns:
            The last block's output, before any normalization, and the end points: the
            output of every block by its name, `inputs`, `block_scopes` and
            `block_num_units`; where asked for, also `flops` and `<block>/...` as in
            `with_end_points`, of what was run; given `sizes`, also `valid`, bool
            [batch, h, w], where the output lies inside of images, and `dense_flops`,
            int64 [batch], what an ordinary network would take.

        Raises:
            tf.errors.InvalidArgumentError: Images are padded, and the network's
                execution cannot tell padding apart.
        """
        raise NotImplementedError

    def _classify(
        self, x: tf.Tensor, training: bool | None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Maps the last block's output to logits, and FLOPs per image int64 [batch]."""
        raise NotImplementedError

    # Nothing below is for AutoGraph to convert, and its conversion takes longer than
    # all the rest of tracing.
    @tf.autograph.experimental.do_not_convert
    def call(
        self,
        images,
        training=None,
        return_end_points=False,
        seed=None,
        trains_rule=None,
    ):
        asks = return_end_points or self._tracked.reports
        options = {} if seed is None else {"seed": seed}
        if trains_rule is not None:
            options["trains_rule"] = trains_rule
        x, end_points = self.run_blocks(images, training, asks, **options)
        logits, flops = self._classify(x, training)
        logits = tf.cast(logits, tf.float32) if x.dtype != tf.float64 else logits
        if not asks:
            return logits
        end_points["flops"] += flops
        end_points["predictions"] = tf.nn.softmax(tf.cast(logits, tf.float32))
        if "expected_flops" in end_points:
            end_points["expected_flops"] += tf.cast(flops, tf.float32)
        if self._tracked.reports:
            self._update_metrics(end_points)
        return (logits, end_points) if return_end_points else logits

    def with_end_points(
        self,
        images: tf.Tensor,
        training: bool | None = None,
        seed: tf.Tensor | None = None,
        **options,
    ) -> tuple[tf.Tensor, dict[str, object]]:
        """Runs the network and tells what happened inside.

        Args:
            images: Float [batch, height, width, 3], preprocessed.
            training: Whether batch statistics are used, and moving averages updated.
            seed: int32 [2], of networks that halt at random; None: one is drawn.
            **options: `trains_rule`, as of `run_blocks`.

        Returns:
            Logits [batch, num_classes] and the end points: `inputs`, `block_scopes` and
            `block_num_units` (lists), `flops` (int64 [batch]), `predictions` (float32
            [batch, num_classes], the softmax of the logits); for each block `<block>`
            (its output) and `<block>/...` as in `sact_tf.blocks`.
        """
        return self(
            images, training=training, return_end_points=True, seed=seed, **options
        )

    @property
    def metrics(self):
        own = [m for m in self._tracked.metrics if m not in self._metrics]
        return super().metrics + own

    def report_metrics(self, reports: bool) -> None:
        """Sets whether calls update units and FLOPs, as metrics of a model around it.

        Args:
            reports: Whether they do, from the next function traced on.
        """
        self._tracked.reports = reports
        others = [m for m in self._metrics if m not in self._tracked.metrics]
        self._metrics = others + (self._tracked.metrics if reports else [])

    def _update_metrics(self, end_points):
        for metric in self._tracked.metrics:
            key = metric.name.replace("/units", "/num_units")
            metric.update_state(tf.cast(end_points[key], tf.float64))

    def _logs(self, x, y, logits, end_points, sample_weight):
        logs = self.compute_metrics(x, y, logits, sample_weight)
        if not self._tracked.reports:
            self._update_metrics(end_points)
        return {**logs, **{m.name: m.result() for m in self._tracked.metrics}}

    def train_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        is_frozen = self._tracked.is_frozen
        options = {"trains_rule": True} if is_frozen else {}
        with tf.GradientTape() as tape:
            logits, end_points = self.with_end_points(
                x, training=not is_frozen, **options
            )
            loss = self._training_loss(x, y, logits, end_points, sample_weight)
        self.optimizer.minimize(loss, self.trainable_variables, tape=tape)
        logs = self._logs(x, y, logits, end_points, sample_weight)
        if self._tracked.target is None:
            return logs
        return {**logs, **self._tracked.target.observe(end_points, x)}

    def _training_loss(self, x, y, logits, end_points, sample_weight):
        """Returns the loss to differentiate, of whatever halting rule."""
        last = self.blocks[-1]
        if last.is_adaptive and last.rule.averages_losses:
            return self.compute_loss(
                x,
                *latent_losses.averaged_over_units(
                    end_points[f"{last.name}/states"],
                    end_points[f"{last.name}/log_prob"],
                    lambda x: tf.cast(
                        self._classify(x, not self._tracked.is_frozen)[0], logits.dtype
                    ),
                    y,
                    sample_weight,
                ),
            )
        loss = self.compute_loss(x, y, logits, sample_weight)
        if self.baseline is None:
            return loss
        losses = latent_losses.per_example_losses(self.loss, y, logits)
        blocks = [block for block in self.blocks if block.is_adaptive]
        term = latent_losses.reinforce_term(
            x,
            losses,
            [(b.current_tau(), end_points[f"{b.name}/ponder_cost"]) for b in blocks],
            [end_points[f"{b.name}/log_prob"] for b in blocks],
            self.baseline,
        )
        # Gradients of replicas are summed.
        return loss + term / tf.distribute.get_strategy().num_replicas_in_sync

    def test_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        logits, end_points = self.with_end_points(x, training=False)
        self.compute_loss(x, y, logits, sample_weight)
        return self._logs(x, y, logits, end_points, sample_weight)


class AdaptivityMetrics(keras.callbacks.Callback):
    """Reports units and FLOPs of a network that is a layer of the model being fit.

    Logs hold `<block>/units` for every adaptive block and `flops`, as those of a
    network that is fit itself.

        network = sact_tf.cifar_resnet(model_type="sact")
        model = keras.Sequential([augmentation, network])
        model.fit(images, labels, callbacks=[sact_tf.AdaptivityMetrics(network)])

    Args:
        network: The layer.
    """

    def __init__(self, network: Network):
        super().__init__()
        self._network = network
        self._trains = False

    def set_model(self, model):
        super().set_model(model)
        if model is not self._network and not self._network._tracked.reports:
            self._switch(True)

    def _switch(self, reports):
        self._network.report_metrics(reports)
        # Functions that were traced before do not know of it.
        self.model.train_function = None
        self.model.test_function = None

    def on_train_begin(self, logs=None):
        self._trains = True

    def on_train_end(self, logs=None):
        self._trains = False
        self._stop()

    def on_test_end(self, logs=None):
        if not self._trains:
            self._stop()

    def _stop(self):
        if self.model is not self._network:
            self._switch(False)
