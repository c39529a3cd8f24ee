"""The CUDA part: compiles, loads without a GPU, and computes the same with one."""

import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import custom_ops
from custom_ops import build, gpu_report, gpu_resources, gpu_support

KERNELS = pathlib.Path(build.__file__).parent / "kernels"
OPS = [
    "PerforatedConv2D",
    "PerforatedConv2DAt",
    "PerforatedConv2DInputGradient",
    "PerforatedConv2DFilterGradient",
    "PerforatedBottleneck",
    "PerforatedBottleneckAt",
    "ProjectionBottleneck",
    "PerforatedBasicUnit",
    "PerforatedBasicUnitAt",
    "MaskedAccumulate",
    "MaskedAccumulateAt",
    "NearestInterpolate",
    "IndexedConv2D",
    "IndexedConv2DInputGradient",
    "IndexedConv2DFilterGradient",
    "IndexedPool",
    "IndexedMaxPoolGradient",
    "AddToRows",
]
HAS_GPU = bool(tf.config.list_physical_devices("GPU"))
needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="there is no GPU")

LIST_KERNELS = f"""
import tensorflow as tf
from custom_ops import build, implementation
assert build.load() is not None, build.failure()
for op in {OPS}:
    for dtype in (tf.float32, tf.float16, tf.bfloat16, tf.float64):
        print(op, dtype.name, implementation.has_kernel(op, "GPU", dtype))
assert implementation.has_kernel("FindPlaces", "GPU", tf.bool)
assert implementation.has_kernel("FoldBatchNorm", "GPU", tf.float32)
"""


def test_the_host_never_waits_for_the_device():
    """Nor copies from it, so that how much is active is known to the device alone."""
    sources = {
        path.name: path.read_text()
        for path in KERNELS.glob("gpu*")
        if not path.name.startswith("gpu_check")
    }
    assert {*build._CUDA_SOURCES, *build._GPU_OPS} <= set(sources)
    waits = r"\w*Synchronize\w*|\bcudaMemcpy\(|DeviceToHost|BlockHost\w*|<<<"
    found = {name: set(re.findall(waits, text)) for name, text in sources.items()}
    assert found.pop("gpu_device.h") == {"<<<"}  # launches stand there alone
    assert not any(found.values()), found


@pytest.fixture
def nvcc():
    cuda = build._cuda()
    if cuda is None:
        pytest.skip("there is no CUDA compiler (nvcc)")
    return list(cuda.command)


@pytest.mark.long
def test_registers_kernels_for_gpus(nvcc):
    """With whatever TensorFlow there is, also one that has no CUDA libraries."""
    done = subprocess.run(
        [sys.executable, "-c", LIST_KERNELS], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    expected = [
        f"{op} {dtype} {dtype != 'float64'}"
        for op in OPS
        for dtype in ("float32", "float16", "bfloat16", "float64")
    ]
    assert done.stdout.splitlines() == expected, done.stderr


@pytest.mark.long
def test_products_on_90_neither_spill_nor_wait(nvcc):
    """Half precision and bfloat16 by two wgmma a step, if nvdisasm can count them."""
    products = [k for k in gpu_resources.kernels(90) if k.is_product]
    assert len(products) == 24
    assert not any(k.spilled_bytes or k.waits for k in products)
    if gpu_resources._disassembler() is not None:
        counts = {"float": 0, "tf32": 32, "half": 2, "bfloat16": 2}
        for k in products:
            assert k.matrix_instructions == counts[k.name.split()[-1]], k


@pytest.mark.long
def test_kernels_by_themselves(nvcc, tmp_path):
    """Without a GPU this only shows that the program compiles, and says so."""
    program = tmp_path / "gpu_check"
    quick = ["-arch=sm_80", "-Xptxas=-O0"]
    if HAS_GPU:
        major, minor = gpu_support.device_details()["compute_capability"]
        quick = [build._cuda().code(10 * major + minor)]
    sources = [KERNELS / name for name in build._CUDA_SOURCES]
    sources += KERNELS.glob("gpu_check*.cu")
    command = [*nvcc, "-std=c++17", *quick]
    subprocess.run([*command, *sources, "-o", program], check=True)
    done = subprocess.run([program, "20"], capture_output=True, text=True)
    if done.returncode == 77:
        assert not HAS_GPU and done.stdout.startswith("no GPU: ")
    else:
        assert done.returncode == 0, done.stdout + done.stderr
        assert "20 random cases of each type are right" in done.stdout


def results(dtype, implementation, kernel, channels, filters, **window):
    """Output and gradients of a perforated convolution of random numbers."""
    generator = np.random.default_rng(0)

    def normal(*shape):
        return tf.cast(generator.normal(size=shape), dtype)

    x, bias = normal(2, 13, 11, channels), normal(filters)
    weights = normal(kernel, kernel, channels, filters)
    scale, shift = normal(channels), normal(channels)
    size = tf.nn.conv2d(
        tf.zeros([2, 13, 11, 1]), tf.zeros([kernel, kernel, 1, 1]), **window
    ).shape[:3]
    mask = generator.random(size) < 0.4
    inputs = [x, weights, bias, scale, shift]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        y = custom_ops.perforated_conv2d(
            x,
            weights,
            mask,
            bias=bias,
            activation="relu",
            input_scale=scale,
            input_shift=shift,
            input_slope=0.1,
            implementation=implementation,
            **window,
        )
        loss = tf.reduce_sum(y)
    return [tf.cast(t, tf.float32) for t in (y, *tape.gradient(loss, inputs))]


@pytest.fixture
def exact_floats():
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    yield
    tf.config.experimental.enable_tensor_float_32_execution(before)


@needs_gpu
@pytest.mark.parametrize(
    "kernel, channels, filters", [(3, 5, 33), (3, 64, 80), (1, 8, 8)]
)
@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_floats_equal_plain_tensorflow(
    nvcc, exact_floats, kernel, channels, filters, strides, padding
):
    case = (kernel, channels, filters)
    window = dict(strides=strides, padding=padding)
    got = results(tf.float32, "native", *case, **window)
    expected = results(tf.float32, "tensorflow", *case, **window)
    for a, b in zip(got, expected):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


@needs_gpu
@pytest.mark.parametrize("dtype", [tf.float32, tf.float16, tf.bfloat16])
def test_short_factors_are_near(nvcc, dtype):
    """Float32 too, which TensorFlow rounds to 11 bits before it multiplies."""
    case = dict(kernel=3, channels=32, filters=64, strides=1, padding="SAME")
    got = results(dtype, "native", **case)
    expected = results(tf.float32, "tensorflow", **case)
    error = 0.1 if dtype == tf.bfloat16 else 0.02
    for a, b in zip(got, expected):
        assert np.mean(np.abs(a - b)) <= error * np.mean(np.abs(b))


@needs_gpu
def test_all_kernels_equal_tensorflow(nvcc):
    rows = gpu_report.check_kernels("native")
    assert [row for row in rows if not row["is_right"]] == []


@needs_gpu
def test_same_gradients_every_time(nvcc):
    case = dict(kernel=3, channels=32, filters=64, strides=1, padding="SAME")
    first = results(tf.float32, "native", **case)
    for _ in range(5):
        # Those of bias, scale and shift are TensorFlow's own sums.
        for a, b in zip(first[:3], results(tf.float32, "native", **case)[:3]):
            np.testing.assert_array_equal(a, b)
