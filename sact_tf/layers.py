"""The layers all networks here are made of: convolution and batch normalization."""

from __future__ import annotations

import contextlib
import copy
import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tensorflow as tf
import tf_keras as keras

import custom_ops

# Keras divides the standard deviation by that of a unit normal truncated at two sigmas;
# the original does not, and takes sqrt(1.3 * 2 / fan_in) as the parameter of the
# truncated normal.
_TRUNCATED_NORMAL_STDDEV = 0.87962566103423978


def kernel_initializer() -> keras.initializers.Initializer:
    """Truncated normal of parameter sqrt(1.3 * 2 / fan_in), as in the original."""
    return keras.initializers.VarianceScaling(
        scale=1.3 * 2.0 * _TRUNCATED_NORMAL_STDDEV**2,
        mode="fan_in",
        distribution="truncated_normal",
    )


@functools.cache
def _empty_batches_lose_shape() -> bool:
    """Whether convolutions give an empty batch the shape of their input.

    TensorFlow's do with oneDNN, which it chooses by the processor.
    """
    with tf.init_scope():
        empty = tf.nn.conv2d(tf.zeros([0, 2, 2, 1]), tf.ones([1, 1, 1, 2]), 1, "SAME")
        return empty.shape[-1] != 2


class Conv2D(keras.layers.Conv2D):
    """Keras' convolution, whose results for an empty batch have the right shape.

    It has the name of Keras' own, by which files of weights know it.
    """

    def convolution_op(self, x, kernel):
        if x.shape[0] == 0 and x.shape.is_fully_defined():
            # Nothing, of which gradients are zeros: TensorFlow's optimizer would drop
            # a reshape between shapes that it believes to be equal.
            nothing = tf.zeros(self.compute_output_shape(x.shape), x.dtype)
            return nothing + 0 * (tf.reduce_sum(x) + tf.reduce_sum(kernel))
        y = super().convolution_op(x, kernel)
        if x.shape[0] or not _empty_batches_lose_shape():
            return y
        batch, height, width = tf.unstack(tf.shape(x)[:3])
        sides = [
            (side - (size - 1 if self.padding == "valid" else 0) + stride - 1) // stride
            for side, size, stride in zip(
                (height, width), self.kernel_size, self.strides
            )
        ]
        # Through an operation that TensorFlow's optimizer knows nothing of: it would
        # find the shape to be what it believes it is, and drop the reshape.
        shape = tf.maximum([batch, *sides, self.filters], 0)
        y = tf.reshape(y, shape)
        y.set_shape(self.compute_output_shape(x.shape))
        return y


def conv2d(
    filters: int,
    kernel_size: int,
    strides: int = 1,
    padding: str = "same",
    use_bias: bool = False,
    weight_decay: float = 0.0,
    bias_initializer: float = 0.0,
    name: str | None = None,
    rate: int = 1,
) -> keras.layers.Conv2D:
    """Returns a Keras convolution with the original's initializer and weight decay.

    Args:
        filters: Output channels.
        kernel_size: Side of the square kernel.
        strides: Stride in both directions.
        padding: "same" or "valid".
        use_bias: Whether a bias is added; biases are never decayed.
        weight_decay: Coefficient c of the loss c * sum(w^2) / 2.
        bias_initializer: Constant the bias starts from.
        name: Keras name of the layer.
        rate: Dilation in both directions.
    """
    return Conv2D(
        filters,
        kernel_size,
        strides,
        padding,
        dilation_rate=rate,
        use_bias=use_bias,
        kernel_initializer=kernel_initializer(),
        bias_initializer=keras.initializers.Constant(bias_initializer),
        kernel_regularizer=keras.regularizers.L2(weight_decay / 2)
        if weight_decay
        else None,
        name=name,
    )


def build_child(layer: keras.layers.Layer, input_shape) -> None:
    """Builds a layer that another one holds, unless it is built.

    Its variables' names begin with the names of both, so that they are unique in a
    model, which the HDF5 format asks for.

    Args:
        layer: The layer.
        input_shape: Of its input.
    """
    if layer.built:
        return
    with tf.name_scope(layer.name):
        layer.build(tf.TensorShape(input_shape))
    layer.built = True


@contextlib.contextmanager
def policy_of(layer: keras.layers.Layer) -> Iterator[None]:
    """Gives layers that are made in a `with` block the dtype policy of another.

    So that what a layer is made of follows its `dtype`, whatever the global policy.
    """
    before = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy(layer.dtype_policy)
    try:
        yield
    finally:
        keras.mixed_precision.set_global_policy(before)


def saved(part) -> dict[str, Any]:
    """Returns what `restored` makes a layer or another part of a layer of again.

    In place of Keras' own functions, whose result depends on the file's format.

    Args:
        part: Has `get_config` and `from_config`.
    """
    return {
        "class_name": keras.utils.get_registered_name(type(part)),
        "module": type(part).__module__,
        "config": part.get_config(),
    }


