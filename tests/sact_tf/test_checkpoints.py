"""TF-Slim checkpoints: round trip, complaints, two-stage initialisation."""

import os

import numpy as np
import pytest
import tensorflow as tf

import sact_tf
from sact_tf import checkpoint_kinds, checkpoints
from sact_tf.checkpoints import restore_variables, write_tensors
from sact_tf.writing import WritingError


def cifar(model="2", model_type="sact", **options):
    return sact_tf.cifar_resnet(model, model_type, base_channels=4, **options)


@pytest.fixture
def saved(tmp_path):
    """Returns a function that saves a network and returns the prefix."""

    def save(model, name="model.ckpt-7"):
        return sact_tf.save_slim_checkpoint(model, str(tmp_path / name), 7)

    return save


@pytest.mark.parametrize(
    "build",
    [cifar, lambda: sact_tf.imagenet_resnet("2_1_2_1", "sact", 5, base_channels=2)],
)
def test_round_trip(build, saved):
    model, other = build(), build()
    for variable in model.variables:
        variable.assign(tf.random.normal(variable.shape) ** 2)
    path = saved(model)
    loaded = sact_tf.load_slim_checkpoint(other, path)
    assert len(loaded) == len(model.variables)
    for a, b in zip(model.variables, other.variables):
        np.testing.assert_array_equal(a, b)
    assert sact_tf.checkpoint_step(path) == 7


def test_a_directory_means_its_latest_checkpoint(saved, tmp_path):
    first, second = cifar(), cifar()
    saved(first, "model.ckpt-1")
    saved(second, "model.ckpt-2")
    model = cifar()
    sact_tf.load_slim_checkpoint(model, tmp_path)
    np.testing.assert_array_equal(model.stem.kernel, second.stem.kernel)


def test_everything_that_does_not_fit_is_listed(saved):
    path = saved(cifar("2", "act"))
    model = sact_tf.cifar_resnet("3", "sact", num_classes=7, base_channels=4)
    before = [v.numpy() for v in model.variables]
    with pytest.raises(sact_tf.CheckpointMismatchError) as caught:
        sact_tf.load_slim_checkpoint(model, path)
    error = caught.value
    assert "resnet_residual/block_1/unit_3/residual/conv1/weights" in error.missing
    act_only = "resnet_residual/block_2/unit_1/halting_proba/global_conv/biases"
    assert error.unused == [
        act_only.replace("block_2", f"block_{b}") for b in (1, 2, 3)
    ]
    assert ("resnet_residual/logits/biases", [10], [7]) in error.wrong_shape
    for name in (*error.missing, *error.unused, "checkpoint [10], network [7]"):
        assert name in str(error)
    for old, variable in zip(before, model.variables):
        np.testing.assert_array_equal(old, variable)


@pytest.mark.parametrize("model_type", ["act", "act_early_stopping", "sact"])
@pytest.mark.parametrize("source_type", ["vanilla", "act", "sact"])
def test_two_stage_initialisation(model_type, source_type, saved):
    source, model = cifar(model_type=source_type), cifar(model_type=model_type)
    path = saved(source)
    halting = {
        n: v.numpy() for n, v in sact_tf.slim_variables(model).items() if "halting" in n
    }
    sact_tf.load_slim_checkpoint(model, path, fresh_halting=True)
    variables = sact_tf.slim_variables(model)
    for name, variable in sact_tf.slim_variables(source).items():
        if "halting" not in name:
            np.testing.assert_array_equal(variables[name], variable)
    for name, value in halting.items():
        np.testing.assert_array_equal(variables[name], value)


@pytest.mark.parametrize("source_type", ["vanilla", "sact"])
def test_first_units_of_a_deeper_network(source_type, saved):
    source = cifar("4_3_2", source_type)
    path = saved(source)
    model = cifar("1_3_2", "vanilla")
    with pytest.raises(sact_tf.CheckpointMismatchError):
        sact_tf.load_slim_checkpoint(model, path)
    sact_tf.load_slim_checkpoint(model, path, first_units=True)
    expected = sact_tf.slim_variables(source)
    for name, variable in sact_tf.slim_variables(model).items():
        np.testing.assert_array_equal(variable, expected[name])
    with pytest.raises(sact_tf.CheckpointMismatchError, match="unit_5"):
        sact_tf.load_slim_checkpoint(cifar("5_3_2", "vanilla"), path, first_units=True)


def test_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        sact_tf.load_slim_checkpoint(cifar(), tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no checkpoint in directory"):
        sact_tf.load_slim_checkpoint(cifar(), tmp_path)


def test_a_truncated_checkpoint(saved):
    path = saved(cifar())
    data = f"{path}.data-00000-of-00001"
    with open(data, "r+b") as file:
        file.truncate(1000)
    with pytest.raises((FileNotFoundError, ValueError), match="model.ckpt-7"):
        sact_tf.load_slim_checkpoint(cifar(), path)


def test_the_newest_complete_checkpoint_is_taken(tmp_path):
    model = sact_tf.cifar_resnet("1", base_channels=2)
    values = {n: v.numpy() for n, v in sact_tf.slim_variables(model).items()}
    for step in (1, 2, 3):
        write_tensors(str(tmp_path / f"model.ckpt-{step}"), values, step, keep=5)
    assert sact_tf.newest_checkpoint(tmp_path).endswith("model.ckpt-3")
    (tmp_path / "model.ckpt-3.data-00000-of-00001").unlink()
    data = tmp_path / "model.ckpt-2.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-40])
    with pytest.warns(UserWarning, match="passing over model.ckpt-3, model.ckpt-2"):
        assert sact_tf.newest_checkpoint(tmp_path).endswith("model.ckpt-1")
    assert sact_tf.checkpoint_step(tmp_path) == 1
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "mod')  # cut off, too
    assert sact_tf.newest_checkpoint(tmp_path).endswith("model.ckpt-1")
    (tmp_path / "model.ckpt-1.index").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="no complete checkpoint.*ckpt-1"):
        sact_tf.newest_checkpoint(tmp_path)


