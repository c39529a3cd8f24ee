"""One command that tells whether the kernels are right and fast on a GPU.

    python -m custom_ops.gpu_report [REPORT.json]

On a GPU it compares every kernel with TensorFlow in float64, times layers against
TensorFlow's dense convolution (cuDNN) and XLA, and, in a source tree, SACT-101 against
the ordinary network (`experiments.benchmarks.network`). It prints a table, and writes
one JSON to the file and to the cache, where `implementation="auto"` finds it: on this
kind of GPU it then runs the kernels if they were faster than TensorFlow's operations.
The JSON is written after the comparison, after the layers and after the networks, so
that what came first is not lost. Without a GPU it says so and runs the kernels in the
emulation.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from custom_ops import (
    build,
    convolution,
    emulation,
    gpu_support,
    indexed,
    positions,
    units,
)

PRECISIONS = ("float32", "tf32", "bfloat16", "float16")
"""Types of the elements; `tf32` is float32 where TensorFlow may round factors."""

# Mean error of a result, relative to its mean magnitude.
_BOUNDS = {"float32": 1e-5, "tf32": 5e-3, "bfloat16": 3e-2, "float16": 5e-3}
_LAYERS = (
    # kernel, channels, filters, height, width
    (1, 1024, 256, 38, 63),
    (3, 256, 256, 38, 63),
    (1, 256, 1024, 38, 63),
    (3, 64, 64, 56, 56),
)
_BATCHES = (1, 8)
_SHARES = (0.1, 0.5, 1.0)
_RUNS = 20
_NETWORKS = (
    # image, batch, mean units run per block
    ("600x1000", 1, "2,3.2,11"),
    ("600x1000", 8, "2,3.2,11"),
    ("224x224", 1, "2.3,3.8,13.1,2.7"),
    ("224x224", 8, "2.3,3.8,13.1,2.7"),
    ("224x224", 64, "2.3,3.8,13.1,2.7"),
)


@contextlib.contextmanager
def _precision(name: str) -> Iterator[tf.DType]:
    """Lets TensorFlow round factors or not; yields the type of the elements."""
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(name == "tf32")
    try:
        yield tf.float32 if name == "tf32" else tf.as_dtype(name)
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)


def _convolution(normal, mask, implementation, **options):
    inputs = [normal(2, 13, 11, 32), normal(3, 3, 32, 40), normal(40)]
    inputs += [normal(32), normal(32)]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        y = convolution.perforated_conv2d(
            *inputs[:2],
            mask,
            bias=inputs[2],
            input_scale=inputs[3],
            input_shift=inputs[4],
            input_slope=0.1,
            implementation=implementation,
            **options,
        )
        loss = tf.reduce_sum(y * y) / 2.0
    return [y, *tape.gradient(loss, inputs[:2])]


def _bottleneck(normal, mask, implementation):
    norms = [(normal(24), normal(24)), (normal(16), normal(16))]
    filters = [normal(1, 1, 32, 24), normal(3, 3, 24, 16), normal(1, 1, 16, 32)]
    x, sums, preactivation = normal(2, 13, 11, 32), normal(2, 32), (normal(32),) * 2
    mask = positions.find_positions(mask, implementation)
    unit = (preactivation, filters, norms, normal(32))
    return units.perforated_bottleneck(x, mask, *unit, sums, implementation)


def _projection(normal, mask, implementation):
    norms = [(normal(24), normal(24)), (normal(16), normal(16))]
    filters = [normal(1, 1, 32, 24), normal(3, 3, 24, 16), normal(1, 1, 16, 40)]
    unit = ((normal(32),) * 2, filters, norms, normal(40), normal(1, 1, 32, 40))
    return units.projection_bottleneck(
        normal(2, 13, 11, 32), *unit, normal(40), 2, implementation
    )


def _basic_unit(normal, mask, implementation):
    filters = [normal(3, 3, 32, 24), normal(3, 3, 24, 32)]
    mask = positions.find_positions(mask, implementation)
    unit = ((normal(32),) * 2, filters, (normal(24), normal(24)), normal(32))
    x = normal(2, 13, 11, 32)
    return [units.perforated_basic_unit(x, mask, *unit, implementation=implementation)]


def _accumulate(normal, mask, implementation):
    weight = tf.cast(mask, tf.float32) * 0.25
    total, x = normal(2, 13, 11, 32), normal(2, 13, 11, 32)
    return [units.masked_accumulate(total, x, weight, implementation)]


def _indexed(normal, mask, implementation):
    """Convolution, pooling and interpolation of rows; the mask's taps read some."""
    generator = np.random.default_rng(3)
    taps = generator.integers(0, 50, [mask.size, 9], np.int32)
    taps[~mask.ravel()] = -1
    index = generator.integers(0, 50, mask.shape[1:], np.int32)
    inputs = [normal(2, 50, 32), normal(3, 3, 32, 40)]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        rows, filters = inputs
        results = [
            indexed.indexed_conv2d(rows, filters, taps, normal(40), implementation),
            indexed.indexed_pool(rows, taps, "max", implementation),
            indexed.indexed_pool(rows, taps, "average", implementation),
            indexed.nearest_interpolate(rows, index, implementation),
        ]
        loss = tf.add_n([tf.reduce_sum(y * y) / 2.0 for y in results])
    return [*results, *map(tf.convert_to_tensor, tape.gradient(loss, inputs))]


