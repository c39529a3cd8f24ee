"""Functions of images run by OpenVINO, for comparison."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from sact_tf.optional import lazy

openvino = lazy("openvino")

PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}
"""What OpenVINO calls the types that it may compute in."""


def runner(
    function: Callable[[tf.Tensor], tf.Tensor],
    variables: Sequence[tf.Variable],
    images: tf.Tensor,
    precision: str,
    threads: int,
) -> Callable[[], np.ndarray]:
    """Returns a call that runs a function of images, compiled by OpenVINO.

    Args:
        function: Maps images to one tensor by TensorFlow's own operations.
        variables: Those it reads.
        images: What it is run on; OpenVINO compiles for their shape.
        precision: One of `PRECISIONS`.
        threads: How many of the processor's OpenVINO may use.

    Raises:
        sact_tf.optional.MissingPackageError: OpenVINO is not installed.
        ValueError: It cannot compute in that precision here.
    """
    core = openvino.Core()
    if PRECISIONS[precision] == "bf16":
        capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if "BF16" not in capabilities:
            raise ValueError(
                "OpenVINO does not compute in bfloat16 on this processor, only in "
                f"{', '.join(capabilities)}"
            )
    module = tf.Module()
    module.variables_ = list(variables)
    module.serve = tf.function(function, autograph=False)
    signature = module.serve.get_concrete_function(
        tf.TensorSpec(images.shape, images.dtype)
    )
    with tempfile.TemporaryDirectory() as directory:
        tf.saved_model.save(module, directory, signatures=signature)
        network = core.compile_model(
            core.read_model(directory),
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
                "INFERENCE_NUM_THREADS": threads,
                "PERFORMANCE_HINT": "LATENCY",
            },
        )
    request, values = network.create_infer_request(), images.numpy()
    return lambda: request.infer([values], share_inputs=True)[0]
