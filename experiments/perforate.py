"""Makes trained convolutional networks faster by perforation.

Train Network in Network on CIFAR-10; writes model.keras to --train_log_dir:

    python -m experiments.perforate --mode=train --model=nin --dataset_dir=DIR \\
        --train_steps=5000 --train_log_dir=/tmp/nin

Find out how much each layer may skip, fine-tune, evaluate, time and export:

    python -m experiments.perforate --saved_model=/tmp/nin/model.keras \\
        --dataset_dir=DIR --target_speedup=2 --finetune_steps=1000 --output_dir=2x

The baselines: --method=uniform (one rate for all layers), --method=input (smaller
images), --method=stride --layers=conv2 (a larger stride). Without data, only time:

    python -m experiments.perforate --model=vgg16 --dataset=none --num_classes=1000 \\
        --method=uniform --target_speedup=2 --output_dir=/tmp/vgg16

Single layers, and a table of several runs:

    python -m experiments.perforate --mode=curves --saved_model=/tmp/nin/model.keras \\
        --dataset_dir=DIR --output_dir=/tmp/curves
    python -m experiments.perforate --mode=report --results=/tmp/2x,/tmp/3x

What was stopped, for any reason, goes on when you start it again.
"""

from __future__ import annotations

import os

import tf_keras as keras
from absl import flags

from experiments.common import feedforward, perforation, programs
from sact_tf import classifiers, keras_files, visualization
from sact_tf.data.examples import DataError
from sact_tf.networks.feedforward import NETWORKS
from sact_tf.perforation import (
    CompactNetwork,
    baselines,
    exporting,
    graph,
    masks,
    perforate,
    search,
    surgery,
)
from sact_tf.progress import StatusLine
from sact_tf.writing import write_json

FLAGS = flags.FLAGS
_METHODS = ("search", "uniform", "stride", "input")

