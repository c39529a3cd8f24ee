"""The evaluation of recurrent attention: numbers, pictures and the export."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from absl.testing import flagsaver
from PIL import Image

import sact_tf
from sact_tf import glimpse_pictures
from sact_tf.networks.fine_grained_attention import fine_grained_attention
from sact_tf.networks.recurrent_attention import recurrent_attention


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A file like MNIST's, and the checkpoint of a RAM that knows nothing."""
    directory = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, [30, 28, 28]).astype(np.uint8)
    labels = np.arange(30) % 10
    np.savez(
        directory / "mnist.npz",
        **dict(x_train=images, y_train=labels, x_test=images, y_test=labels),
    )
    Image.fromarray(images[0]).resize((50, 40)).save(directory / "own.png")
    model = recurrent_attention(10, 3, dynamic=False)
    prefix = sact_tf.save_slim_checkpoint(model, str(directory / "model.ckpt-5"), 5)
    return directory, prefix, model, images, labels


@pytest.fixture
def run(program, files, tmp_path):
    def run(**values):
        defaults = dict(
            dataset="mnist_npz",
            dataset_dir=str(files[0] / "mnist.npz"),
            checkpoint_dir=files[1],
            eval_dir=str(tmp_path),
            evaluate_once=True,
            dynamic=False,
            steps=3,
            batch_size=20,
        )
        with flagsaver.flagsaver(**{**defaults, **values}):
            program.main()
        return json.loads((tmp_path / "eval.json").read_text())

    return run


