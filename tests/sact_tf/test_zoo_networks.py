"""Networks of the zoo: files, what damaged ones say, and what their cards claim."""

import dataclasses
import io
import json
import os
import zipfile

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import sact_tf
from object_detection.faster_rcnn import FasterRCNN, Options
from sact_tf import evaluation, zoo
from sact_tf.data import cifar, mnist, shapes
from sact_tf.data.examples import DataError
from sact_tf.networks.recurrent_attention import recurrent_attention
from sact_tf.zoo import cards, files, kinds, loading

NETWORKS = {
    "vanilla": lambda: sact_tf.cifar_resnet("1", base_channels=2),
    "sact": lambda: sact_tf.cifar_resnet("2", "sact", base_channels=2, tau=0.1),
    "pact": lambda: sact_tf.cifar_resnet("2", "pact", base_channels=2),
    "imagenet": lambda: sact_tf.imagenet_resnet("1_2_1_1", "act", 3, base_channels=2),
    "iterative": lambda: sact_tf.iterative_net(
        max_iterations=(1, 2, 1, 1), num_classes=3, stem="cifar", base_channels=2
    ),
    "dt_ram": lambda: recurrent_attention(3, steps=3, units=4),
    "detector": lambda: FasterRCNN(
        2,
        "1_2_1_1",
        "sact",
        base_channels=2,
        options=Options(anchor_sizes=(16.0,), aspect_ratios=(1.0,), crop_size=7),
    ),
}


def entries(model, **changes):
    """What a card of a network says; its numbers are of no consequence here."""
    return {
        "name": "sact-shapes64",
        "title": "A network",
        "network": kinds.describe(model),
        "class_names": ["a", "b"],
        "preprocessing": "standardized",
        "image_size": 32,
        "data": {"name": "images", "terms": "none"},
        "evaluation": {
            "program": "cifar_main",
            "dataset": "shapes",
            "metric": "accuracy",
            "value": 0.9012,
            "value_float32": 0.9016,
            "num_examples": 2000,
            "split": "test",
            "flops": 5e7,
            "flops_std": 1e6,
            "relative_flops": 0.5,
            "relative_to": "those of the ordinary network of the same depth",
            "global_step": 9,
            "others": {"units per block": "1.00, 1.50, 2.00"},
        },
        "training": {
            "program": "cifar_main",
            "flags": ["--tau=0.1"],
            "commit": "abc",
            "machine": "a processor, 2 cores",
            "seconds": 600.0,
        },
        "limits": ["It knows nothing."],
        "recipe": "sact-shapes64.flags",
        "times": [],
        **changes,
    }


def weights(model):
    return {name: v.numpy() for name, v in sact_tf.slim_variables(model).items()}


@pytest.fixture
def packed(tmp_path, lively):
    """Returns a function that packs a network; returns its file and the network."""

    def pack(make=NETWORKS["sact"], **changes):
        model = lively(make())
        path = str(tmp_path / "network.npz")
        files.write(path, entries(model, **changes), weights(model))
        return path, model

    return pack


def run(model):
    """Returns what a network of any kind makes of an image."""
    if isinstance(model, FasterRCNN):
        images = tf.random.stateless_uniform([1, 32, 48, 3], [1, 2], -1, 1)
        features, _ = model.extract(images, tf.constant([[32, 48]]))
        return features
    shape = getattr(model, "image_shape", (24, 16, 3))
    return model(tf.random.stateless_normal([2, *shape], [1, 2]), training=False)


def some(*names):
    """All networks, those beside the named ones in the long tests alone."""
    return pytest.mark.parametrize(
        "name",
        [
            n if n in names else pytest.param(n, marks=pytest.mark.long)
            for n in NETWORKS
        ],
    )


@some("sact", "pact", "iterative", "dt_ram", "detector")
def test_a_network_comes_back_with_rounded_weights(packed, name):
    path, model = packed(NETWORKS[name])
    loaded = zoo.load_file(path)
    expected = files.rounded(weights(model))
    for key, value in weights(loaded).items():
        np.testing.assert_array_equal(value, expected[key], key)
        if value.ndim < 2:
            np.testing.assert_array_equal(value, weights(model)[key], key)
    for key, variable in sact_tf.slim_variables(model).items():
        variable.assign(expected[key])
    np.testing.assert_array_equal(run(loaded), run(model))
    assert loaded.card.class_names == ("a", "b")
    assert loaded.card.size == os.path.getsize(path)


