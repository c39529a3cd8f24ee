"""This machine's GPU, and whether the native kernels can run on it."""

from __future__ import annotations

import functools

import tensorflow as tf

from custom_ops import build, implementation


def device_details() -> dict | None:
    """Returns what TensorFlow knows of the first GPU; None without one."""
    gpus = tf.config.list_physical_devices("GPU")
    return tf.config.experimental.get_device_details(gpus[0]) if gpus else None


@functools.cache
def obstacle() -> str | None:
    """Returns why the native kernels cannot run on the GPU, and what to do.

    None where they can. Compiles them if it has to.
    """
    details = device_details()
    if details is None:
        return "there is no GPU"
    try:
        cuda = build._cuda()
        if cuda is None:
            return (
                "there is no CUDA compiler (install nvcc, or set NVCC to it, and run "
                "`python -m custom_ops.build`)"
            )
        capability = details.get("compute_capability")
        if capability is not None and not cuda.runs_on(*capability):
            return _too_old(cuda, *capability)
        if implementation.has_kernel("PerforatedConv2D", "GPU", tf.float32):
            return None
        return build.failure() or build._find(cuda, False)[1] or _OLD_DRIVER
    except build.BuildError as error:
        return str(error)


_OLD_DRIVER = (
    "the NVIDIA driver is older than the CUDA compiler (install a newer driver, or set "
    "NVCC to an older compiler)"
)


def _too_old(cuda: build._Cuda, major: int, minor: int) -> str:
    text = f"they are compiled {cuda}, and it is of {major}.{minor}"
    if 10 * major + minor < build._OLDEST_ARCHITECTURE:
        return f"{text}, too old for them"
    return f"{text} (add {major}{minor} to SACT_CUDA_ARCHITECTURES)"
