"""Training: runs that go on after any kill, on one device or many, and summaries."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import time
from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf
import tf_keras as keras

from sact_tf import checkpoints, keras3, run_control, visualization
from sact_tf.data.examples import Examples
from sact_tf.data.imagenet import ImageExamples
from sact_tf.end_points import ADAPTIVE_METRICS, metric_values
from sact_tf.networks.network import Network
from sact_tf.optimization import Momentum
from sact_tf.progress import Progress
from sact_tf.run_control import Interruption
from sact_tf.summaries import Summaries
from sact_tf.target_flops import TargetFlops

_ENDLESS_EPOCHS = 1_000_000
_KEPT_CHECKPOINTS = 5
_TARGET_IMAGES = 256
# Steps between looks at what the workers of a parameter server do.
_ASYNCHRONOUS_STEPS = 50


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and which checkpoint is good."""


def keep_freed_memory() -> None:
    """Makes the C library keep the memory of freed tensors.

    TensorFlow allocates CPU tensors with malloc, which by default maps and unmaps large
    ones, so that every training step faults their pages in anew. Call this before the
    first tensor is made; it works on glibc, and elsewhere does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    m_trim_threshold, m_top_pad, m_mmap_max, m_arena_max = -1, -2, -4, -8
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, 2**31 - 1)
    mallopt(m_top_pad, 2**28)
    mallopt(m_arena_max, 1)


def _value(strategy: tf.distribute.Strategy, variable: tf.Variable) -> np.ndarray:
    """Returns a variable's value, the mean of this process's replicas if they differ.

    Involves no other process: the chief may save when it wants to.
    """
    replicas = strategy.experimental_local_results(variable)
    if variable.synchronization != tf.VariableSynchronization.ON_READ:
        replicas = replicas[:1]
    values = [replica.numpy() for replica in replicas]
    return values[0] if len(values) == 1 else np.mean(values, axis=0)


class TrainingState:
    """The network, the optimizer's variables and the step, saved together.

    Checkpoints are TF-Slim checkpoints as the original code writes them, so that both
    can go on from either's, and `load_slim_checkpoint` reads the network alone.

    Args:
        model: Compiled with any optimizer of `tf_keras`.
        directory: Where checkpoints are kept, the last five of them.
        others: Variables beside, by their names; checkpoints may lack them.
    """

    def __init__(
        self,
        model: keras.Model,
        directory: str,
        others: Mapping[str, tf.Variable] | None = None,
    ):
        self._directory = directory
        self._strategy = model.distribute_strategy
        # A float16 network's optimizer is wrapped in one that scales the loss.
        optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
        self._step = optimizer.iterations
        optimizer.build(model.trainable_variables)
        network = checkpoints.slim_variables(model)
        slots = checkpoints.optimizer_variables(optimizer, network)
        self._network = list(network)
        own = model.training_state() if hasattr(model, "training_state") else {}
        self._variables = {**network, **slots, **own}
        self._others = {f"optimizer/{k}": v for k, v in (others or {}).items()}
        self._form = checkpoints.form_of(model)

    @property
    def step(self) -> int:
        """Steps made."""
        return int(self._step.numpy())

    @property
    def latest(self) -> str | None:
        """Prefix of the newest complete checkpoint in the directory."""
        return checkpoints.newest_checkpoint(self._directory)

    def restore(self) -> bool:
        """Goes back to the newest checkpoint, if there is one.

        Raises:
            CheckpointMismatchError: It is another network's.
            ValueError: It is of a network of another form.
            FileNotFoundError: There are checkpoints, and none is complete.
        """
        latest = self.latest
        if latest is None:
            return False
        _, reader = checkpoints.open_checkpoint(latest)
        checkpoints.form_in(reader).check(latest, self._form)
        variables = {**self._variables, "global_step": self._step}
        stored = {n: v for n, v in self._others.items() if reader.has_tensor(n)}
        variables.update(stored)
        checkpoints.restore_variables(latest, variables)
        return True

    def save(self) -> str:
        """Writes a checkpoint and returns its prefix.

        Raises:
            TrainingError: A weight is not finite; nothing is written.
        """
        values = {
            name: _value(self._strategy, v)
            for name, v in {**self._variables, **self._others}.items()
        }
        if not all(np.isfinite(values[name]).all() for name in self._network):
            raise self.diverged("weights")
        values.update(checkpoints.form_tensors(self._form))
        prefix = os.path.join(self._directory, f"model.ckpt-{self.step}")
        return checkpoints.write_tensors(prefix, values, self.step, _KEPT_CHECKPOINTS)

    def diverged(self, what: str) -> TrainingError:
        """Returns the error that tells that loss or weights are no longer finite."""
        return TrainingError(
            f"NaN or infinite {what} at step {self.step}; training stopped. "
            f"Last good checkpoint: {self.latest or 'none'}"
        )


def _is_done(state: TrainingState, max_number_of_steps: int | None) -> bool:
    return max_number_of_steps is not None and state.step >= max_number_of_steps


class _Checkpoints(keras.callbacks.Callback):
    """Stops at the last step, on a signal or on a loss not finite; saves by time."""

    def __init__(
        self,
        state: TrainingState,
        max_number_of_steps: int | None,
        secs: float,
        interruption: Interruption,
    ):
        super().__init__()
        self._state = state
        self._max_number_of_steps = max_number_of_steps
        self._secs = secs
        self._interruption = interruption
        self._saved = time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        # The logged loss is a running mean, which keeps any value that is not finite.
        if not abs(logs["loss"]) < float("inf"):
            raise self._state.diverged("loss")
        if self._interruption.signal is not None or _is_done(
            self._state, self._max_number_of_steps
        ):
            self.model.stop_training = True
        elif time.monotonic() - self._saved >= self._secs:
            self._save()
            self._saved = time.monotonic()

    def _save(self):
        if self.model.distribute_strategy.extended.should_checkpoint:
            self._state.save()

    def on_train_end(self, logs=None):
        self._save()


class _Summaries(Summaries):
    """Writes summaries of running means, and of a fixed batch of training images."""

    def __init__(self, state: TrainingState, directory: str, probe, secs: float):
        super().__init__(state, directory, secs)
        self._images, self._labels = probe

    def write(self, logs):
        scalars, metrics, heatmaps = self.on_one_replica(self._measure)
        scalars["Learning Rate"] = self.model.optimizer.learning_rate
        for name, value in scalars.items():
            tf.summary.scalar(name, value)
        for name, values in metrics.items():
            values = tf.cast(values, tf.float32)
            tf.summary.scalar(f"{name}_mean", tf.reduce_mean(values))
            tf.summary.scalar(f"{name}_std", tf.math.reduce_std(values))
            if name.endswith("/num_units"):  # units above it are dead
                tf.summary.scalar(f"{name}_max", tf.reduce_max(values))
            tf.summary.histogram(name, values)
        for name, heatmap in heatmaps.items():
            tf.summary.image(f"heatmaps/{name}", heatmap)

    def _measure(self):
        """Runs the network; returns losses, metrics per image, and heat maps."""
        logits, end_points = self.model.with_end_points(self._images, training=False)
        heatmaps = {}
        if visualization.has_maps(end_points):
            for key in ADAPTIVE_METRICS:
                heatmaps[key] = visualization.heatmap(end_points, key, num_images=3)
        return self._losses(logits, end_points), metric_values(end_points), heatmaps

    def _losses(self, logits, end_points):
        cross_entropy = self.model.loss(self._labels, logits)
        others = tf.add_n(self.model.losses)
        ponder = sum(
            block.current_tau()
            * tf.reduce_mean(end_points[f"{block.name}/ponder_cost"])
            for block in self.model.blocks
            if block.is_adaptive
        )
        return {
            "Total Loss": cross_entropy + others,
            "losses/cross_entropy": cross_entropy,
            "losses/ponder_cost_times_tau": ponder,
            "losses/regularization": others - ponder,
        }


class _AtEpochs(keras.callbacks.Callback):
    """Lets another callback look after every epoch rather than after every step."""

    def __init__(self, callback: keras.callbacks.Callback):
        super().__init__()
        self._callback = callback

    def set_model(self, model):
        self._callback.set_model(model)

    def on_epoch_end(self, epoch, logs=None):
        self._callback.on_train_batch_end(epoch, logs)

    def on_train_end(self, logs=None):
        self._callback.on_train_end(logs)


def _is_asynchronous(strategy: tf.distribute.Strategy) -> bool:
    return isinstance(strategy, tf.distribute.experimental.ParameterServerStrategy)


@contextlib.contextmanager
def _explained_loss_of_peers(strategy, state):
    """Explains, in a `with` block, that another process of the cluster has died."""
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError) as error:
        # A lost worker of a parameter server is waited for, and never comes here.
        raise TrainingError(
            f"another process of this {type(strategy).__name__} is lost; start all of "
            f"them again to go on from {state.latest or 'the beginning'}"
        ) from error


def _locked_by_chief(strategy, log_dir):
    """Locks the directory of a run in the process that writes its checkpoints."""
    is_chief = strategy.extended.should_checkpoint
    return run_control.locked(log_dir) if is_chief else contextlib.nullcontext()


def _callbacks(strategy, target, checkpointing, summaries, others):
    """Returns the callbacks of this process, as its strategy can use them."""
    callbacks = [] if target is None else [target]
    callbacks += [checkpointing, *others]
    if strategy.extended.should_save_summary:
        callbacks.append(summaries)
    # With a parameter server, nobody waits for single steps.
    return (
        [_AtEpochs(c) for c in callbacks] if _is_asynchronous(strategy) else callbacks
    )


def _epochs(strategy, step, max_number_of_steps, steps_per_epoch):
    """Returns what `fit` shall know of the steps that are left."""
    if not _is_asynchronous(strategy):  # callbacks stop it
        return dict(
            steps_per_epoch=steps_per_epoch,
            epochs=_ENDLESS_EPOCHS,
            initial_epoch=step // steps_per_epoch,
        )
    if max_number_of_steps is None:
        return dict(steps_per_epoch=_ASYNCHRONOUS_STEPS, epochs=_ENDLESS_EPOCHS)
    left = max_number_of_steps - step
    steps_per_epoch = min(_ASYNCHRONOUS_STEPS, left)
    return dict(steps_per_epoch=steps_per_epoch, epochs=left // steps_per_epoch)


def _input(strategy, examples, batch_size, seed, data_service):
    """Returns what `fit` shall read: batches, or what makes them in every process."""
    if _is_asynchronous(strategy):
        # Every worker shuffles all examples on its own, from its own clock.
        def batches(context):
            moment = tf.cast(tf.timestamp() * 1e6, tf.int64)
            return examples.training_batches(
                batch_size, moment, data_service=data_service
            )

    elif isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):

        def batches(context):
            return examples.training_batches(
                context.get_per_replica_batch_size(batch_size),
                seed,
                shard=(context.num_input_pipelines, context.input_pipeline_id),
                data_service=data_service,
            )

    else:
        return examples.training_batches(batch_size, seed, data_service=data_service)
    return keras.utils.experimental.DatasetCreator(batches)


def train(
    model: Network,
    examples: Examples | ImageExamples,
    log_dir: str,
    max_number_of_steps: int | None,
    batch_size: int = 128,
    learning_rate: keras.optimizers.schedules.LearningRateSchedule | None = None,
    momentum: float = 0.9,
    nesterov: bool = False,
    label_smoothing: float = 0.0,
    save_interval_secs: float = 60,
    save_summaries_secs: float = 30,
    seed: int | None = None,
    jit_compile: bool = False,
    data_service: str | None = None,
    verbose: bool = True,
    optimizer: keras.optimizers.Optimizer | None = None,
    target: TargetFlops | None = None,
    freeze_moments: bool = False,
) -> str:
    """Trains a network, by default as the original does.

    Goes on from the newest complete checkpoint in `log_dir`, if it holds one. A network
    that was made in the scope of a strategy of `tf.distribute` is trained with it. With
    a `ParameterServerStrategy` that is asynchronous, as in the paper: every worker
    makes steps of its own, and all count.

    Args:
        model: From `cifar_resnet` or `imagenet_resnet`.
        examples: Training examples, `Examples` or `ImageExamples`.
        log_dir: Where checkpoints and TensorBoard summaries are written.
        max_number_of_steps: Steps of the whole run, those before a resume included;
            None: no end.
        batch_size: Images per step, of all replicas together.
        learning_rate: Schedule; None is the network's `default_learning_rate`.
        momentum: Of the optimizer.
        nesterov: Whether it is Nesterov's.
        label_smoothing: Probability that is spread evenly over all classes.
        save_interval_secs: Seconds between checkpoints; one is written at the end in
            any case.
        save_summaries_secs: Seconds between summaries.
        seed: Of shuffling and augmentation; None draws one.
        jit_compile: Whether XLA compiles the training step.
        data_service: Address of a tf.data service that prepares the batches, such as
            "grpc://localhost:5000"; None: this process does.
        verbose: Whether to show steps, speed and running means as it goes.
        optimizer: Any of `tf_keras`, which then has `learning_rate` and `momentum` of
            its own; None: `Momentum`. Make it in the scope of the model's strategy.
        target: Steers tau; its state is kept in the checkpoints. It looks at the
            operations of inference on the first examples.
        freeze_moments: Whether to normalize with the moments that the model holds; see
            `Network.freeze_moments`.

    Returns:
        Prefix of the last checkpoint.

    Raises:
        TrainingError: The loss or the weights are not finite any more, or another
            process of the cluster is lost.
        DirectoryInUseError: Another process trains in `log_dir`.
        SystemExit: The process was told to stop, by SIGTERM or Ctrl-C: after the step
            in progress a checkpoint is written, and the exit code is 143 or 130.
        CheckpointMismatchError: `log_dir` holds the checkpoint of another network.
        FileNotFoundError: `log_dir` holds checkpoints, and none is complete.
        DataError: An image or file cannot be read.
        ValueError: There are fewer examples than `batch_size`, or it cannot be divided
            by the number of replicas.
    """
    keras3.refuse([learning_rate, optimizer], "learning_rate, optimizer")
    if freeze_moments:
        model.freeze_moments()
    with model.distribute_strategy.scope():
        if optimizer is None:
            rate = learning_rate
            if rate is None:
                rate = model.default_learning_rate(
                    max_number_of_steps, examples.num_examples, batch_size
                )
            optimizer = Momentum(rate, momentum=momentum, nesterov=nesterov)
        model.compile(
            optimizer,
            model.loss_function(label_smoothing),
            metrics=[keras.metrics.SparseCategoricalAccuracy("accuracy")],
            jit_compile=jit_compile,
        )

    if target is not None and target.images is None:
        target.images, _ = next(iter(examples.evaluation_batches(_TARGET_IMAGES)))

    def summaries(state):
        probe = next(iter(examples.evaluation_batches(32)))
        return _Summaries(state, log_dir, probe, save_summaries_secs)

    return fit(
        model,
        examples,
        log_dir,
        max_number_of_steps,
        batch_size,
        summaries,
        save_interval_secs,
        seed,
        data_service,
        verbose,
        target,
    )


def fit(
    model: keras.Model,
    examples,
    log_dir: str,
    max_number_of_steps: int | None,
    batch_size: int,
    make_summaries: Callable[[TrainingState], keras.callbacks.Callback],
    save_interval_secs: float = 60,
    seed: int | None = None,
    data_service: str | None = None,
    verbose: bool = True,
    target: TargetFlops | None = None,
) -> str:
    """Fits a model in a way that can be stopped and resumed at any moment.

    Args:
        model: Compiled with any optimizer of `tf_keras`; `slim_variables` must know
            it.
        examples: What gives `num_examples`, `training_batches` and `explained_errors`
            as `Examples` does.
        log_dir: Where checkpoints are written, and read when a run goes on.
        max_number_of_steps: As in `train`, and so are all others.
        batch_size: Images per step, of all replicas together.
        make_summaries: Makes the callback that writes summaries after steps.
        save_interval_secs: Seconds between checkpoints.
        seed: Of shuffling and augmentation.
        data_service: Address of a tf.data service.
        verbose: Whether to show steps, speed and running means as it goes.
        target: As in `train`.

    Returns:
        Prefix of the last checkpoint.

    Raises:
        ValueError, TrainingError, DataError, FileNotFoundError, DirectoryInUseError,
        SystemExit: As `train`.
    """
    strategy = model.distribute_strategy
    if examples.num_examples < batch_size:
        raise ValueError(
            f"batch_size {batch_size} is larger than the {examples.num_examples} "
            "examples"
        )
    if batch_size % strategy.num_replicas_in_sync:
        raise ValueError(
            f"batch_size {batch_size} must be a multiple of the "
            f"{strategy.num_replicas_in_sync} replicas that share it"
        )
    if target is not None:
        if _is_asynchronous(strategy):
            raise ValueError("target: needs a strategy whose replicas keep in step")
        target.attach(model)
    with strategy.scope():
        state = TrainingState(model, log_dir, target.variables if target else None)
    # Replicas report the same metrics, which Keras would add up.
    model.distribute_reduction_method = "first"
    with (
        _locked_by_chief(strategy, log_dir),
        Interruption() as interruption,
        examples.explained_errors(),
        _explained_loss_of_peers(strategy, state),
    ):
        if state.restore():
            print(f"Continuing from {state.latest} at step {state.step}", flush=True)
        batches = _input(strategy, examples, batch_size, seed, data_service)
        callbacks = _callbacks(
            strategy,
            target,
            _Checkpoints(state, max_number_of_steps, save_interval_secs, interruption),
            make_summaries(state),
            [Progress(lambda: state.step, max_number_of_steps)] if verbose else [],
        )
        while not _is_done(state, max_number_of_steps):
            epochs = _epochs(
                strategy,
                state.step,
                max_number_of_steps,
                max(examples.num_examples // batch_size, 1),
            )
            model.fit(batches, callbacks=callbacks, verbose=0, **epochs)
            if interruption.signal is not None:
                print(
                    f"Stopped by {interruption.signal.name} at step {state.step}; "
                    f"start again to go on from {state.latest}",
                    flush=True,
                )
                sys.exit(interruption.exit_code)
    return state.latest
