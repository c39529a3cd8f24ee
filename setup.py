"""Compiles the native kernels with the package; all else stands in pyproject.toml."""

import importlib.util
import pathlib
import subprocess
import sys

from setuptools import setup
from setuptools.command.build_py import build_py

_ROOT = pathlib.Path(__file__).parent


class BuildKernels(build_py):
    """Also compiles the native kernels, where TensorFlow is there to build against.

    They end up in the user's cache, which is where they are looked for; should it fail,
    they are compiled on first use, or plain TensorFlow operations run.
    """

    def run(self):
        super().run()
        if importlib.util.find_spec("tensorflow") is not None:
            subprocess.run([sys.executable, "-m", "custom_ops.build"], cwd=_ROOT)


setup(cmdclass={"build_py": BuildKernels})
