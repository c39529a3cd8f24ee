"""Which implementation runs: compiled kernels, or plain TensorFlow operations."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
import warnings
from collections.abc import Iterator

import tensorflow as tf
from tensorflow.python.framework import kernels
from tensorflow.python.ops import control_flow_util

IMPLEMENTATIONS = ("auto", "native", "tensorflow")
"""`native` are the compiled kernels; `tensorflow` plain TensorFlow operations, which
run everywhere TensorFlow does; `auto` is `native` where it can run on the CPU, and
`tensorflow` on GPUs, unless the native kernels are known to be faster on such a GPU
(`prefers_gpu_kernels`)."""

_default = contextvars.ContextVar("implementation", default="auto")


@contextlib.contextmanager
def default_implementation(implementation: str) -> Iterator[None]:
    """Sets what `implementation="auto"` means in a `with` block of this thread.

    A function traced inside keeps that implementation: a SavedModel exported with
    `tensorflow` loads where this package is not installed, and still skips the work.

    Args:
        implementation: One of `IMPLEMENTATIONS`.

    Raises:
        ValueError: On any other value.
    """
    _check(implementation)
    token = _default.set(implementation)
    try:
        yield
    finally:
        _default.reset(token)


def _check(implementation: str) -> None:
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation must be one of {', '.join(IMPLEMENTATIONS)}; got "
            f"{implementation!r}"
        )


@tf.autograph.experimental.do_not_convert  # which would look for the library anew
def load():
    """Returns the native library as a module of op functions, or None.

    Compiles it if it has to; where that fails, warns once per process.

    A SavedModel that was exported with `implementation="native"` needs this before
    `tf.saved_model.load`, which otherwise says that an op "PerforatedConv2D" or
    "PerforatedBottleneck" is not registered.
    """
    # Here, so that `python -m custom_ops.build` is not imported before it runs.
    from custom_ops import build

    return build.load()


@functools.cache
def _has_gpu() -> bool:
    return bool(tf.config.list_physical_devices("GPU"))


@functools.cache
def prefers_gpu_kernels() -> bool:
    """Whether `auto` runs the native kernels on this machine's GPU.

    So it is if `SACT_GPU_AUTO` is 1; or, unless it is 0, if a report of
    `python -m custom_ops.gpu_report` on this kind of GPU shows that they are faster.
    Where they are wanted and cannot run, one warning says why.

    Raises:
        ValueError: On another value of `SACT_GPU_AUTO`.
    """
    chosen = os.environ.get("SACT_GPU_AUTO", "")
    if chosen not in ("", "0", "1"):
        raise ValueError(f"SACT_GPU_AUTO must be 0 or 1; got {chosen!r}")
    if chosen == "0" or not _has_gpu():
        return False
    from custom_ops import gpu_report, gpu_support

    if chosen != "1" and not gpu_report.shows_win():
        return False
    obstacle = gpu_support.obstacle()
    if obstacle is not None:
        warnings.warn(
            "Plain TensorFlow operations run on the GPU, where the native kernels "
            f"cannot: {obstacle}",
            RuntimeWarning,
            stacklevel=2,
        )
    return obstacle is None


@functools.cache
def has_kernel(op: str, device: str, dtype: tf.DType) -> bool:
    """Tells whether the native library is there and registers a kernel.

    Args:
        op: Name of a TensorFlow operation.
        device: "CPU" or "GPU".
        dtype: Its type `T`.
    """
    if load() is None:
        return False
    return any(
        kernel.device_type == device
        and all(
            dtype.as_datatype_enum in constraint.allowed_values.list.type
            for constraint in kernel.constraint
            if constraint.name == "T"
        )
        for kernel in kernels.get_registered_kernels_for_op(op).kernel
    )


def _is_compiled_by_xla() -> bool:
    """Whether XLA is to compile what is traced; it knows TensorFlow's own ops only."""
    return not tf.executing_eagerly() and control_flow_util.GraphOrParentsInXlaContext(
        tf.compat.v1.get_default_graph()
    )


@tf.autograph.experimental.do_not_convert
def native_library(implementation: str, op: str, dtype: tf.DType):
    """Returns the library whose function runs an op, or None for plain TensorFlow.

    Args:
        implementation: As the caller received it.
        op: Name of a TensorFlow operation.
        dtype: Type of its input.

    Raises:
        ValueError: On an unknown `implementation`.
        RuntimeError: If it is `native` and there is no native kernel for the op, or
            XLA is to compile it.
    """
    _check(implementation)
    if implementation == "auto":
        implementation = _default.get()
    if implementation == "auto" and _is_compiled_by_xla():
        implementation = "tensorflow"
    if implementation == "tensorflow":
        return None
    if _is_compiled_by_xla():
        raise RuntimeError(
            f"implementation='native', but {op} cannot be compiled by XLA "
            "(jit_compile=True); use implementation='tensorflow'"
        )
    if implementation == "auto":
        device = "GPU" if _has_gpu() else "CPU"
        is_wanted = device == "CPU" or prefers_gpu_kernels()
        return load() if is_wanted and has_kernel(op, device, dtype) else None
    devices = ("GPU", "CPU") if _has_gpu() else ("CPU",)
    if any(has_kernel(op, device, dtype) for device in devices):
        return load()
    from custom_ops import build

    reason = build.failure() or f"none is registered for {dtype.name}"
    raise RuntimeError(f"implementation='native', but {op} has no kernel: {reason}")


def runs_on_gpu(implementation: str, op: str, dtype: tf.DType) -> bool:
    """Whether `native_library` would give a kernel for a GPU.

    Args:
        implementation: As the caller received it.
        op: Name of a TensorFlow operation.
        dtype: Type of its input.
    """
    _check(implementation)
    if implementation == "auto":
        implementation = _default.get()
    if implementation == "tensorflow" or not _has_gpu() or _is_compiled_by_xla():
        return False
    if implementation == "auto" and not prefers_gpu_kernels():
        return False
    return has_kernel(op, "GPU", dtype)


def runs_on_cpu(op: str, dtype: tf.DType) -> bool:
    """Whether `implementation="auto"` is a native kernel for a CPU, as things stand.

    For callers that have something better than the plain TensorFlow twin.

    Args:
        op: Name of a TensorFlow operation.
        dtype: Type of its input.
    """
    if native_library("auto", op, dtype) is None:
        return False
    return not runs_on_gpu("auto", op, dtype)