def restored(config: Mapping[str, Any]):
    """Makes a part of what `saved` returned.

    Raises:
        ValueError: Its class is not known. No module is imported to find it.
    """
    name, module = config["class_name"], sys.modules.get(config.get("module"))
    found = keras.utils.get_registered_object(name) or getattr(module, name, None)
    if not isinstance(found, type) or not hasattr(found, "from_config"):
        raise ValueError(
            f"class {name} is not known; import it, and register it with "
            "keras.utils.register_keras_serializable() or name it in custom_objects"
        )
    return found.from_config(copy.deepcopy(dict(config["config"])))


class MadeLike:
    """Makes layers like one there is, under other names.

    Takes the place of a function that cannot be saved: the configuration of a layer it
    made can. Anything but the name is passed over.

    Args:
        config: What `saved` returned of one.
    """

    def __init__(self, config: Mapping[str, Any]):
        self._config = config

    def __call__(self, *args, name: str, **kwargs) -> keras.layers.Layer:
        config = {**self._config["config"], "name": name}
        return restored({**self._config, "config": config})


def factory(made_by) -> Callable[..., Any]:
    """Returns a function that makes layers, given it or a saved configuration."""
    return MadeLike(made_by) if isinstance(made_by, Mapping) else made_by


def zero_outside(x: tf.Tensor, valid: tf.Tensor | None) -> tf.Tensor:
    """Sets x [batch, height, width, channels] to zero where `valid` is False.

    Args:
        x: Features of padded images.
        valid: Bool [batch, height, width], True inside of the images; None: everywhere.
    """
    return x if valid is None else x * tf.cast(valid, x.dtype)[..., tf.newaxis]


def global_average(x: tf.Tensor, valid: tf.Tensor | None = None) -> tf.Tensor:
    """Averages [batch, height, width, channels] to [batch, 1, 1, channels].

    Divides after the sum, which spares the gradient a pass over all positions. Half
    precisions are summed in float32.

    Args:
        x: Features.
        valid: Bool [batch, height, width], positions to average over; None: all.
    """
    dtype = tf.float64 if x.dtype == tf.float64 else tf.float32
    total = tf.reduce_sum(tf.cast(zero_outside(x, valid), dtype), [1, 2], keepdims=True)
    if valid is None:
        count = tf.cast(tf.reduce_prod(tf.shape(x)[1:3]), dtype)
    else:
        count = tf.reduce_sum(tf.cast(valid, dtype), [1, 2])[:, None, None, None]
    return tf.cast(total / count, x.dtype)


