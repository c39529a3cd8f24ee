"""Packages that only some uses need: imported where used, named where missing."""

from __future__ import annotations

import importlib
import types

_PACKAGES = {
    # Modules by other names than their packages; the extra of this project with it.
    "PIL": ("pillow", "plots"),
    "matplotlib": ("matplotlib", "plots"),
    "official": ("tf-models-official", "all"),
    "openvino": ("openvino", "openvino"),
    "pycocotools": ("pycocotools", "all"),
    "safetensors": ("safetensors", "pretrained"),
    "scipy": ("scipy", "plots"),
    "tensorflow_datasets": ("tensorflow-datasets", "all"),
    "tf2onnx": ("tf2onnx", "onnx"),
    "tqdm": ("tqdm", "plots"),
}


class MissingPackageError(ImportError):
    """What was asked for needs a package that is not installed; names it."""


def load(name: str) -> types.ModuleType:
    """Imports a module of a package that the small install does without.

    Args:
        name: Of the module, such as "scipy.ndimage".

    Raises:
        MissingPackageError: The package is not installed; says how to install it.
    """
    top = name.partition(".")[0]
    package, extra = _PACKAGES[top]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # Another missing module is a fault of the package, and stays what it is.
        if error.name is None or error.name.partition(".")[0] != top:
            raise
        raise MissingPackageError(
            f"this needs the package {package}, which is not installed: "
            f"pip install {package} (or 'sact-tf[{extra}]')"
        ) from error


class _Lazy(types.ModuleType):
    """A module that is imported when something of it is first asked for."""

    def __getattr__(self, name: str):
        return getattr(load(self.__name__), name)


def lazy(name: str) -> types.ModuleType:
    """Returns a stand-in for a module; see `load` for what using it may raise.

    >>> lazy("scipy.ndimage").gaussian_filter is load("scipy.ndimage").gaussian_filter
    True
    """
    return _Lazy(name)