@some("sact", "detector")
def test_perforated_execution(packed, name):
    path, _ = packed(NETWORKS[name])
    masked, perforated = zoo.load_file(path), zoo.load_file(path, "perforated")
    if name != "dt_ram":
        assert (masked.execution, perforated.execution) == ("masked", "perforated")
        again = masked.with_execution("perforated")
        assert again.card is masked.card
    np.testing.assert_allclose(run(perforated), run(masked), rtol=1e-3, atol=1e-4)


def test_options_that_leave_weights_as_they_are(packed):
    path, model = packed(NETWORKS["pact"])
    sampled = zoo.load_file(path, test_mode="discrete", name="mine")
    assert sampled.options.make_rule().test_mode == "discrete"
    assert sampled.name == "mine"
    features = zoo.load_file(path, num_classes=0, pooling="avg")
    assert run(features).shape == (2, 8)
    for options, message in (
        (dict(execution="tiled"), "tiled"),
        (dict(execution="fast"), "execution must be one of masked, .*; got 'fast'"),
        (dict(model="3"), "missing in the checkpoint"),
        (dict(num_classes=4), "another shape"),
        (dict(nonsense=1), "nonsense"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            zoo.load_file(path, **options)
        assert not isinstance(error.value, DataError)


def test_the_same_content_gives_the_same_bytes(packed, tmp_path):
    path, model = packed()
    before = open(path, "rb").read()
    files.write(path, entries(model), weights(model))
    assert open(path, "rb").read() == before
    assert files.read_card(path) == {"format": files.FORMAT, **entries(model)}
    nan = {**weights(model), "x": np.array([[np.nan]])}
    with pytest.raises(ValueError, match="x must be finite"):
        files.write(path, entries(model), nan)
    assert open(path, "rb").read() == before


@given(
    st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=20),
    st.booleans(),
)
def test_rounding_keeps_what_float16_cannot_hold(values, is_kernel):
    array = np.array(values, np.float32)
    array = array[np.newaxis] if is_kernel else array
    back = files.half(array).astype(np.float32)
    assert np.isfinite(back).all()
    if not is_kernel or np.abs(array).max() > 65504:
        np.testing.assert_array_equal(back, array)
    else:
        np.testing.assert_allclose(back, array, rtol=2**-10, atol=2**-24)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Content of a file, and a place for damaged copies."""
    model = NETWORKS["vanilla"]()
    path = tmp_path_factory.mktemp("zoo") / "network.npz"
    files.write(str(path), entries(model), weights(model))
    return path.read_bytes(), path


@settings(max_examples=20)
@given(st.floats(0, 1), st.integers(0, 255), st.booleans())
def test_damaged_files_give_one_clear_error(whole, place, byte, is_cut):
    content, path = whole
    k = min(int(place * len(content)), len(content) - 1)
    damaged = content[:k] if is_cut else content[:k] + bytes([byte]) + content[k + 1 :]
    path.write_bytes(damaged)
    try:
        files.read(str(path))
    except DataError as error:
        assert str(error).startswith(f"{path}: ")
        return
    finally:
        path.write_bytes(content)
    # What zip files do not check, such as times and attributes.
    assert not is_cut and len(damaged) == len(content)


def rewrite(path, change):
    """Changes the arrays in a file."""
    with np.load(path) as found:
        arrays = dict(found)
    change(arrays)
    np.savez(path, **arrays)


def set_card(arrays, text):
    arrays["card"] = np.frombuffer(text.encode(), np.uint8)


def change_card(**changes):
    def change(arrays):
        card = json.loads(arrays["card"].tobytes())
        set_card(arrays, json.dumps({**card, **changes}))

    return change


def with_config(**changes):
    def change(arrays):
        card = json.loads(arrays["card"].tobytes())
        card["network"]["config"].update(changes)
        set_card(arrays, json.dumps(card))

    return change


def first_weight(value):
    def change(arrays):
        name = min(set(arrays) - {"card"})
        arrays[name] = value(arrays[name])

    return change


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda a: a.pop("card"), "is no network of the zoo: it has no card"),
        (lambda a: a.update(card=np.zeros(3)), "it has no card"),
        (lambda a: set_card(a, "{"), "has a card that is no JSON"),
        (lambda a: set_card(a, "[" * 100000), "has a card that is no JSON"),
        (lambda a: set_card(a, "[1]"), "which has no 'format'"),
        (lambda a: set_card(a, " " * 2**20 + "{}"), "a card of 1048578 bytes"),
        (change_card(format=2), "is of format 2; this version reads 1"),
        (change_card(network=3), "has network 3; expected a mapping"),
        (change_card(class_names="ab"), "has class_names 'ab'; expected a list of"),
        (change_card(evaluation={}), "evaluation has no 'program'"),
        (change_card(network={"kind": "os"}), "kind must be one of CifarResNet.*'os'"),
        (
            change_card(network={"kind": "CifarResNet", "config": [1]}),
            "config must be plain options",
        ),
        (with_config(model="1_1_99999999999"), "at most 1000 residual units"),
        (with_config(model_type="x"), "holds no network .*model_type"),
        (with_config(nonsense=1), "holds no network"),
        (with_config(base_channels=3), "does not hold its network's weights"),
        (lambda a: a.update(x=np.zeros(2, np.float32)), "not used by the network"),
        (lambda a: a.pop(min(set(a) - {"card"})), "1 variable.* missing"),
        (first_weight(lambda w: w * np.nan), "holds NaN or infinity"),
        (first_weight(lambda w: w.astype(np.int64)), "must be float16 or float32"),
        (first_weight(lambda w: w.astype(object)), "is no readable .npz file"),
    ],
)
def test_hostile_files(packed, change, message):
    path, _ = packed(NETWORKS["vanilla"])
    rewrite(path, change)
    with pytest.raises(DataError, match=message) as error:
        zoo.load_file(path)
    assert str(error.value).startswith(f"{path}: ")


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        zoo.load_file(str(tmp_path / "none.npz"))
    path = tmp_path / "bomb.npz"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (2**40,)}
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("card.npy", header.getvalue())
    with pytest.raises(DataError, match="claims .* bytes and has at most"):
        zoo.load_file(str(path))


def test_unknown_names_list_those_there_are(monkeypatch, tmp_path):
    for name in ("b", "a"):
        (tmp_path / f"{name}.npz").touch()
    monkeypatch.setattr(loading, "DIRECTORY", str(tmp_path))
    assert sact_tf.list_networks() == ["a", "b"]
    for name in ("c", "../a", None):
        with pytest.raises(ValueError, match="name must be one of a, b; got"):
            sact_tf.load(name)
    monkeypatch.setattr(loading, "DIRECTORY", str(tmp_path / "none"))
    assert sact_tf.list_networks() == []
    with pytest.raises(ValueError, match="none in this installation"):
        zoo.card("a")


def test_cards_in_words():
    model = NETWORKS["sact"]()
    time = dict(side="native", milliseconds=1.5, machine="a processor")
    card = cards.Card.of(entries(model, times=[time]), 123456, "x")
    text = str(card)
    for part in (
        "accuracy 90.12 % on 2000 images (test)",
        "90.16 %, +0.04 points",
        "50.0 % of those of the ordinary network",
        "| units per block | 1.00, 1.50, 2.00 |",
        "| time per image, native | 1.50 ms (a processor) |",
        "9 steps, 10 minutes",
        "123 kB",
        "--flagfile=experiments/recipes/sact-shapes64.flags",
        "* It knows nothing.",
    ):
        assert part in text
    assert "| sact-shapes64 | accuracy 90.12 % | 50.0 % | 123 kB |" in cards.page(
        [card]
    )
    assert "No network has been packed yet." in cards.page([])
    with pytest.raises(dataclasses.FrozenInstanceError):
        card.name = "other"


def test_only_known_networks_are_described():
    class Mine(sact_tf.CifarResNet):
        pass

    with pytest.raises(ValueError, match="model must be one of CifarResNet"):
        kinds.describe(Mine("1", base_channels=2))


# What follows is of the networks that come with the package.

shipped = pytest.mark.parametrize("name", sact_tf.list_networks())


@shipped
def test_shipped_networks_load(name):
    assert os.path.getsize(loading.path_of(name)) <= 1_200_000
    model = sact_tf.load(name)
    card = model.card
    assert card.name == name and card.class_names and card.limits
    if hasattr(model, "extract"):
        assert len(card.class_names) == model.get_config()["num_classes"]
    else:
        assert run(model).shape == (2, len(card.class_names))
    side = int(card.image_size[0])
    pixels = np.random.default_rng(0).integers(0, 256, [2, side, side, 3])
    if isinstance(model, sact_tf.Network):
        inputs = sact_tf.preprocess_input(pixels.astype(np.uint8), model)
        assert np.isfinite(model(inputs)).all()


def check_accuracy(name, examples, tolerance):
    card = zoo.card(name)
    results = evaluation.evaluate(sact_tf.load(name), examples.evaluation_batches(100))
    found = results["eval/Accuracy"]
    assert abs(found - card.evaluation["value"]) <= tolerance
    relative = results["Total Flops/mean"] / card.evaluation["flops"]
    assert abs(relative - 1) <= max(tolerance, 0.01)


def of_data(part):
    names = [n for n in sact_tf.list_networks() if part in n]
    return pytest.mark.parametrize("name", names)


@of_data("shapes64")
def test_accuracy_on_generated_images(name):
    """On the first of the images that the card's number is of: within 4 deviations."""
    count = 150
    value = zoo.card(name).evaluation["value"]
    tolerance = 4 * np.sqrt(max(value * (1 - value), 0.01) / count)
    check_accuracy(name, shapes.load("test", 64, count), tolerance)


@pytest.mark.long
@of_data("shapes64")
def test_accuracy_on_all_generated_images(name):
    check_accuracy(name, shapes.load("test", 64), 0.002)


@pytest.fixture
def data_dir():
    """Directory of real data; skips where none is named."""
    directory = os.environ.get("SACT_DATA_DIR")
    if not directory:
        pytest.skip(
            "set SACT_DATA_DIR to a directory with cifar10/cifar10_test.tfrecord, "
            "mnist.npz and bccd/ to check the accuracy on real data"
        )
    return directory


def need(path):
    if not os.path.exists(path):
        pytest.skip(f"SACT_DATA_DIR has no {os.path.basename(path)}")
    return path


@pytest.mark.long
@of_data("cifar10")
def test_accuracy_on_cifar10(name, data_dir):
    directory = need(os.path.join(data_dir, "cifar10"))
    check_accuracy(name, cifar.load_tfrecord(directory, "test"), 0.002)


@pytest.mark.long
@of_data("mnist")
def test_accuracy_on_mnist(name, data_dir):
    digits = mnist.load_npz(need(os.path.join(data_dir, "mnist.npz")), "test")
    model, right = sact_tf.load(name), []
    for images, labels in digits.evaluation_batches(500):
        right.append(np.argmax(model(images), -1) == labels)
    accuracy = np.concatenate(right).mean()
    assert abs(accuracy - zoo.card(name).evaluation["value"]) <= 0.002


@pytest.mark.long
@of_data("bccd")
def test_accuracy_on_bccd(name, data_dir):
    from object_detection import evaluation as detection
    from object_detection.data import coco

    folder = need(os.path.join(data_dir, "bccd"))
    card = zoo.card(name)
    short, long = card.image_size
    examples = coco.load(
        os.path.join(folder, "annotations", "instances_test.json"),
        os.path.join(folder, "images"),
        short_side=int(short),
        long_side=int(long),
    )
    metrics, _ = detection.evaluate(sact_tf.load(name), examples)
    assert abs(metrics["AP50"] - card.evaluation["value"]) <= 0.005
