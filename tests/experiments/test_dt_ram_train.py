"""The training program of recurrent attention: phases, resume and refusals."""

import numpy as np
import pytest
import tensorflow as tf
from absl.testing import flagsaver

import sact_tf
from sact_tf import training


@pytest.fixture
def digits(tmp_path):
    """A file like MNIST's, of 40 images of noise."""
    rng = np.random.default_rng(0)
    path = tmp_path / "mnist.npz"
    images = rng.integers(0, 256, [40, 28, 28]).astype(np.uint8)
    labels = np.arange(40) % 10
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    return str(path)


@pytest.fixture
def run(program, digits, tmp_path):
    def run(**values):
        defaults = dict(
            dataset="mnist_npz",
            dataset_dir=digits,
            train_log_dir=str(tmp_path / "log"),
            steps=2,
            batch_size=8,
            max_number_of_steps=2,
            phase1_steps=2,
        )
        with flagsaver.flagsaver(**{**defaults, **values}):
            program.main()

    return run


def variables(directory, part):
    _, reader = sact_tf.checkpoints.open_checkpoint(str(directory))
    names = reader.get_variable_to_shape_map()
    return {
        n: reader.get_tensor(n) for n in names if part in n and "optimizer" not in n
    }


def test_two_phases_and_on(run, tmp_path, capsys):
    log = tmp_path / "log"
    run()
    assert sact_tf.checkpoint_step(str(log)) == 2
    assert sact_tf.checkpoint_step(str(log / "phase1")) == 2
    before, after = (variables(d, "locator") for d in (log / "phase1", log))
    assert before.keys() == after.keys() and len(before) == 2
    for name in before:  # frozen in the second phase
        np.testing.assert_array_equal(before[name], after[name])
    assert not variables(log / "phase1", "halting_proba")
    stops = variables(log, "halting_proba")
    assert len(stops) == 4
    old = variables(log, "logits/weights")
    run(max_number_of_steps=4, save_summaries_secs=0)
    shown = capsys.readouterr().out
    assert "First phase" in shown and "at step 2\n" in shown
    assert sact_tf.checkpoint_step(str(log)) == 4
    (new,) = variables(log, "logits/weights").values()
    assert (new != next(iter(old.values()))).any()
    written = {
        value.tag
        for path in log.glob("events*")
        for event in tf.compat.v1.train.summary_iterator(str(path))
        for value in event.summary.value
    }
    means = {f"train/{name}" for name in ("loss", "accuracy", "reward", "steps")}
    assert means | {"Learning Rate"} <= written


def test_ram_with_curriculum_then_dt_ram(run, tmp_path):
    ram = str(tmp_path / "ram")
    run(
        train_log_dir=ram,
        dynamic=False,
        curriculum=True,
        intermediate_supervision=True,
        recipe="published",
        scales=2,
    )
    run(finetune_path=ram, stop="act", scales=2)
    assert not (tmp_path / "log" / "phase1").exists()


FINE = dict(
    network="fine_grained",
    dataset="folder",
    model="1_1_1_1",
    base_channels=1,
    image_size=16,
    resized_to=16,
    batch_size=4,
)


def test_the_fine_grained_network_grows_then_decides(run, image_folder, tmp_path):
    log = tmp_path / "log"
    given = dict(FINE, dataset_dir=str(image_folder), curriculum=True, steps=3)
    run(**given, dynamic=False, max_number_of_steps=1)
    scopes = []
    for directory in (log / "steps1", log / "steps2", log):
        assert sact_tf.checkpoint_step(str(directory)) == 1
        scopes.append(variables(directory, "fine_grained_attention/step_"))
    assert [max(name.split("/")[1] for name in v) for v in scopes] == [
        "step_1",
        "step_2",
        "step_3",
    ]
    for name, value in scopes[1].items():  # of earlier steps, all are frozen
        np.testing.assert_array_equal(scopes[2][name], value)
    dt = str(tmp_path / "dt")
    run(**given, finetune_path=str(log), train_log_dir=dt, max_number_of_steps=1)
    made = variables(dt, "fine_grained_attention/step_")
    for name, value in scopes[2].items():
        np.testing.assert_array_equal(made[name], value)
    assert sum("/decider/" in name for name in made) == 3 * 4


