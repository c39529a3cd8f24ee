"""The gates of iterative networks: small networks of pooled features."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
import tf_keras as keras

from sact_tf.halting.heads import HaltingHead, _pointwise
from sact_tf.layers import build_child, conv2d, global_average

GATE_BIAS = -4.0
"""Initial bias of the gates. All 36 iterations of the longest stage are to run at
first, 35 * sigmoid(bias) < 0.99; with -3, as of other heads, 21 would."""

_HIDDEN = 64


@keras.utils.register_keras_serializable("sact_tf")
class IterativeGate(HaltingHead):
    """Score of an image by the means of state s_i and residual y_i (Leroux, 2022).

    A hidden layer of 64 and ReLU, and a linear one. What activates the hidden layer is
    not said. Iterations share the gate; it has no batch normalization.

    Args:
        batch_norm: Not used.
        weight_decay: L2 coefficient of the layers.
        name: Keras name of the layer.
        bias: Initial bias of the score.
    """

    reads_residual = True
    reads_block_inputs = False
    num_hidden = 1

    def __init__(
        self,
        batch_norm=None,
        weight_decay: float = 0.0,
        name: str | None = None,
        bias: float = GATE_BIAS,
        **kwargs,
    ):
        super().__init__(weight_decay, name, bias, **kwargs)

    def _make_layers(self):
        decay = dict(use_bias=True, weight_decay=self._weight_decay)
        self.hidden = [
            conv2d(_HIDDEN, 1, name=f"hidden_{k}", **decay)
            for k in range(1, self.num_hidden + 1)
        ]
        self.score = conv2d(1, 1, bias_initializer=self._bias, name="score", **decay)
        # So that the bias alone decides at first, whatever the features are.
        self.score.kernel_initializer = keras.initializers.Zeros()

    @property
    def slim_scopes(self):
        return {layer.name: layer for layer in (*self.hidden, self.score)}

    def build(self, input_shape):
        read = input_shape[-1] * (3 if self.reads_block_inputs else 2)
        for layer in (*self.hidden, self.score):
            build_child(layer, [input_shape[0], 1, 1, read])
            read = layer.filters
        super().build(input_shape)

    def _logits(self, x, residual, inputs, training, valid):
        read = (x, residual, inputs) if self.reads_block_inputs else (x, residual)
        values = tf.concat([global_average(part, valid) for part in read], -1)
        for layer in self.hidden:
            values = tf.nn.relu(_pointwise(layer, values))
        return tf.cast(_pointwise(self.score, values)[:, 0, 0, 0], tf.float32)

    def _active_logits(self, x, active, sums):
        raise ValueError(
            f"execution: {type(self).__name__} reads residuals, which perforated "
            "execution of positions does not keep; use 'masked'"
        )

    def flops(self, x: tf.Tensor, active=None, valid=None) -> tf.Tensor:
        """None are counted: it has no convolution. int64 [batch]."""
        return tf.zeros([tf.shape(x)[0]], tf.int64)

    def macs(self) -> int:
        """Returns the multiply-accumulates of one score."""
        kernels = [layer.kernel for layer in (*self.hidden, self.score)]
        return sum(int(np.prod(kernel.shape)) for kernel in kernels)


@keras.utils.register_keras_serializable("sact_tf")
class IamGate(IterativeGate):
    """The gate of IamNN (Leroux et al., 2018).

    It reads the block's input too, and has two hidden layers.
    """

    reads_block_inputs = True
    num_hidden = 2
