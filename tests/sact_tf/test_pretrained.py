"""Weights of elsewhere in our networks, in files of their layouts."""

import functools
import re
import types
import zipfile

import h5py
import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import sact_tf
from sact_tf import checkpoints, keras_files, pretrained
from sact_tf.data.examples import DataError
from sact_tf.networks.options import Form
from sact_tf.pretrained import loading

UNITS = "1_1_1_1"
FORMS = {
    "keras_applications": Form("zeros", "input"),
    "keras_hub": Form("symmetric", "conv2"),
    "timm": Form("symmetric", "conv2"),
    "slim": Form("same", "input"),
}
every_source = pytest.mark.parametrize("source", list(FORMS))


def build(model_type="vanilla", units=UNITS, num_classes=1000, **options):
    options = {"base_channels": 4, "tau": 0.1, **options}
    return sact_tf.imagenet_resnet(units, model_type, num_classes, **options)


@functools.cache
def refusing():
    """A network to which nothing is ever assigned."""
    return build(num_classes=3)


def images(height=48, width=37):
    return tf.random.stateless_uniform([2, height, width, 3], [1, 2], -1.0, 1.0)


def tensors_of(model):
    """A network's arrays by their names below the root."""
    variables = sact_tf.slim_variables(model)
    return {n.partition("/")[2]: v.numpy() for n, v in variables.items()}


def by_layer(tensors):
    """Those arrays by layer: kernel and bias, or gamma, beta, mean and variance."""
    order = ("weights", "biases", "gamma", "beta", "moving_mean", "moving_variance")
    layers = {}
    for name in sorted(tensors, key=lambda n: order.index(n.rpartition("/")[2])):
        layers.setdefault(name.rpartition("/")[0], []).append(tensors[name])
    return layers


def in_words_of(words, layer):
    """Names a layer as `words` does: (others, unit, parts, first block, first unit)."""
    others, unit, parts, first_block, first_unit = words
    if layer in others:
        return others[layer]
    block, number, part = re.match(
        r"block(\d)/unit_(\d+)/bottleneck_v2/(.+)", layer
    ).groups()
    numbers = (int(block) - 1 + first_block, int(number) - 1 + first_unit)
    return unit.format(*numbers, parts[part])


KERAS_PARTS = {
    "preact": "preact_bn",
    "shortcut": "0_conv",
    "conv1": "1_conv",
    "conv1/BatchNorm": "1_bn",
    "conv2": "2_conv",
    "conv2/BatchNorm": "2_bn",
    "conv3": "3_conv",
}
KERAS = {"conv1": "conv1_conv", "postnorm": "post_bn", "logits": "predictions"}
APPLICATIONS = (KERAS, "conv{}_block{}_{}", KERAS_PARTS, 2, 1)
HUB = (
    KERAS,
    "stack{}_block{}_{}",
    {**KERAS_PARTS, "preact": "pre_activation_bn"},
    0,
    0,
)
TIMM = (
    {"conv1": "stem.conv", "postnorm": "norm", "logits": "head.fc"},
    "stages.{}.blocks.{}.{}",
    {
        "preact": "norm1",
        "shortcut": "downsample.conv",
        "conv1": "conv1",
        "conv1/BatchNorm": "norm2",
        "conv2": "conv2",
        "conv2/BatchNorm": "norm3",
        "conv3": "conv3",
    },
    0,
    0,
)


def without_biases(layers):
    """As networks have it whose convolutions, but for the last, have no biases."""
    return {
        name: arrays[:1] if len(arrays) == 2 and name != "logits" else arrays
        for name, arrays in layers.items()
    }


def write_applications(path, layers):
    with h5py.File(path, "w") as file:
        names = {in_words_of(APPLICATIONS, layer): layer for layer in layers}
        file.attrs["layer_names"] = [name.encode() for name in names]
        for name, layer in names.items():
            arrays = layers[layer]
            if layer == "logits":
                arrays = [arrays[0][0, 0], arrays[1]]
            group = file.create_group(name)
            weights = [f"{name}/{k}:0" for k in range(len(arrays))]
            group.attrs["weight_names"] = [weight.encode() for weight in weights]
            for weight, array in zip(weights, arrays):
                group[weight] = array