def test_numbers_and_pictures(run, files, tmp_path):
    directory, _, model, images, labels = files
    results = run(image=str(directory / "own.png"), write_images=True, num_figures=9)
    inputs = images[..., np.newaxis] / np.float32(255)
    right = np.argmax(model(inputs), 1) == labels
    assert results["eval/Accuracy"] == pytest.approx(right.mean())
    assert results["steps/histogram"] == [0, 0, 30] and results["global_step"] == 5
    assert results["error_by_step"][-1] == pytest.approx(results["eval/Error"])
    stored = np.load(tmp_path / "images.npz")
    np.testing.assert_array_equal(stored["network/Accuracy"], right)
    for name in ("paths", "steps", "error"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert min(picture.size) > 200 and len(set(picture.getdata())) > 3
    with Image.open(tmp_path / "glimpses.gif") as picture:
        assert picture.n_frames == 4 and picture.size == (308, 308)


def test_a_ram_that_stops_when_it_is_sure(run):
    results = run(confidence_threshold=0.0)
    assert results["steps/histogram"] == [30, 0, 0]
    assert results["eval/Error"] == pytest.approx(results["error_by_step"][0])


def test_frames_show_what_was_seen():
    image = np.ones([28, 28, 1], np.float32)
    places = np.array([[0.0, 0.0], [-1, -1]]) * 13 / 14
    np.testing.assert_array_equal(
        glimpse_pictures.windows(places, (28, 28), 8), [[10, 10], [-3, -3]]
    )
    np.testing.assert_array_equal(glimpse_pictures.shown(image)[0, 0], [255] * 3)


def test_the_fine_grained_network(run, image_folder, tmp_path):
    backbone = sact_tf.imagenet_resnet(
        "1_1_1_1", num_classes=0, base_channels=1, pooling="avg"
    )
    model = fine_grained_attention(3, backbone, 2, image_size=32, resized_to=16)
    prefix = sact_tf.save_slim_checkpoint(model, str(tmp_path / "model.ckpt-3"), 3)
    results = run(
        network="fine_grained",
        dataset="folder",
        dataset_dir=str(image_folder),
        checkpoint_dir=prefix,
        model="1_1_1_1",
        base_channels=1,
        image_size=32,
        resized_to=16,
        dynamic=True,
        steps=2,
        num_figures=4,
        image=str(image_folder / "cat" / "0.jpg"),
        export_dir=str(tmp_path / "saved"),
        write_images=True,
    )
    assert sum(results["steps/histogram"]) == 12
    stored = np.load(tmp_path / "images.npz")
    assert results["Total Flops/mean"] == pytest.approx(stored["network/Flops"].mean())
    assert results["stop_threshold"] == 0.5 and results["glimpse_size"] == 14
    with Image.open(tmp_path / "glimpses.gif") as picture:
        assert picture.n_frames >= 2
    served = tf.saved_model.load(str(tmp_path / "saved")).signatures["serving_default"]
    images = tf.random.stateless_uniform([3, 32, 32, 3], [1, 1], -1, 1)
    np.testing.assert_allclose(
        served(images=images)["logits"], model(images), rtol=1e-4, atol=1e-5
    )


_SERVE = """
import sys
import numpy as np, tensorflow as tf
saved, own, inputs, made, loop = sys.argv[1:]
model = tf.saved_model.load(saved)
serve = model.signatures["serving_default"]
graph = serve.graph.as_graph_def()
nodes = {n.op for f in [graph, *graph.library.function] for n in
         (f.node if f is graph else f.node_def)}
assert any(loop in op for op in nodes), nodes
of_bytes = model.signatures["serving_bytes"](image_bytes=tf.io.read_file(own)[None])
assert of_bytes["num_units"].shape == [1]
results = serve(images=tf.constant(np.load(inputs)))
assert not [name for name in sys.modules if name.startswith("sact_tf")]
np.savez(made, **{k: v.numpy() for k, v in results.items()})
"""


def served(saved, own, inputs, tmp_path, loop):
    """What a process that knows only the SavedModel makes of images."""
    np.save(tmp_path / "inputs.npy", inputs)
    files = saved, own, tmp_path / "inputs.npy", tmp_path / "made.npz"
    command = [sys.executable, "-c", _SERVE, *map(str, files), loop]
    subprocess.run(command, check=True, cwd=tmp_path)
    return np.load(tmp_path / "made.npz")


def check_served(made, model, inputs):
    logits, end_points = model(tf.constant(inputs), return_end_points=True)
    np.testing.assert_allclose(made["logits"], logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(made["num_units"], end_points["num_units"])
    np.testing.assert_allclose(made["locations"], end_points["locations"], atol=1e-5)
    assert made["num_units"].min() < made["num_units"].max()


@pytest.mark.long
def test_the_export_in_a_process_of_its_own(run, files, tmp_path):
    directory, prefix, _, images, _ = files
    inputs = images[..., np.newaxis] / np.float32(255)
    model = recurrent_attention(10, 3, dynamic=False)
    sact_tf.load_slim_checkpoint(model, prefix)
    every = tf.nn.softmax(model.unroll(inputs)["step_logits"]).numpy().max(-1)
    threshold = float(np.sort(every[:, 0])[14:16].mean())
    run(export_dir=str(tmp_path / "saved"), confidence_threshold=threshold)
    made = served(tmp_path / "saved", directory / "own.png", inputs, tmp_path, "While")
    again = recurrent_attention(10, 3, dynamic=False, confidence_threshold=threshold)
    sact_tf.load_slim_checkpoint(again, prefix)
    check_served(made, again, inputs)


@pytest.mark.long
def test_the_fine_grained_export_in_a_process_of_its_own(files, tmp_path):
    """Its steps have networks of their own: a condition for each, no loop."""
    backbone = sact_tf.imagenet_resnet(
        "1_1_1_1", num_classes=0, base_channels=1, pooling="avg"
    )
    model = fine_grained_attention(3, backbone, 3, image_size=32, resized_to=16)
    inputs = np.random.default_rng(0).uniform(-1, 1, [8, 32, 32, 3]).astype(np.float32)
    first = model.attention_steps[0]
    scores = np.sort(first.decide(first.classifier(first.backbone(inputs))))
    first.decider.kernel.assign(1e4 * first.decider.kernel)
    first.decider.bias.assign([-1e4 * (scores[3] + scores[4]) / 2])
    model.export_saved_model(str(tmp_path / "saved"))
    made = served(tmp_path / "saved", files[0] / "own.png", inputs, tmp_path, "If")
    check_served(made, model, inputs)


def test_what_is_missing_is_named(refusal, files, tmp_path):
    given = dict(
        dataset="mnist_npz",
        dataset_dir=str(files[0] / "mnist.npz"),
        eval_dir=str(tmp_path),
        evaluate_once=True,
    )
    message = refusal(checkpoint_dir=str(tmp_path), **given)
    assert message == f"--checkpoint_dir={tmp_path}: holds no checkpoint"
    message = refusal(checkpoint_dir=files[1], confidence_threshold=0.5, **given)
    assert message.startswith("--confidence_threshold=0.5: ")
