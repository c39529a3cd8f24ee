"""Shows a trained SACT network at work, or trains one and shows the difference.

    python -m experiments.quickstart --output_dir=quickstart_output
    python -m experiments.quickstart --train

Needs no data. The first takes a minute: networks that come with the package look at
generated images, and at a photograph that comes with Matplotlib. The second trains a
small ordinary and a small SACT network, in some minutes. Both write `ponder_maps.png`,
`results.json` and a SavedModel to --output_dir; the first also `photograph.png`, the
second checkpoints.
"""

from __future__ import annotations

import os
import time

import numpy as np
import tensorflow as tf
import tf_keras as keras
from absl import flags

import sact_tf
from experiments.common import programs
from sact_tf import evaluation, optional, training, visualization
from sact_tf.data import shapes
from sact_tf.data.images import read_image
from sact_tf.writing import atomic_directory, write_json

FLAGS = flags.FLAGS

SHAPES_NETWORK = "sact-shapes64"
"""Of the zoo, for generated images; and for the photograph where there is no other."""

PHOTOGRAPH_NETWORK = "sact-resnet32-cifar10"

NUM_SHOWN = 400  # generated images that the trained network looks at
_SHORT_SIDE = 192  # of the photograph, in pixels
_FOR_TRAINING = ("image_size", "num_examples", "steps", "batch_size", "model")
_FOR_TRAINING += ("base_channels", "tau", "tile_size", "seed")

flags.DEFINE_string("output_dir", "quickstart_output", "Directory to write to.")
flags.DEFINE_bool(
    "train", False, "Train an ordinary and a SACT network; other flags say how."
)
flags.DEFINE_integer(
    "image_size", 64, "Side of the generated images.", lower_bound=shapes.MIN_SIZE
)
flags.DEFINE_integer(
    "num_examples", 4000, "Training images; a fifth as many are for testing.", 64
)
flags.DEFINE_integer("steps", 400, "Training steps of each network.", lower_bound=1)
flags.DEFINE_integer("batch_size", 32, "Images per training step.", lower_bound=1)
programs.define_option("model", "3")
programs.define_option("base_channels", 8)
programs.define_option("tau", 0.05)
programs.define_option("tile_size")
flags.DEFINE_integer(
    "seed", 0, "Seed of the data, the initial weights and the data order."
)


def train(model_type: str, examples, finetune_path: str | None = None):
    """Trains one network; returns it and the directory of its checkpoints."""
    log_dir = programs.make_directory(
        "output_dir", os.path.join(FLAGS.output_dir, model_type)
    )
    print(f"\nTraining {model_type}, {FLAGS.steps} steps")
    keras.utils.set_random_seed(FLAGS.seed)
    options = programs.network_options(
        model_type=model_type, num_classes=examples.num_classes
    )
    if model_type != "sact":
        options["tile_size"] = 1
    model = sact_tf.cifar_resnet(**options)
    if finetune_path:
        sact_tf.load_slim_checkpoint(model, finetune_path, fresh_halting=True)
    training.train(
        model,
        examples,
        log_dir,
        FLAGS.steps,
        batch_size=FLAGS.batch_size,
        seed=FLAGS.seed,
    )
    return model, log_dir


def ponder_inside_outside(maps: np.ndarray, boxes: np.ndarray) -> tuple[float, float]:
    """Returns the mean of the maps inside and outside the objects' boxes.

    Args:
        maps: [n, height, width].
        boxes: int [n, 4]: top, left, bottom, right; bottom and right exclusive.
    """
    rows, columns = np.mgrid[: maps.shape[1], : maps.shape[2]]
    top, left, bottom, right = boxes.T[..., np.newaxis, np.newaxis]
    inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    return float(maps[inside].mean()), float(maps[~inside].mean())


def check_saved_model(model, path: str, images: tf.Tensor) -> float:
    """Exports and reloads a network; returns the largest difference of its logits."""
    with atomic_directory(path) as temporary:
        model.export_saved_model(temporary)
    serve = tf.saved_model.load(path).signatures["serving_default"]
    return float(
        tf.reduce_max(
            tf.abs(serve(images=images)["logits"] - model(images, training=False))
        )
    )


def show_maps(model, test, output_dir: str) -> dict[str, float]:
    """Draws ponder cost maps; tells how much more is spent where the objects are.

    Args:
        model: A SACT network.
        test: Examples with boxes.
        output_dir: Where `ponder_maps.png` is written.

    Returns:
        Mean ponder cost `inside` and `outside` of the objects' boxes.
    """
    maps = []
    for images, _ in test.evaluation_batches(100):
        _, end_points = model.with_end_points(images, training=False)
        maps.append(visualization.sact_map(end_points)[..., 0].numpy())
    maps = np.concatenate(maps)
    inside, outside = ponder_inside_outside(maps, test.boxes)
    print(
        f"\nMean ponder cost inside the objects' boxes {inside:.2f}, outside "
        f"{outside:.2f}: {inside / outside:.2f} times as much"
    )
    picture = os.path.join(output_dir, "ponder_maps.png")
    titles = [shapes.CLASS_NAMES[label] for label in test.labels[:8]]
    figure = visualization.ponder_figure(test.images[:8], maps[:8], titles)
    visualization.save_figure(figure, picture)
    print(f"Wrote {picture}")
    return {"inside": inside, "outside": outside}