def counted(layers):
    """Layers in the order in which Keras' newer layout counts them."""
    ordered = ["conv1"]
    starts = dict.fromkeys(
        re.match(r"(block\d/unit_\d+/bottleneck_v2)/", layer)[1]
        for layer in sorted(layers)
        if layer.startswith("block")
    )
    for start in starts:
        parts = ("preact", "conv1", "conv1/BatchNorm", "conv2", "conv2/BatchNorm")
        ordered += [f"{start}/{part}" for part in (*parts, "shortcut", "conv3")]
    return [layer for layer in (*ordered, "postnorm", "logits") if layer in layers]


def write_hub(path, layers, named=True):
    with h5py.File(path, "w") as file:
        counts = {}
        for layer in counted(layers):
            arrays, kind = layers[layer], "conv2d"
            kind = "batch_normalization" if len(arrays) == 4 else "conv2d"
            if layer == "logits":
                arrays, kind = [arrays[0][0, 0], arrays[1]], "dense"
            number = counts.get(kind, 0)
            counts[kind] = number + 1
            group = f"layers/{kind}_{number}" if number else f"layers/{kind}"
            variables = file.create_group(f"{group}/vars")
            if named:
                variables.attrs["name"] = in_words_of(HUB, layer)
            for k, array in enumerate(arrays):
                variables[str(k)] = array


def write_timm(path, layers, dtype=np.float32):
    from safetensors.numpy import save_file

    arrays = {}
    for layer, values in layers.items():
        name = in_words_of(TIMM, layer)
        parts = ("weight", "bias", "running_mean", "running_var")
        if len(values) < 4:
            values = [values[0].transpose(3, 2, 0, 1), *values[1:]]
        else:
            arrays[f"{name}.num_batches_tracked"] = np.int64([7])
        for part, value in zip(parts, values):
            arrays[f"{name}.{part}"] = np.ascontiguousarray(value, dtype)
    save_file(arrays, path)


def write_slim(path, layers, root="resnet_v2_50"):
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    tensors = {}
    for layer, arrays in layers.items():
        parts = names if len(arrays) == 4 else ("weights", "biases")
        tensors.update({f"{root}/{layer}/{p}": a for p, a in zip(parts, arrays)})
    tensors[f"{root}/conv1/weights/Momentum"] = layers["conv1"][0]
    checkpoints.write_tensors(str(path), tensors, 5)


def write(source, tmp_path, layers):
    """Writes layers as a source does; returns the path."""
    if source == "keras_applications":
        write_applications(tmp_path / "network.h5", layers)
        return str(tmp_path / "network.h5")
    if source == "keras_hub":
        write_hub(tmp_path / "network.weights.h5", layers)
        return str(tmp_path / "network.weights.h5")
    if source == "timm":
        write_timm(tmp_path / "network.safetensors", layers)
        return str(tmp_path / "network.safetensors")
    write_slim(tmp_path / "slim" / "resnet_v2_50.ckpt", layers)
    return str(tmp_path / "slim" / "resnet_v2_50.ckpt")


def layers_of(source, model):
    layers = by_layer(tensors_of(model))
    return without_biases(layers) if source in ("timm", "keras_hub") else layers


@every_source
def test_every_layout_gives_the_network_it_was_written_of(lively, tmp_path, source):
    form = FORMS[source]
    model = lively(build(**form._asdict()))
    layers = layers_of(source, model)
    if source in ("timm", "keras_hub"):
        for name, variable in sact_tf.slim_variables(model).items():
            if name.endswith("/biases") and "/logits/" not in name:
                variable.assign(tf.zeros_like(variable))
    path = write(source, tmp_path, layers)
    other = build(**form._asdict())
    loaded = sact_tf.load_pretrained(other, path)
    assert loaded.source == pretrained.SOURCES[source].description
    assert list(loaded.variables) == sorted(sact_tf.slim_variables(other))
    assert loaded.notes == ()
    np.testing.assert_allclose(other(images()), model(images()), atol=1e-5)
    assert other.get_config()["preprocessing"] == "symmetric"


