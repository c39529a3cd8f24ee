"""What keeps the native kernels from a GPU, told with what to do; no GPU is needed."""

import pytest
import tensorflow as tf

from custom_ops import build, gpu_support, implementation

CUDA = build._Cuda(("nvcc",), "13.0", (75, 80, 90))


@pytest.fixture
def machine(monkeypatch):
    """Makes up a GPU, a compiler and what came of it; returns what is told."""

    def tell(capability=(8, 6), cuda=CUDA, has_kernel=True, failure=None):
        def find():
            if isinstance(cuda, build.BuildError):
                raise cuda
            return cuda

        details = dict(device_name="A card", compute_capability=capability)
        monkeypatch.setattr(gpu_support, "device_details", lambda: details)
        monkeypatch.setattr(build, "_cuda", find)
        monkeypatch.setattr(build, "failure", lambda: None)
        monkeypatch.setattr(build, "_find", lambda *_: (None, failure))
        monkeypatch.setattr(implementation, "has_kernel", lambda *_: has_kernel)
        return gpu_support.obstacle()

    gpu_support.obstacle.cache_clear()
    yield tell
    gpu_support.obstacle.cache_clear()


def test_nothing(machine):
    assert machine() is None


@pytest.mark.parametrize(
    "options, told",
    [
        (dict(cuda=None), "there is no CUDA compiler (install nvcc, or set NVCC"),
        (dict(cuda=build.BuildError("nvcc can not be run")), "nvcc can not be run"),
        (dict(has_kernel=False, failure="x.cu: error"), "x.cu: error"),
        (dict(has_kernel=False), "driver is older than the CUDA compiler (install"),
        (
            dict(capability=(7, 0)),
            "capability 7.5, 8.0, 9.0, and it is of 7.0, too old",
        ),
        (
            dict(cuda=build._Cuda((), "", (90,))),
            "capability 9.0, and it is of 8.6 (add 86 to SACT_CUDA_ARCHITECTURES)",
        ),
    ],
    ids=["no compiler", "wrong compiler", "no compiling", "driver", "card", "chosen"],
)
def test_obstacles(machine, options, told):
    assert told in machine(**options)


def test_no_gpu(machine, monkeypatch):
    if tf.config.list_physical_devices("GPU"):
        pytest.skip("there is a GPU")
    assert gpu_support.obstacle() == "there is no GPU"


@pytest.mark.parametrize(
    "architectures, runs, fails",
    [
        ((75, 80, 90), [(7, 5), (8, 0), (8, 9), (9, 0), (10, 3), (12, 1)], [(7, 0)]),
        ((75, 90), [(7, 5), (9, 0), (12, 0)], [(8, 0), (8, 6)]),
        ((86,), [(8, 6), (8, 9), (9, 0)], [(7, 5), (8, 0)]),
    ],
)
def test_what_code_runs_on(architectures, runs, fails):
    cuda = build._Cuda((), "", architectures)
    assert all(cuda.runs_on(*capability) for capability in runs)
    assert not any(cuda.runs_on(*capability) for capability in fails)