KERNELS: dict[str, Callable] = {
    "convolution and gradients": _convolution,
    "bottleneck": _bottleneck,
    "projection": _projection,
    "basic unit": _basic_unit,
    "accumulation": _accumulate,
    "rows through a table": _indexed,
}


def check_kernels(implementation: str, precisions=PRECISIONS) -> list[dict]:
    """Compares every kernel with TensorFlow's operations in float64.

    Args:
        implementation: As in `custom_ops.perforated_conv2d`.
        precisions: Some of `PRECISIONS`.

    Returns:
        For each kernel, precision and share of active positions the largest mean error
        of its results, relative to their mean magnitude, the bound, and `is_right`;
        where it could not run, the `failure`.
    """
    rows = []
    for precision in precisions:
        for name, kernel in KERNELS.items():
            for share in (0.0, 0.3, 1.0):
                row = dict(kernel=name, precision=precision, active=share)
                row |= dict(error=None, bound=_BOUNDS[precision], is_right=False)
                try:
                    row["error"] = _error(kernel, precision, share, implementation)
                    # A comparison with NaN is false.
                    row["is_right"] = bool(row["error"] <= row["bound"])
                except tf.errors.OpError as error:
                    row["failure"] = _short(error)
                rows.append(row)
    return rows


def _error(kernel, precision: str, share: float, implementation: str) -> float:
    """The largest mean error of a kernel's results, relative to their magnitude."""
    mask = np.random.default_rng(7).random((2, 13, 11)) < share
    with _precision(precision) as dtype:
        got = kernel(_normal(dtype), mask, implementation)
        expected = kernel(_normal(dtype, tf.float64), mask, "tensorflow")
    return max(
        float(np.mean(np.abs(tf.cast(a, tf.float64) - b)))
        / max(float(np.mean(np.abs(b))), 1e-6)
        for a, b in zip(got, expected)
    )


def _short(error: Exception) -> str:
    return str(error)[:300]


def _normal(dtype: tf.DType, cast: tf.DType | None = None):
    """Random numbers, always the same, that a type can hold; as another type."""
    generator = np.random.default_rng(0)

    def normal(*shape):
        values = generator.normal(size=shape) / np.sqrt(
            np.prod(shape[:-1]) ** (len(shape) == 4)
        )
        return tf.cast(tf.cast(values, dtype), cast or dtype)

    return normal