def test_epsilon_of_keras_applications_is_kept(lively, tmp_path):
    model = lively(build(**FORMS["keras_applications"]._asdict()))
    layers = by_layer(tensors_of(model))
    variance = np.float32([0.0, 1e-7, 1e-5, 0.5] * 16)
    layers["block1/unit_1/bottleneck_v2/preact"][3] = variance
    path = write("keras_applications", tmp_path, layers)
    sact_tf.load_pretrained(model, path)
    preact = model.blocks[0].units[0].preact
    theirs = 1 / np.sqrt(variance.astype(np.float64) + 1.001e-5)
    ours = preact.moving_variance.numpy().astype(np.float64) + preact.epsilon
    np.testing.assert_allclose(1 / np.sqrt(ours), theirs, rtol=1e-7)


def test_older_layout_of_keras_hub_without_names(lively, tmp_path):
    form = FORMS["keras_hub"]
    model = lively(build(units="2_1_1_2", **form._asdict()))
    layers = layers_of("keras_hub", model)
    write_hub(tmp_path / "new.weights.h5", layers)
    write_hub(tmp_path / "old.weights.h5", layers, named=False)
    new, old = (
        pretrained.identify(str(tmp_path / f"{age}.weights.h5"))
        for age in ("new", "old")
    )
    assert new.units == old.units == "2_1_1_2"
    assert new.source == old.source == pretrained.SOURCES["keras_hub"]
    assert new.tensors.keys() == old.tensors.keys()
    for name, value in new.tensors.items():
        np.testing.assert_array_equal(old.tensors[name], value, err_msg=name)


@pytest.mark.parametrize(
    "source, wrong",
    [
        ("keras_applications", {"downsample": "conv2"}),
        ("keras_hub", {"stem_pool": "same"}),
        ("timm", {"downsample": "input"}),
        ("slim", {"stem_pool": "symmetric"}),
    ],
)
def test_another_form_is_refused(tmp_path, source, wrong):
    form = FORMS[source]
    model = build(**{**form._asdict(), **wrong})
    before = model.get_weights()
    path = write(source, tmp_path, layers_of(source, model))
    with pytest.raises(ValueError, match="make it with") as error:
        sact_tf.load_pretrained(model, path)
    assert str(error.value).endswith(f"make it with {form}")
    for value, old in zip(model.get_weights(), before):
        np.testing.assert_array_equal(value, old)


def test_background_class_comes_and_goes(lively, tmp_path):
    form = FORMS["keras_applications"]._asdict()
    model = lively(build(**form))
    path = write("keras_applications", tmp_path, by_layer(tensors_of(model)))
    larger = build(num_classes=1001, **form)
    (note,) = sact_tf.load_pretrained(larger, path).notes
    assert note.startswith("1000 classes became 1001") and "background" in note
    logits, more = model(images()).numpy(), larger(images()).numpy()
    np.testing.assert_allclose(more[:, 1:], logits, atol=1e-5)
    probabilities = tf.nn.softmax(more).numpy()
    np.testing.assert_allclose(probabilities[:, 1:], tf.nn.softmax(logits), atol=1e-6)
    smaller = build(**form)
    sact_tf.save_slim_checkpoint(larger, str(tmp_path / "larger" / "model.ckpt-0"))
    (note,) = sact_tf.load_pretrained(smaller, str(tmp_path / "larger")).notes
    assert note.startswith("1001 classes became 1000")
    np.testing.assert_allclose(smaller(images()), logits, atol=1e-5)