def leaky_relu(slope: float) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns the function max(x, slope * x), for `slope_of` to read."""
    return functools.partial(tf.nn.leaky_relu, alpha=slope)


def slope_of(activation: Callable[[tf.Tensor], tf.Tensor] | None) -> float | None:
    """Returns the slope s of an activation max(x, s * x), None for any other."""
    if activation is None:
        return 1.0
    if activation is tf.nn.relu:
        return 0.0
    is_leaky = getattr(activation, "func", None) is tf.nn.leaky_relu
    return activation.keywords["alpha"] if is_leaky else None


def _activation_config(activation):
    """Returns what `_activation` makes the activation of again."""
    slope = slope_of(activation)
    if activation is None or slope is None:
        return keras.activations.serialize(activation) if activation else None
    return {"slope": slope}


def _activation(config):
    """Returns an activation, given it or its configuration."""
    if config is None or callable(config):
        return config
    if isinstance(config, Mapping) and "slope" in config:
        slope = config["slope"]
        return tf.nn.relu if slope == 0 else leaky_relu(slope)
    return keras.activations.deserialize(config)


def _num_replicas() -> int:
    """How many replicas run this step in step, 1 outside of `tf.distribute`."""
    context = tf.distribute.get_replica_context()
    return 1 if context is None else context.num_replicas_in_sync


def _over_replicas(mean, variance, count):
    """Returns mean and variance over all replicas, and how many values these are."""
    context = tf.distribute.get_replica_context()
    # A replica without images has moments that are not numbers.
    moments = tf.math.multiply_no_nan(
        tf.stack([mean, variance + tf.square(mean)]), count
    )
    moments, count = context.all_reduce(tf.distribute.ReduceOp.SUM, [moments, count])
    mean, mean_square = tf.unstack(moments / count)
    return mean, tf.maximum(mean_square - tf.square(mean), 0.0), count


def synchronize_batch_norm(model: keras.Model, synchronized: bool) -> None:
    """Sets whether replicas of `tf.distribute` share their batch statistics.

    They do unless told otherwise, so that results do not depend on the number of
    replicas.

    Args:
        model: Its `BatchNorm` layers are set.
        synchronized: False: every replica normalizes with its own, which spares an
            exchange between devices in every layer.
    """
    for layer in model.submodules:
        if isinstance(layer, BatchNorm):
            layer.synchronized = synchronized


@keras.utils.register_keras_serializable("sact_tf")
class BatchNorm(keras.layers.Layer):
    """Batch normalization of [batch, height, width, channels], and activation.

    Differs from `keras.layers.BatchNormalization` in one thing, in which it follows the
    original: the moving variance averages the *biased* batch variance, so that
    evaluation uses exactly the statistics training normalised with. It runs on
    TensorFlow's fused kernel all the same.

    Frozen (`trainable = False`), it uses the moving statistics in training too. Called
    a second time on the same inputs, with `update_averages=False`, it leaves the moving
    averages as the first call made them. Under a strategy of `tf.distribute`, the batch
    is that of all replicas together, unless `synchronize_batch_norm` says otherwise. A
    batch without images leaves the moving averages alone.

    Args:
        decay: Decay of the moving averages.
        epsilon: Added to the variance.
        activation: Applied to the result, or None; or its configuration.
        name: Keras name of the layer.
    """

    def __init__(
        self,
        decay: float,
        epsilon: float,
        activation: Callable[[tf.Tensor], tf.Tensor] | None = None,
        name: str | None = None,
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        self.decay = decay
        self.epsilon = epsilon
        self.activation = _activation(activation)
        self.synchronized = True

    def get_config(self):
        return {
            **super().get_config(),
            "decay": self.decay,
            "epsilon": self.epsilon,
            "activation": _activation_config(self.activation),
        }

    def build(self, input_shape):
        channels = [int(input_shape[-1])]
        # Float64 networks stay so; lower precisions keep their statistics in float32.
        dtype = self.dtype if self.dtype == "float64" else "float32"
        options = dict(shape=channels, dtype=dtype, experimental_autocast=False)
        self.gamma = self.add_weight("gamma", initializer="ones", **options)
        self.beta = self.add_weight("beta", initializer="zeros", **options)
        options.update(
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.MEAN,
        )
        self.moving_mean = self.add_weight(
            "moving_mean", initializer="zeros", **options
        )
        self.moving_variance = self.add_weight(
            "moving_variance", initializer="ones", **options
        )
        super().build(input_shape)

    def call(self, x, training=None, update_averages=True):
        if training and self.trainable:
            outputs = self._normalize_batch(x, update_averages)
        else:
            outputs = self._normalize_moving(x)
        return outputs if self.activation is None else self.activation(outputs)

    def folded(self, dtype: tf.DType) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the scale and shift [channels] that it amounts to in inference."""
        affine = custom_ops.fold_batch_norm(
            self.gamma, self.beta, self.moving_mean, self.moving_variance, self.epsilon
        )
        return tuple(tf.cast(vector, dtype) for vector in affine)

    def as_norm(self) -> custom_ops.Norm | None:
        """Returns what it is in inference to a native block; None if it cannot be."""
        slope = slope_of(self.activation)
        if slope is None:
            return None
        vectors = [self.gamma, self.beta, self.moving_mean, self.moving_variance]
        return custom_ops.Norm(vectors, self.epsilon, slope)

    def _normalize_batch(self, x, update_averages):
        gamma, beta = self.gamma.read_value(), self.beta.read_value()
        is_shared = self.synchronized and _num_replicas() > 1
        if x.dtype == tf.float64 or is_shared:  # neither is for the fused kernel
            values = x if x.dtype == tf.float64 else tf.cast(x, tf.float32)
            count = tf.cast(tf.reduce_prod(tf.shape(x)[:3]), values.dtype)
            mean, variance = tf.nn.moments(values, [0, 1, 2])
            if is_shared:
                mean, variance, count = _over_replicas(mean, variance, count)
            outputs = tf.nn.batch_normalization(
                values, mean, variance, beta, gamma, self.epsilon
            )
            outputs = tf.cast(outputs, x.dtype)
        else:
            count = tf.cast(tf.reduce_prod(tf.shape(x)[:3]), tf.float32)
            outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
                x, gamma, beta, epsilon=self.epsilon, is_training=True
            )
            # The kernel reports the unbiased variance n / (n - 1) * biased (n floored
            # at 2).
            variance *= tf.maximum(count - 1.0, 1.0) / count
        if update_averages:
            self._update_averages(mean, variance, count)
        return outputs

    def _update_averages(self, mean, variance, count):
        for moving, batch in (
            (self.moving_mean, mean),
            (self.moving_variance, variance),
        ):
            # Moments of nothing are not numbers.
            share = tf.cast(count > 0, moving.dtype) * (1.0 - self.decay)
            moving.assign_sub(tf.math.multiply_no_nan(moving - batch, share))

    def _normalize_moving(self, x):
        if x.dtype == tf.float64:
            return tf.nn.batch_normalization(
                x,
                self.moving_mean,
                self.moving_variance,
                self.beta,
                self.gamma,
                self.epsilon,
            )
        return tf.compat.v1.nn.fused_batch_norm(
            x,
            self.gamma.read_value(),
            self.beta.read_value(),
            mean=self.moving_mean.read_value(),
            variance=self.moving_variance.read_value(),
            epsilon=self.epsilon,
            is_training=False,
        )[0]