def test_only_so_many_checkpoints_are_kept(tmp_path):
    for step in range(8):
        write_tensors(str(tmp_path / f"model.ckpt-{step}"), {"x": step}, step, keep=5)
    steps = {int(path.stem.rpartition("-")[2]) for path in tmp_path.glob("*.index")}
    assert steps == {3, 4, 5, 6, 7}
    state = tf.train.get_checkpoint_state(tmp_path)
    assert len(state.all_model_checkpoint_paths) == 5
    assert state.model_checkpoint_path == str(tmp_path / "model.ckpt-7")


def tiny(value=0.0):
    network = sact_tf.cifar_resnet("1", "act", 3, 2)
    network.stem.bias.assign([value, value])
    return network


@pytest.mark.parametrize(
    "name", ["lr=[0.1,0.2]", "a*b", "what?", "back\\slash", "{x}", "plain name"]
)
def test_directories_of_any_name(tmp_path, name):
    directory = tmp_path / name
    prefix = str(directory / "model.ckpt-7")
    sact_tf.save_slim_checkpoint(tiny(3.0), prefix, 7)
    sact_tf.save_slim_checkpoint(tiny(4.0), str(directory / "model.ckpt-8"), 8)
    assert sact_tf.newest_checkpoint(str(directory)).endswith("model.ckpt-8")
    for path, value in ((prefix, 3.0), (str(directory), 4.0)):
        network = tiny()
        sact_tf.load_slim_checkpoint(network, path)
        np.testing.assert_array_equal(network.stem.bias, [value, value])
    assert sact_tf.checkpoint_step(str(directory)) == 8
    squeezed = sact_tf.squeeze_checkpoint(prefix, str(directory / "to[1]"))
    assert sact_tf.checkpoint_step(squeezed) == 7


@pytest.mark.parametrize(
    "index",
    [None, b"", b"\xff\xfe\x00 not text", b"model_checkpoint_path", b"{}", b'all: "x"'],
)
def test_the_newest_is_that_of_the_highest_step(tmp_path, index):
    """Whatever order the files were copied in, with or without their list."""
    for step in (9, 100, 20):  # by name, 9 would come last
        sact_tf.save_slim_checkpoint(tiny(), str(tmp_path / f"model.ckpt-{step}"), step)
    listing = tmp_path / "checkpoint"
    listing.unlink() if index is None else listing.write_bytes(index)
    for name, age in (("9", 3000), ("100", 1000), ("20", 2000)):
        for path in tmp_path.glob(f"model.ckpt-{name}.*"):
            os.utime(path, (age, age))
    assert sact_tf.newest_checkpoint(tmp_path).endswith("model.ckpt-100")
    # And the next one written there is the newest.
    sact_tf.save_slim_checkpoint(tiny(), str(tmp_path / "model.ckpt-3"), 3)
    assert sact_tf.newest_checkpoint(tmp_path).endswith("model.ckpt-3")


def test_the_step_counts_and_not_the_name(tmp_path):
    sact_tf.save_slim_checkpoint(tiny(), str(tmp_path / "best"), 50)
    sact_tf.save_slim_checkpoint(tiny(), str(tmp_path / "model.ckpt-60"), 40)
    (tmp_path / "checkpoint").unlink()
    assert sact_tf.newest_checkpoint(tmp_path).endswith("best")


def test_kinds(tmp_path):
    prefix = sact_tf.save_slim_checkpoint(tiny(), str(tmp_path / "model.ckpt-1"))
    assert checkpoints.checkpoint_kind(prefix) == checkpoint_kinds.CLASSIFIER
    values = {"rpn/score/weights": np.zeros(3, np.float32)}
    detector = write_tensors(str(tmp_path / "detector" / "model.ckpt-1"), values, 1)
    assert checkpoints.checkpoint_kind(detector) == checkpoint_kinds.DETECTOR
    network = tiny()
    for load in (
        lambda: sact_tf.load_slim_checkpoint(network, detector),
        lambda: restore_variables(detector, sact_tf.slim_variables(network)),
    ):
        with pytest.raises(checkpoint_kinds.CheckpointKindError) as caught:
            load()
        assert caught.value.kind == checkpoint_kinds.DETECTOR
        assert str(caught.value) == (
            f"checkpoint {detector} is that of a detector, not of a classification "
            "network"
        )
    other = write_tensors(str(tmp_path / "other" / "x"), {"x": np.zeros(3)}, 1)
    assert checkpoints.checkpoint_kind(other) is None
    with pytest.raises(sact_tf.CheckpointMismatchError):
        sact_tf.load_slim_checkpoint(network, other)


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, no_file_larger_than):
    first = sact_tf.save_slim_checkpoint(tiny(3.0), str(tmp_path / "model.ckpt-1"), 1)
    second = str(tmp_path / "model.ckpt-2")
    with no_file_larger_than(1000), pytest.raises(WritingError, match="cannot be wri"):
        sact_tf.save_slim_checkpoint(tiny(4.0), second, 2)
    assert sact_tf.newest_checkpoint(tmp_path) == first
    network = tiny()
    sact_tf.load_slim_checkpoint(network, str(tmp_path))
    np.testing.assert_array_equal(network.stem.bias, [3.0, 3.0])
    sact_tf.save_slim_checkpoint(tiny(4.0), second, 2)
    assert sact_tf.newest_checkpoint(tmp_path) == second