def test_other_classes(tmp_path):
    form = FORMS["timm"]._asdict()
    path = write("timm", tmp_path, layers_of("timm", build(**form)))
    model = build(num_classes=4, **form)
    with pytest.raises(ValueError, match="1000 classes.* 4.*without_classifier=True"):
        sact_tf.load_pretrained(model, path)
    before = model.classifier.kernel.numpy()
    loaded = sact_tf.load_pretrained(model, path, without_classifier=True)
    assert not any("logits" in name for name in loaded.variables)
    np.testing.assert_array_equal(model.classifier.kernel, before)


def test_halting_starts_fresh(lively, tmp_path):
    form = dict(units="1_2_1_1", **FORMS["timm"]._asdict())
    path = write("timm", tmp_path, layers_of("timm", build(**form)))
    model = lively(build("sact", **form))
    before = tensors_of(model)
    sact_tf.load_pretrained(model, path)
    halting = {n: v for n, v in tensors_of(model).items() if "halting_proba" in n}
    assert halting
    for name, value in halting.items():
        np.testing.assert_array_equal(value, before[name])
    with pytest.raises(sact_tf.CheckpointMismatchError, match="halting_proba"):
        sact_tf.load_pretrained(model, path, fresh_halting=False)


def test_first_units(lively, tmp_path):
    form = FORMS["slim"]._asdict()
    deep = lively(build(units="2_1_1_1", **form))
    path = write("slim", tmp_path, by_layer(tensors_of(deep)))
    model = build(units="1_1_1_1", **form)
    with pytest.raises(ValueError, match="2_1_1_1 units.*1_1_1_1.*model='2_1_1_1'"):
        sact_tf.load_pretrained(model, path)
    sact_tf.load_pretrained(model, path, first_units=True)
    theirs, ours = tensors_of(deep), tensors_of(model)
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)


@pytest.mark.parametrize(
    "family, kind",
    [("cifar", "slim"), ("cifar", ".weights.h5"), ("imagenet", ".keras")],
)
def test_our_own_files(lively, tmp_path, family, kind):
    def make(model_type):
        if family == "cifar":
            return sact_tf.cifar_resnet("1_2_1", model_type, base_channels=2)
        return build(model_type, num_classes=3, stem_pool="zeros")

    model, other, vanilla = lively(make("sact")), make("sact"), make("vanilla")
    path = str(tmp_path / f"network{kind}")
    if kind == ".keras":
        keras_files.save_network(model, path)
    elif kind == ".weights.h5":
        keras_files.save_weights(model, path)
    else:
        path = sact_tf.save_slim_checkpoint(model, str(tmp_path / "model.ckpt-3"))
    expected = tensors_of(model)
    sact_tf.load_pretrained(other, path, fresh_halting=False)
    assert sact_tf.load_pretrained(vanilla, path).source.startswith("this project")
    for loaded in (other, vanilla):
        for name, value in tensors_of(loaded).items():
            np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_checkpoints_tell_their_form(lively, tmp_path):
    model = lively(build(stem_pool="zeros", downsample="input"))
    path = sact_tf.save_slim_checkpoint(model, str(tmp_path / "model.ckpt-3"))
    squeezed = sact_tf.squeeze_checkpoint(path, str(tmp_path / "squeezed"))
    for prefix in (path, squeezed):
        sact_tf.load_slim_checkpoint(model, prefix)
        for load in (sact_tf.load_slim_checkpoint, sact_tf.load_pretrained):
            with pytest.raises(ValueError, match="make it with stem_pool='zeros', dow"):
                load(build(), prefix)


def test_root_scope_that_does_not_tell(lively, tmp_path):
    model = lively(build(downsample="input"))
    path = str(tmp_path / "model.ckpt")
    write_slim(path, by_layer(tensors_of(model)), root="my_network")
    other = build(downsample="input")
    with pytest.raises(DataError, match="'my_network'.*source='slim' or source='sact'"):
        sact_tf.load_pretrained(other, path)
    sact_tf.load_pretrained(other, path, source="slim")
    np.testing.assert_allclose(other(images()), model(images()), atol=1e-5)
    with pytest.raises(ValueError, match="source must be one of sact, slim.*'tim'"):
        sact_tf.load_pretrained(other, path, source="tim")