flags.DEFINE_enum(
    "mode",
    "perforate",
    ["train", "perforate", "curves", "report"],
    "train a dense network; perforate one; curves: perforate single layers; report: "
    "table of --results.",
)
flags.DEFINE_enum("model", "nin", list(NETWORKS), "Network with fresh weights.")
flags.DEFINE_string(
    "saved_model",
    "",
    "Trained Functional or Sequential model: .keras or HDF5 file, or SavedModel of "
    "tf_keras; takes the place of --model.",
)
flags.DEFINE_string("output_dir", "", "Directory of results.")
flags.DEFINE_integer("batch_size", 128, "Images per step.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "Of weights, masks, data order and augmentation.")
flags.DEFINE_integer(
    "num_classes", None, "Classes of --model with --dataset=none.", lower_bound=1
)
feedforward.define_data_flags()
feedforward.define_train_flags()

flags.DEFINE_enum(
    "method",
    "search",
    _METHODS,
    "search: greedy search of rates, or --keep_fraction; uniform: one rate for all "
    "layers; stride: larger strides in --layers; input: smaller images.",
)
flags.DEFINE_float(
    "target_speedup",
    None,
    "Stop at this speed-up, by --cost in a search, otherwise by multiplications.",
    lower_bound=1.0,
)
flags.DEFINE_string(
    "keep_fraction", "", "Share of positions to keep: a number, or LAYER=NUMBER,..."
)
flags.DEFINE_list(
    "mask",
    ["grid"],
    f"Of {', '.join(masks.KINDS)}; several: a search chooses, and curves draw all.",
)
flags.DEFINE_integer("steps", 50, "Greedy steps at most.", lower_bound=1)
flags.DEFINE_integer("redraws", 2, "Masks drawn for each candidate.", lower_bound=1)
flags.DEFINE_enum("cost", "time", search.COSTS, "What the search saves.")
flags.DEFINE_integer(
    "num_selection_images", 2000, "Training images that score candidates.", 1
)
flags.DEFINE_integer(
    "num_recheck_images", 10000, "Those that score the best three again.", 1
)
flags.DEFINE_integer("num_impact_images", 5000, "Those of impact masks.", 1)
flags.DEFINE_list("layers", [], "Of --method=stride.")
flags.DEFINE_integer("stride_factor", 2, "Of --method=stride.", lower_bound=2)
flags.DEFINE_float(
    "input_scale",
    None,
    "Of --method=input, in (0, 1]; by default what --target_speedup needs.",
)
flags.DEFINE_integer(
    "finetune_steps", 0, "Steps of fine-tuning, masks fixed.", lower_bound=0
)
flags.DEFINE_float(
    "finetune_learning_rate",
    0.01,
    "The largest; rises and falls as --learning_rate.",
    lower_bound=0.0,
)
flags.DEFINE_integer(
    "num_eval_images", None, "Test images drawn to tell errors; by default all.", 1
)
flags.DEFINE_list("levels", ["0.75", "0.5", "0.25", "0.1"], "Keep fractions of curves.")
flags.DEFINE_integer("repetitions", 11, "Timed calls of each side; 0: none.", 0)
flags.DEFINE_integer("time_batch_size", None, "Images timed; by default --batch_size.")
flags.DEFINE_bool("measure_memory", False, "Measure peak memory too.")
flags.DEFINE_bool("export", True, "Write SavedModels.")
flags.DEFINE_list("results", [], "Directories of results, of --mode=report.")


def train() -> None:
    """Trains --model, evaluates it, and writes it to --train_log_dir."""
    keras.utils.set_random_seed(FLAGS.seed)
    log_dir = programs.make_directory("train_log_dir", FLAGS.train_log_dir)
    examples, test = map(feedforward.load_examples, ("train", "eval"))
    model = feedforward.train(examples, log_dir)
    path = feedforward.model_file(log_dir)
    keras_files.save_network(model, path)
    with test.explained_errors():
        result = classifiers.score(model, test.evaluation_batches(FLAGS.batch_size))
    about = dict(model=FLAGS.model, dataset=FLAGS.dataset, steps=FLAGS.train_steps)
    write_json(os.path.join(log_dir, "eval.json"), {**about, **result})
    print(f"Error {1 - result['accuracy']:.2%} of {result['images']} images")
    print(f"Wrote {path}")


def load_dense(num_classes: int | None) -> keras.Model:
    """Returns --saved_model, or --model with fresh weights."""
    if FLAGS.saved_model:
        model = keras_files.load_model(FLAGS.saved_model)
        graph.check_model(model)
        if num_classes is not None:
            classifiers.check_labels(model, num_classes)
            feedforward.check_size(model)
        return model
    keras.utils.set_random_seed(FLAGS.seed)
    print(f"No --saved_model: {FLAGS.model} has random weights")
    return feedforward.make_model(num_classes or FLAGS.num_classes or 1000)


def has_data() -> bool:
    """Whether there are images."""
    return FLAGS.dataset != "none"


def need_data(what: str) -> None:
    """Raises ValueError if there are no images."""
    if not has_data():
        raise ValueError(f"--dataset=none: {what} needs images")


def load_data():
    """Returns training and test examples, None for each if there are none."""
    if not has_data():
        return None, None
    training, test = map(feedforward.load_examples, ("train", "eval"))
    if FLAGS.num_eval_images is not None:
        test = feedforward.drawn(test, FLAGS.num_eval_images, FLAGS.seed)
    return training, test


def selection(training):
    """Returns batches of training images on which masks and rates are chosen."""
    count = max(
        FLAGS.num_selection_images, FLAGS.num_recheck_images, FLAGS.num_impact_images
    )
    examples = feedforward.drawn(training, count, FLAGS.seed)
    return examples.evaluation_batches(FLAGS.batch_size)


def impact_batches(training):
    """Returns batches for impact masks, None if there are no such masks."""
    if "impact" not in FLAGS.mask:
        return None
    need_data("--mask=impact")
    examples = feedforward.drawn(training, FLAGS.num_impact_images, FLAGS.seed)
    return examples.evaluation_batches(FLAGS.batch_size)


def need_target() -> float:
    """Returns --target_speedup, without which a method does not know what to do."""
    if FLAGS.target_speedup is None:
        raise ValueError(f"--target_speedup: must be given with {FLAGS.method}")
    return FLAGS.target_speedup


def one_mask() -> str:
    """Returns --mask, which is one."""
    if len(FLAGS.mask) != 1:
        raise ValueError(
            f"--mask={','.join(FLAGS.mask)}: only a search and curves take several"
        )
    return FLAGS.mask[0]


def make_faster(dense: keras.Model, training, output_dir: str) -> keras.Model:
    """Returns what --method makes of a dense network."""
    if FLAGS.method == "stride":
        return baselines.with_larger_stride(dense, FLAGS.layers, FLAGS.stride_factor)
    if FLAGS.method == "input":
        scale = FLAGS.input_scale
        if scale is None:
            scale = baselines.input_scale(dense, need_target())
        print(f"Images of {scale:.3f} times the side")
        return baselines.with_smaller_input(dense, scale)
    if FLAGS.keep_fraction:
        rates = perforation.parse_fractions(FLAGS.keep_fraction)
    elif FLAGS.method == "uniform":
        rates = baselines.uniform_rate(dense, need_target(), one_mask())
        print(f"Keep fraction of all layers: {rates:g}")
    else:
        need_data("--method=search")
        rates = search.search_rates(
            dense,
            selection(training),
            steps=FLAGS.steps,
            target_speedup=FLAGS.target_speedup,
            mask=FLAGS.mask,
            redraws=FLAGS.redraws,
            cost=FLAGS.cost,
            num_images=FLAGS.num_selection_images,
            num_recheck=FLAGS.num_recheck_images,
            num_impact=FLAGS.num_impact_images,
            seed=FLAGS.seed,
            batch_size=FLAGS.batch_size,
            path=os.path.join(output_dir, "search.json"),
            verbose=True,
        )
    if isinstance(rates, surgery.Rates):  # brings its own masks
        return perforate(dense, rates)
    return perforate(dense, rates, one_mask(), impact_batches(training), FLAGS.seed)


def finetune(model: keras.Model, training, output_dir: str) -> keras.Model:
    """Trains the faster network, masks fixed, or goes on training it.

    Returns:
        The trained network, which computes in float32.
    """
    need_data("--finetune_steps")
    model = feedforward.in_training_precision(model)
    rate = classifiers.cosine_rate(FLAGS.finetune_learning_rate, FLAGS.finetune_steps)
    classifiers.train(
        model,
        training,
        os.path.join(output_dir, "finetune"),
        FLAGS.finetune_steps,
        batch_size=FLAGS.batch_size,
        learning_rate=rate,
        save_interval_secs=FLAGS.save_interval_secs,
        save_summaries_secs=FLAGS.save_summaries_secs,
        seed=FLAGS.seed,
    )
    return feedforward.in_float32(model)


def measure(dense, model, path: str) -> dict:
    """Returns time and memory of both networks."""
    results, batch = {}, FLAGS.time_batch_size or FLAGS.batch_size
    if FLAGS.repetitions:
        seconds = perforation.measure_time(dense, model, batch, FLAGS.repetitions)
        results["seconds"] = seconds
        results["time_batch_size"] = batch
        results["speedup"] = seconds["dense"] / seconds["native"]
    if FLAGS.measure_memory:
        whole = os.path.join(os.path.dirname(path), "dense.keras")
        keras_files.save_network(dense, whole)
        sides = {"dense": (whole, "dense"), "native": (path, "native")}
        if surgery.realised(model):
            sides["explicit"] = (path, "explicit")
        results["peak_memory_mb"] = {
            name: perforation.measure_memory(*side, batch)
            for name, side in sides.items()
        }
    return results


def show(results: dict) -> None:
    """Prints what was measured."""
    print(f"Multiplications: {results['multiplies_speedup']:.2f}x fewer")
    if "seconds" in results:
        times = (f"{k} {1000 * v:.1f} ms" for k, v in results["seconds"].items())
        print(f"Time: {results['speedup']:.2f}x faster ({', '.join(times)})")
    if "peak_memory_mb" in results:
        peaks = (f"{k} {v:.0f} MB" for k, v in results["peak_memory_mb"].items())
        print(f"Peak memory: {', '.join(peaks)}")
    if "dense_error" in results:
        after = results.get("error_after")
        tuned = "" if after is None else f", after fine-tuning {after:.2%}"
        print(
            f"Error: dense {results['dense_error']:.2%}, faster "
            f"{results['error_before']:.2%}{tuned}"
        )


def perforate_network() -> None:
    """Makes a network faster, fine-tunes, measures and writes it."""
    output_dir = _output_dir()
    training, test = load_data()
    dense = load_dense(training.num_classes if training else None)
    model = make_faster(dense, training, output_dir)
    results = {
        "method": FLAGS.method,
        "target_speedup": FLAGS.target_speedup,
        "dense_multiplies": baselines.count_multiplies(dense),
        "multiplies": CompactNetwork(model).multiplies,
        "kept": surgery.realised(model),
    }
    results["multiplies_speedup"] = results["dense_multiplies"] / results["multiplies"]
    for name, kept in results["kept"].items():
        layer = model.get_layer(name)
        print(f"{name}: {layer.mask} keeps {kept:.3f} of the positions")
    path = os.path.join(output_dir, "model.keras")
    if test is not None:
        results["dense_error"] = perforation.error(dense, test, FLAGS.batch_size)
        results["error_before"] = perforation.error(model, test, FLAGS.batch_size)
    if FLAGS.finetune_steps:
        model = finetune(model, training, output_dir)
        results["error_after"] = perforation.error(model, test, FLAGS.batch_size)
    keras_files.save_network(model, path)
    results.update(measure(dense, model, path))
    write_json(os.path.join(output_dir, "results.json"), results)
    show(results)
    if FLAGS.export:
        for implementation in ("native", "tensorflow"):
            place = os.path.join(output_dir, f"saved_model_{implementation}")
            exporting.export_saved_model(model, place, implementation)
    print(f"Wrote {output_dir}")


def draw_curves() -> None:
    """Perforates single layers; writes curves.json and curves.png."""
    programs.need("matplotlib")
    need_data("--mode=curves")
    output_dir = _output_dir()
    try:
        levels = [masks.KEEP_FRACTION.parse(x, "a level") for x in FLAGS.levels]
    except ValueError as error:
        raise ValueError(f"--levels={','.join(FLAGS.levels)}: {error}") from None
    training, test = load_data()
    dense = load_dense(training.num_classes)
    batch = FLAGS.time_batch_size or FLAGS.batch_size
    rows, line = [], StatusLine()

    def time(network):
        return perforation.speedup(dense, network, batch, FLAGS.repetitions)

    made = perforation.curves(
        dense,
        FLAGS.mask,
        levels,
        impact_batches(training),
        lambda network: perforation.error(network, test, FLAGS.batch_size),
        time if FLAGS.repetitions else None,
        FLAGS.seed,
    )
    dense_error = perforation.error(dense, test, FLAGS.batch_size)
    for row in made:
        rows.append(row)
        write_json(
            os.path.join(output_dir, "curves.json"),
            {"dense_error": dense_error, "rows": rows},
        )
        line.show(
            lambda row=row: (
                f"{row['layer']}, {row['mask']}, kept {row['kept']:.3f}: "
                f"error {row['error']:.2%}"
            ),
            at_once=True,
        )
    line.end()
    path = os.path.join(output_dir, "curves.png")
    figure = perforation.curves_figure(rows, dense_error)
    visualization.save_figure(figure, path)
    print(f"Wrote {path}")


def _output_dir():
    programs.require("output_dir")
    return programs.make_directory("output_dir", FLAGS.output_dir)


def report() -> None:
    """Prints the table of --results."""
    programs.require("results")
    try:
        print(perforation.report([os.path.expanduser(p) for p in FLAGS.results]))
    except (OSError, DataError) as error:
        raise DataError(f"--results={','.join(FLAGS.results)}: {error}") from error


def main() -> None:
    """Runs the mode asked for."""
    for mask in FLAGS.mask:
        if mask not in masks.KINDS:
            raise ValueError(
                f"--mask={','.join(FLAGS.mask)}: must be of {', '.join(masks.KINDS)}"
            )
    modes = {
        "train": train,
        "perforate": perforate_network,
        "curves": draw_curves,
        "report": report,
    }
    modes[FLAGS.mode]()


if __name__ == "__main__":
    programs.run(main)
