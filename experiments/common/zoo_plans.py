"""The networks of the zoo: what files of runs and evaluations do not tell."""

from __future__ import annotations

import dataclasses

from sact_tf.data import cifar, shapes


@dataclasses.dataclass(frozen=True)
class Data:
    """What networks are trained on.

    Attributes:
        name: With its source.
        terms: Of its use.
        class_names: None: the evaluation tells them.
    """

    name: str
    terms: str
    class_names: tuple[str, ...] | None = None


CIFAR10 = Data(
    "CIFAR-10 (Krizhevsky, 2009), each image stored as JPEG at quality about 75",
    "a research data set that states no licence",
    cifar.CLASS_NAMES,
)
SHAPES = Data(
    "images that `sact_tf.data.shapes` generates",
    "none: they are generated",
    shapes.CLASS_NAMES,
)
BCCD = Data(
    "BCCD, photographs of blood cells, 205 to train on",
    "MIT licence",
)
MNIST = Data(
    "MNIST (LeCun, Cortes and Burges)",
    "Creative Commons Attribution-ShareAlike 3.0",
    tuple("0123456789"),
)

_TINY = (
    "It knows ten classes of tiny pictures. Of any other picture it still names one of "
    "them, with whatever confidence."
)
_SHARP = (
    "Trained and tested on JPEG images; on lossless ones, accuracy may be a little "
    "different."
)
_CIFAR = (_TINY, _SHARP)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A network that is to be packed.

    Attributes:
        title: What it is, in words.
        data: What it is trained on.
        limits: What it is not good for.
        start: Name of the recipe of the network that its training started from; "":
            none.
    """

    title: str
    data: Data
    limits: tuple[str, ...]
    start: str = ""


_VANILLA = "vanilla-resnet32-cifar10"

PLANS = {
    _VANILLA: Plan(
        "ResNet-32, an ordinary network: the one that the adaptive ones start from",
        CIFAR10,
        _CIFAR,
    ),
    "sact-resnet32-cifar10": Plan(
        "ResNet-32 with spatially adaptive computation time (SACT): every position "
        "decides how many units it takes",
        CIFAR10,
        _CIFAR,
        _VANILLA,
    ),
    "sact-resnet32-cifar10-fast": Plan(
        "ResNet-32 with spatially adaptive computation time (SACT), at a higher price "
        "of units",
        CIFAR10,
        _CIFAR,
        _VANILLA,
    ),
    "act-resnet32-cifar10": Plan(
        "ResNet-32 with adaptive computation time (ACT): every image decides how many "
        "units it takes",
        CIFAR10,
        _CIFAR,
        _VANILLA,
    ),
    "pact-resnet32-cifar10": Plan(
        "ResNet-32 with probabilistic adaptive computation time (PACT), thresholded",
        CIFAR10,
        _CIFAR,
        _VANILLA,
    ),
    "iterative-cifar10": Plan(
        "Iterative residual network: each stage runs one unit again and again, until a "
        "gate stops it",
        CIFAR10,
        _CIFAR,
    ),
    "sact-shapes64": Plan(
        "Small network with spatially adaptive computation time (SACT) for generated "
        "images of 64x64 pixels",
        SHAPES,
        ("It knows nothing but generated shapes on clutter.",),
        "vanilla-shapes64",
    ),
    "detector-bccd": Plan(
        "Faster R-CNN with SACT features that finds blood cells",
        BCCD,
        (
            "No medical device: it was trained on 205 photographs, "
            "and must not be used to diagnose anything.",
        ),
        "vanilla-detector-bccd",
    ),
    "dt-ram-mnist": Plan(
        "Recurrent visual attention that decides when to stop (DT-RAM), on digits",
        MNIST,
        ("It knows upright, centred digits of 28x28 pixels, light on dark.",),
        "dt-ram-mnist-2",
    ),
}
"""By the names that `sact_tf.load` takes."""
