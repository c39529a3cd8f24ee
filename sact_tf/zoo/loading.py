"""Networks of the zoo by their names."""

from __future__ import annotations

import os

import tf_keras as keras

from sact_tf.checkpoints import fitting_variables
from sact_tf.data.examples import DataError
from sact_tf.domains import brief
from sact_tf.zoo import files, kinds
from sact_tf.zoo.cards import Card

DIRECTORY = os.path.join(os.path.dirname(os.path.abspath(__file__)), "networks")
"""Where the networks lie that come with the package."""

_SUFFIX = ".npz"


def list_networks() -> list[str]:
    """Returns the names of all networks that come with the package, sorted."""
    names = os.listdir(DIRECTORY) if os.path.isdir(DIRECTORY) else []
    return sorted(n.removesuffix(_SUFFIX) for n in names if n.endswith(_SUFFIX))


def path_of(name: str) -> str:
    """Returns the file of a network.

    Raises:
        ValueError: There is none of that name; lists those that are there.
    """
    known = list_networks()
    if name not in known:
        names = ", ".join(known) or "none in this installation"
        raise ValueError(f"name must be one of {names}; got {brief(name)}")
    return os.path.join(DIRECTORY, name + _SUFFIX)


def card(name: str) -> Card:
    """Returns what is known of a network: data, accuracy, operations, limits.

    Raises:
        ValueError: There is none of that name.
        DataError: Its file is damaged.
    """
    return read_card(path_of(name))


def read_card(path: str) -> Card:
    """Returns the card in a file; see `card`."""
    return Card.of(files.read_card(path), os.path.getsize(path), path)


def load(name: str, execution: str = "masked", **options) -> keras.Model:
    """Loads a trained network that comes with the package.

        network = sact_tf.load("sact-resnet32-cifar10", execution="perforated")
        logits = network(sact_tf.preprocess_input(images, network))
        network.card.class_names  # of the logits

    Args:
        name: One of `list_networks()`.
        execution: How units are computed in inference, "masked" or "perforated", with
            the same weights and results. Networks of recurrent attention have one way
            only: what has stopped leaves the batch.
        **options: Others that the network is made with and that leave its weights as
            they are: `name`, `dtype`, `tau`, options of its halting rule such as
            `test_mode`; and `num_classes=0` of classification networks, which leaves
            the classifier out, with `pooling`.

    Returns:
        The network. `network.card` says what it is, `network.card.class_names` the
        classes, `network.options.preprocessing` what its images go through.

    Raises:
        ValueError: There is none of that name, or an option is refused.
        DataError: The file is damaged.
    """
    return load_file(path_of(name), execution, **options)


def load_file(path: str, execution: str = "masked", **options) -> keras.Model:
    """Loads a network from a file that `experiments.zoo_pack` wrote.

    Runs no code of the file. Arguments and results are those of `load`.

    Raises:
        FileNotFoundError: There is no such file.
        DataError: It is damaged, or no network of the zoo.
        ValueError: An option is refused.
    """
    entries, tensors = files.read(path)
    network_card = Card.of(entries, os.path.getsize(path), path)
    asks = bool(options) or execution != "masked"
    try:
        model = kinds.make(network_card.network, execution=execution, **options)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        if asks:
            raise ValueError(f"{network_card.name}: {error}") from error
        raise DataError(f"{path}: holds no network ({error})") from error
    without_classifier = options.get("num_classes") == 0
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    try:
        wanted = fitting_variables(
            model, path, shapes, False, False, without_classifier
        )
    except ValueError as error:
        if asks:
            raise
        raise DataError(
            f"{path}: does not hold its network's weights ({error})"
        ) from error
    for name, variable in wanted.items():
        variable.assign(tensors[name])
    model.card = network_card
    return model