def test_another_width(tmp_path):
    form = FORMS["timm"]._asdict()
    path = write("timm", tmp_path, layers_of("timm", build(**form)))
    with pytest.raises(ValueError, match="4 channels.*has 2.*base_channels=4"):
        sact_tf.load_pretrained(build(base_channels=2, **form), path)
    with pytest.raises(ValueError, match="an ImageNet network; this one is a CifarRes"):
        sact_tf.load_pretrained(sact_tf.cifar_resnet("1"), path)


def small_file(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    return str(tmp_path / name)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("notes.txt", b"some words that are no weights", "of no known format; known"),
        ("empty.h5", b"", "of no known format"),
        ("model.pth", b"\x80\x02}q\x00.", "is a pickle.*can run any code"),
        ("cut.safetensors", b"\xff\x00\x00\x00\x00\x00\x00\x00{", "is truncated or no"),
        ("cut.h5", b"\x89HDF\r\n\x1a\n\x00\x00", "no readable weights"),
        ("cut.keras", b"PK\x03\x04", "is truncated"),
    ],
)
def test_files_that_are_no_weights(tmp_path, name, content, message):
    path = small_file(tmp_path, name, content)
    with pytest.raises(DataError, match=message) as error:
        sact_tf.load_pretrained(refusing(), path)
    assert str(error.value).startswith(path) and "\n" not in str(error.value)


def test_pickle_in_an_archive(tmp_path):
    path = str(tmp_path / "model.pth")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
    with pytest.raises(DataError, match="is a pickle"):
        sact_tf.load_pretrained(refusing(), path)


def test_missing_file():
    with pytest.raises(FileNotFoundError, match="at nowhere.h5, and no file"):
        sact_tf.load_pretrained(refusing(), "nowhere.h5")