def time_layers(precision: str, layers=_LAYERS, batches=_BATCHES) -> list[dict]:
    """Times convolutions at random positions; milliseconds per call, or failures.

    Args:
        precision: One of `PRECISIONS`.
        layers: Kernel, channels, filters, height and width of each.
        batches: Images at a time.
    """
    rows = []
    with _precision(precision) as dtype:
        for layer in layers:
            for batch in batches:
                for share in _SHARES:
                    row = dict(layer=layer, batch=batch, precision=precision)
                    row |= dict(active=share)
                    rows.append(row | _time_layer(dtype, layer, batch, share))
    return rows


def _time_layer(dtype, layer, batch, share) -> dict[str, dict]:
    kernel, channels, filters, height, width = layer
    normal = _normal(dtype)
    x, weights = (
        normal(batch, height, width, channels),
        normal(kernel, kernel, channels, filters),
    )
    mask = tf.constant(np.random.default_rng(0).random((batch, height, width)) < share)

    def perforated(implementation):
        return lambda: convolution.perforated_conv2d(
            x, weights, mask, implementation=implementation
        )

    def dense():
        return tf.nn.conv2d(x, weights, 1, "SAME")

    sides = {
        "native": tf.function(perforated("native")),
        "twin": tf.function(perforated("tensorflow")),
        "dense": tf.function(dense),
        "xla": tf.function(dense, jit_compile=True),
    }
    row = {"milliseconds": {}, "failures": {}}
    for name, run in sides.items():
        try:
            row["milliseconds"][name] = _milliseconds(run)
        except tf.errors.OpError as error:  # out of memory; XLA that is not whole
            row["failures"][name] = _short(error)
    return row


def _milliseconds(run: Callable) -> float:
    """Median of several rounds of calls in a row; the device is waited for."""
    rounds = []
    for _ in range(6):
        start = time.perf_counter()
        for _ in range(_RUNS):
            y = run()
        float(tf.reshape(y, [-1])[0])
        rounds.append((time.perf_counter() - start) * 1e3 / _RUNS)
    return float(np.median(rounds[1:]))


def time_networks() -> list[dict]:
    """Times SACT-101; empty where the programs are not (outside of a source tree)."""
    program = "experiments.benchmarks.network"
    if importlib.util.find_spec("experiments") is None:
        return []
    rows = []
    for precision in ("float32", "tf32", "bfloat16"):
        for image, batch, means in _NETWORKS:
            done = subprocess.run(
                [sys.executable, "-m", program, "--json", f"--image_size={image}"]
                + [f"--batch_size={batch}", f"--units_per_block={means}"]
                + [f"--precision={precision}", "--sides=dense,xla,native,twin"],
                env={**os.environ, "SACT_GPU_AUTO": "1"},
                capture_output=True,
                text=True,
            )
            row = dict(image=image, batch=batch, precision=precision)
            if done.returncode:
                rows.append(row | dict(failure=done.stderr[-500:]))
                continue
            for line in filter(None, done.stdout.splitlines()):
                rows.append(row | json.loads(line))
    return rows


def device_name() -> str | None:
    """Returns what kind of GPU there is, or None."""
    details = gpu_support.device_details()
    return None if details is None else details.get("device_name", "unknown")


def is_win(report: dict) -> bool:
    """Whether all kernels are right, and layers at up to half of the positions faster
    by them than by TensorFlow's operations, which else run."""

    def is_faster(milliseconds: dict[str, float]) -> bool:
        native, twin = (milliseconds.get(s, np.inf) for s in ("native", "twin"))
        return native < twin

    layers = [row for row in report["layers"] if row["active"] <= 0.5]
    return (
        bool(layers)
        and all(row["is_right"] for row in report["checks"])
        and all(is_faster(row["milliseconds"]) for row in layers)
    )


def _report_name(device: str) -> str:
    kernels = build._digest_sources(hashlib.sha256())
    return f"gpu_report-{re.sub(r'[^A-Za-z0-9]+', '_', device)}-{kernels}.json"