def show_saved_model(model, test, output_dir: str) -> None:
    """Exports a network, and checks that the SavedModel does the same."""
    images, _ = next(iter(test.evaluation_batches(4)))
    saved_model = os.path.join(output_dir, "saved_model")
    difference = check_saved_model(model, saved_model, images)
    print(
        f"Wrote {saved_model}; reloaded, its logits differ by at most {difference:.1e}"
    )


def photograph() -> str:
    """Returns the file of a photograph that comes with Matplotlib.

    Raises:
        FileNotFoundError: This Matplotlib was installed without its sample data.
    """
    directory = optional.load("matplotlib").get_data_path()
    path = os.path.join(directory, "sample_data", "grace_hopper.jpg")
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: does not exist")
    return path


def show_photograph(output_dir: str) -> dict[str, object]:
    """Draws where a trained network computes on a photograph.

    Returns:
        `network`, its name, and its `relative_flops` on the photograph.
    """
    known = sact_tf.list_networks()
    name = PHOTOGRAPH_NETWORK if PHOTOGRAPH_NETWORK in known else SHAPES_NETWORK
    pixels = read_image(photograph())
    height, width = pixels.shape[:2]
    scale = _SHORT_SIDE / min(height, width)
    size = [round(height * scale), round(width * scale)]
    pixels = tf.image.resize(pixels, size, antialias=True)
    found = sact_tf.ponder(sact_tf.load(name), pixels)
    relative = found.flops / found.dense_flops
    path = os.path.join(output_dir, "photograph.png")
    visualization.save_figure(visualization.side_by_side(found.image, found.map), path)
    print(
        f"Wrote {path}: {name} on a photograph of {size[0]}x{size[1]} pixels, at "
        f"{relative:.1%} of the operations"
    )
    return {"network": name, "relative_flops": relative}


def show() -> dict[str, object]:
    """Shows the trained networks that come with the package; returns results."""
    for name in _FOR_TRAINING:
        if FLAGS[name].value != FLAGS[name].default:
            raise ValueError(f"--{name}={FLAGS[name].value}: needs --train")
    output_dir = programs.make_directory("output_dir", FLAGS.output_dir)
    model = sact_tf.load(SHAPES_NETWORK)
    size = model.card.image_size[0]
    print(f"Making {NUM_SHOWN} images of {size}x{size} pixels")
    test = shapes.load("test", size, NUM_SHOWN)
    results = evaluation.evaluate(model, test.evaluation_batches(100))
    images = tf.zeros([1, size, size, 3])
    relative = results["Total Flops/mean"] / float(model.dense_flops(images)[0])
    print(
        f"{SHAPES_NETWORK}, trained: accuracy {results['eval/Accuracy']:.1%}, at "
        f"{relative:.1%} of the operations of the ordinary network"
    )
    results = {"sact": results, "relative_flops": relative}
    results["ponder_cost"] = show_maps(model, test, output_dir)
    results["photograph"] = show_photograph(output_dir)
    show_saved_model(model, test, output_dir)
    print("To train such networks here, in some minutes: --train")
    return results


def train_both() -> dict[str, object]:
    """Trains, evaluates, draws and exports; returns results."""
    output_dir = programs.make_directory("output_dir", FLAGS.output_dir)
    size = FLAGS.image_size
    print(f"Making {FLAGS.num_examples} training images of {size}x{size} pixels")
    examples = shapes.load("train", size, FLAGS.num_examples, FLAGS.seed)
    test = shapes.load("test", size, FLAGS.num_examples // 5, FLAGS.seed)

    vanilla, vanilla_dir = train("vanilla", examples)
    sact, _ = train("sact", examples, vanilla_dir)

    results = {}
    for name, model in (("vanilla", vanilla), ("sact", sact)):
        results[name] = evaluation.evaluate(model, test.evaluation_batches(100))
    full = results["vanilla"]["Total Flops/mean"]
    print("\nSACT starts from the trained vanilla network, as in the SACT paper.")
    print(f"{'network':10}{'accuracy':>10}{'FLOPs':>12}{'relative FLOPs':>16}")
    for name, values in results.items():
        mean = values["Total Flops/mean"]
        print(
            f"{name:10}{values['eval/Accuracy']:10.1%}{mean:12.4g}{mean / full:16.1%}"
        )
    results["ponder_cost"] = show_maps(sact, test, output_dir)
    show_saved_model(sact, test, output_dir)
    return results


def main() -> None:
    """Shows trained networks, or trains some."""
    start = time.monotonic()
    trains = FLAGS.train
    if not trains and SHAPES_NETWORK not in sact_tf.list_networks():
        print(f"{SHAPES_NETWORK} does not come with this installation: training")
        trains = True
    results = train_both() if trains else show()
    results["seconds"] = time.monotonic() - start
    path = os.path.join(os.path.expanduser(FLAGS.output_dir), "results.json")
    write_json(path, results)
    print(f"Done in {results['seconds']:.0f} s")


if __name__ == "__main__":
    programs.run(main)