@pytest.mark.long
@pytest.mark.parametrize(
    "name, num_classes", [("caltech_birds2011", 200), ("cars196", 196)]
)
def test_birds_and_cars(run, name, num_classes, tmp_path):
    """On random images with the features of these sets, encoded as theirs are."""
    tfds = pytest.importorskip("tensorflow_datasets")
    given = dict(FINE, dataset="tfds", tfds_name=name, dataset_dir=str(tmp_path))
    with tfds.testing.mock_data(num_examples=8):
        run(**given, dynamic=False, steps=2, max_number_of_steps=1)
    logits = variables(tmp_path / "log", "step_2/logits/biases")
    assert next(iter(logits.values())).shape == (num_classes,)


@pytest.mark.long
def test_goes_on_after_a_kill(kill_training, digits):
    kill_training(
        "--nodynamic", dataset="mnist_npz", dataset_dir=digits, batch_size=8, steps=2
    )


@pytest.mark.long
@pytest.mark.parametrize("dataset", ["shapes", "cluttered_mnist", "folder"])
def test_other_data(run, dataset, digits, image_folder):
    where = dict(shapes=None, cluttered_mnist=digits, folder=str(image_folder))
    run(dataset=dataset, dataset_dir=where[dataset], dynamic=False, image_size=32)


@pytest.mark.long
@pytest.mark.parametrize("dataset", ["cifar10", "shape_details"])
def test_the_fine_grained_network_on_other_data(run, dataset, write_cifar):
    where = dict(cifar10=lambda: str(write_cifar()), shape_details=lambda: None)
    given = dict(FINE, dataset=dataset, dataset_dir=where[dataset](), image_size=64)
    given["model"] = "1_1_1" if dataset == "cifar10" else "1_1_1_1"
    run(**given, steps=2, model_type="sact", phase1_steps=1, max_number_of_steps=1)


def test_a_loss_that_is_no_number_keeps_the_last_checkpoint(run, tmp_path):
    log = tmp_path / "log"
    run(dynamic=False)
    good = sact_tf.newest_checkpoint(str(log))
    with pytest.raises(training.TrainingError, match="at step [34]; .*ckpt-2"):
        # A rate that no weights survive.
        run(dynamic=False, max_number_of_steps=9, learning_rate=1e38)
    assert sact_tf.newest_checkpoint(str(log)) == good


def test_bad_flags_are_named(refusal, digits, tmp_path):
    given = dict(
        dataset="mnist_npz", dataset_dir=digits, train_log_dir=str(tmp_path / "log")
    )
    assert refusal(**given, gamma=0.0).startswith("--gamma=0.0: gamma must lie in (0")
    assert "--gamma=1.5" in refusal(**given, gamma=1.5)
    assert refusal(**given, glimpse_size=40).startswith("--glimpse_size=40: ")
    assert refusal(**given, scales=4).startswith("--scales=4: scales must be such")
    of_ram = dict(given, dynamic=False, train_log_dir=str(tmp_path / "other"))
    assert refusal(**of_ram).startswith("--batch_size=128: batch_size 128 is larger")
    assert "--stop_threshold=1.0" in refusal(**given, stop_threshold=1.0)
    assert "--split_name=val: split must be" in refusal(**given, split_name="val")
    fine = "--network=fine_grained: needs images of three channels"
    assert refusal(**given, network="fine_grained").startswith(fine)
    message = refusal(**given, weights="resnet.h5")
    assert message == "--weights=resnet.h5: needs --network=fine_grained"
    message = refusal(**{**given, "dataset": "cifar10"})
    assert message == "--dataset=cifar10: needs --network=fine_grained"
    given["dataset_dir"] = None
    assert "must name a .npz file" in refusal(**given)
    given["dataset_dir"] = str(tmp_path / "none.npz")
    assert refusal(**given).startswith(f"--dataset_dir={given['dataset_dir']}: ")
    assert tf.io.gfile.listdir(str(tmp_path / "log")) == []