def shows_win() -> bool:
    """Whether a saved report of these kernels on this kind of GPU shows a win."""
    device = device_name()
    if device is None:
        return False
    try:
        path = build._cached(_report_name(device))
        return path is not None and is_win(json.loads(path.read_text()))
    except (build.BuildError, OSError, ValueError, KeyError, TypeError):
        return False


def _save(report: dict, path: str | None) -> pathlib.Path:
    name = _report_name(report["device"])
    text = json.dumps(report, indent=1)
    if path is not None:
        _write(pathlib.Path(path), text)
    with build._locked(name) as directory:
        _write(directory / name, text)
    return directory / name


def _write(path: pathlib.Path, text: str) -> None:
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(text)
    unfinished.chmod(0o600)
    unfinished.rename(path)


def print_report(report: dict) -> None:
    """Prints the tables."""
    print(f"{report['device']}, TensorFlow {report['tensorflow']}")
    for row in report["checks"]:
        verdict = "right" if row["is_right"] else "WRONG"
        print(
            f"{verdict}  {row['kernel']:26} {row['precision']:9} "
            f"{row['active']:4.0%} active, "
            + row.get("failure", f"error {row['error'] or 0:.1e}")
        )
    for row in report["layers"]:
        kernel, channels, filters, height, width = row["layer"]
        times = "  ".join(f"{k} {v:.3f}" for k, v in row["milliseconds"].items())
        times = "  ".join([times, *(f"{k} failed" for k in row.get("failures", ()))])
        print(
            f"{kernel}x{kernel} {channels}->{filters} {height}x{width} batch "
            f"{row['batch']} {row['precision']:9} {row['active']:4.0%}: {times} ms"
        )
    for row in report["networks"]:
        print(json.dumps(row))
    print("the kernels win" if is_win(report) else "the kernels do not win")


def make_report(device: str, path: str | None) -> dict:
    """Checks and times everything; saves what there is after every part.

    Args:
        device: What kind of GPU there is.
        path: A file that takes the report beside the cache, or None.
    """
    report = dict(device=device, tensorflow=tf.__version__)
    report |= dict(checks=[], layers=[], networks=[])
    parts = {
        "checks": lambda: check_kernels("native"),
        "layers": lambda: [row for p in PRECISIONS for row in time_layers(p)],
        "networks": time_networks,
    }
    for part, make in parts.items():
        report[part] = make()
        kept = _save(report, path)
        print(f"{part}: written to {kept}", file=sys.stderr, flush=True)
    return report


def _path() -> str | None:
    """Returns the file that the command line names, or None."""
    arguments = sys.argv[1:]
    if len(arguments) > 1:
        sys.exit(
            "custom_ops.gpu_report: expected at most one file; got "
            f"{' '.join(arguments)}"
        )
    if not arguments:
        return None
    path = pathlib.Path(arguments[0])
    if not path.parent.is_dir() or path.is_dir():
        sys.exit(
            f"custom_ops.gpu_report: expected a file in a directory that exists; got "
            f"{path}"
        )
    return arguments[0]


def main() -> None:
    """Reports on the GPU, or, without one, on the emulation."""
    path, device = _path(), device_name()
    if device is None:
        print(
            "There is no GPU: the kernels run in the emulation, and nothing is timed.",
            flush=True,
        )
        sys.argv[1:] = []
        emulation.main()
        return
    obstacle = gpu_support.obstacle()
    if obstacle is not None:
        sys.exit(
            f"custom_ops.gpu_report: the kernels cannot run on the GPU ({device}): "
            f"{obstacle}"
        )
    report = make_report(device, path)
    print_report(report)
    if not all(row["is_right"] for row in report["checks"]):
        sys.exit("custom_ops.gpu_report: a kernel is wrong")


if __name__ == "__main__":
    main()