def test_truncated_safetensors(tmp_path):
    path = write("timm", tmp_path, layers_of("timm", build()))
    with open(path, "rb") as file:
        content = file.read()
    small_file(tmp_path, "network.safetensors", content[: len(content) // 2])
    with pytest.raises(DataError, match="is truncated"):
        sact_tf.load_pretrained(build(), path)


@pytest.mark.parametrize(
    "names, message",
    [
        (["layer1.0.conv1.weight", "bn1.weight"], "ResNet v1"),
        (["stem.conv.weight", "stages.0.blocks.0.norm1.weight"], "BiT"),
        (["stem.conv1.weight"], "several convolutions in its stem"),
        (
            [
                "stem.conv.weight",
                "stages.0.blocks.0.norm1.weight",
                "stages.0.blocks.0.norm1.running_mean",
            ],
            "two convolutions",
        ),
        (["embeddings.weight"], "no ResNet v2 of timm.*'embeddings.weight'"),
    ],
)
def test_networks_of_timm_that_do_not_fit(tmp_path, names, message):
    from safetensors.numpy import save_file

    path = str(tmp_path / "model.safetensors")
    save_file({name: np.zeros([1], np.float32) for name in names}, path)
    with pytest.raises(DataError, match=message):
        sact_tf.load_pretrained(refusing(), path)


def test_networks_of_keras_that_do_not_fit(tmp_path):
    layers = by_layer(tensors_of(build(num_classes=3)))
    path = str(tmp_path / "model.h5")
    write_applications(path, layers)
    with h5py.File(path, "a") as file:
        names = [n for n in file.attrs["layer_names"] if n != "post_bn"]
        file.attrs["layer_names"] = [n.encode() for n in (*names, "conv1_bn")]
        file.move("post_bn", "conv1_bn")
    with pytest.raises(DataError, match="of a ResNet v1"):
        sact_tf.load_pretrained(refusing(), path)
    with h5py.File(path, "w") as file:
        file["layers/conv2d/vars/0"] = np.zeros([7, 7, 3, 64])
    with pytest.raises(DataError, match="those of no ResNet v2"):
        sact_tf.load_pretrained(refusing(), path)


def test_half_precision(tmp_path):
    form = FORMS["timm"]._asdict()
    layers = layers_of("timm", build(**form))
    write_timm(tmp_path / "half.safetensors", layers, np.float16)
    model = build(**form)
    sact_tf.load_pretrained(model, str(tmp_path / "half.safetensors"))
    assert model.stem.kernel.dtype == tf.float32
    np.testing.assert_allclose(model.stem.kernel, layers["conv1"][0], atol=1e-3)


def test_keras_applications_network_gives_the_same(lively, tmp_path):
    """Both networks run, on an image of odd sides."""
    theirs = lively(
        keras.applications.ResNet50V2(
            weights=None,
            include_top=False,
            input_shape=(None, None, 3),
            pooling="avg",
        )
    )
    path = str(tmp_path / "network.h5")
    theirs.save_weights(path)
    ours = sact_tf.imagenet_resnet("50", num_classes=3, weights=path)
    assert ours.options.form == FORMS["keras_applications"]
    x, _ = ours.run_blocks(images(63, 70))
    features = tf.reduce_mean(ours.final_bn(x), [1, 2])
    expected = theirs(images(63, 70))
    scale = np.abs(expected).max()
    np.testing.assert_allclose(features, expected, atol=1e-5 * scale)


@pytest.mark.long
@pytest.mark.parametrize("depth", ["50", "101", "152"])
@pytest.mark.parametrize("side", [224, 203])
def test_keras_applications_at_full_size(lively, tmp_path, depth, side):
    make = getattr(keras.applications, f"ResNet{depth}V2")
    theirs = lively(
        make(weights=None, input_shape=(side, side, 3), classifier_activation=None)
    )
    path = str(tmp_path / "network.h5")
    theirs.save_weights(path)
    for num_classes in (1000, 1001):
        ours = sact_tf.imagenet_resnet(depth, num_classes=num_classes, weights=path)
        expected = theirs(images(side, side)).numpy()
        logits = ours(images(side, side)).numpy()[:, -1000:]
        np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())


def test_weights_by_name(lively, monkeypatch):
    """Of a network that stands in for what Keras Applications downloads."""
    form = FORMS["keras_applications"]
    theirs = lively(build(**form._asdict()))
    layers = [
        types.SimpleNamespace(
            name=in_words_of(APPLICATIONS, layer),
            get_weights=lambda arrays=arrays: arrays,
        )
        for layer, arrays in by_layer(tensors_of(theirs)).items()
    ]

    def downloaded(weights):
        assert weights == "imagenet"
        return types.SimpleNamespace(layers=layers)

    monkeypatch.setitem(loading._APPLICATIONS, UNITS, "50")
    monkeypatch.setattr(keras.applications, "ResNet50V2", downloaded)
    options = dict(num_classes=1001, weights="keras_applications")
    ours = build("sact", **options)
    assert ours.options.form == form
    np.testing.assert_array_equal(ours.classifier.bias[1:], theirs.classifier.bias)
    np.testing.assert_array_equal(ours.stem.kernel, theirs.stem.kernel)
    with pytest.raises(ValueError, match="make it with stem_pool='zeros'"):
        build(stem_pool="same", **options)


def test_weights_where_there_is_no_network(monkeypatch):
    def offline(weights):
        raise Exception("URL fetch failure on https://example.org/x.h5: None")

    monkeypatch.setattr(keras.applications, "ResNet152V2", offline)
    with pytest.raises(OSError, match="resnet152v2_weights_tf.*h5 cannot be download"):
        sact_tf.imagenet_resnet("152", weights="keras_applications")
    with pytest.raises(ValueError, match="needs model='50', '101' or '152'.*3_24_36_3"):
        sact_tf.imagenet_resnet("200", weights="keras_applications")
