"""Installs the libraries; the programs in experiments/ run from the source tree."""

import importlib.util
import pathlib
import re
import subprocess
import sys

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

_ROOT = pathlib.Path(__file__).parent
_VERSION = re.search(
    r'__version__ = "(.+)"', (_ROOT / "sact_tf" / "__init__.py").read_text()
)[1]


class BuildKernels(build_py):
    """Also compiles the native kernels, where TensorFlow is there to build against.

    They end up in the user's cache, which is where they are looked for; should it fail,
    they are compiled on first use, or plain TensorFlow operations run.
    """

    def run(self):
        super().run()
        if importlib.util.find_spec("tensorflow") is not None:
            subprocess.run([sys.executable, "-m", "custom_ops.build"], cwd=_ROOT)


setup(
    name="sact-tf",
    version=_VERSION,
    description="Spatially Adaptive Computation Time in TensorFlow",
    long_description=(_ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(
        include=[
            "sact_tf",
            "sact_tf.*",
            "custom_ops",
            "custom_ops.*",
            "object_detection",
            "object_detection.*",
        ]
    ),
    cmdclass={"build_py": BuildKernels},
    package_data={"custom_ops": ["kernels/*", "kernels/emulation/*"]},
    install_requires=[
        "absl-py>=1.4",
        "h5py>=3.8",
        "matplotlib>=3.7",
        "numpy>=1.26",
        "pillow>=9.2",
        "pycocotools>=2.0.7",
        "scipy>=1.11",
        "tensorflow~=2.20.0",
        "tensorflow-datasets>=4.9.3",
        "tf-keras~=2.20.0",
        "tf-models-official~=2.20.0",
    ],
    extras_require={
        "onnx": ["tf2onnx>=1.17"],
        "test": [
            "hypothesis>=6.80",
            "onnxruntime>=1.20",
            "pytest>=7.4",
            "pytest-xdist>=3.3",
            "ruff>=0.9",
            "tf2onnx>=1.17",
        ],
    },
)
