"""Compares the accuracy of two networks on the same images, by a paired bootstrap.

    python -m experiments.paired_bootstrap --first=/tmp/pact/images.npz \\
        --first_mode=relaxed --second=/tmp/sact/images.npz

cifar_main, imagenet_eval and dt_ram_eval write such files with --write_images. The
interval is that of the difference when images are drawn anew, both networks seeing the
same ones.

Is a network above the line through two others? With --third, the first is compared with
a point of that line, which is what one gets who asks the second network with the
probability --share, otherwise the third:

    python -m experiments.paired_bootstrap --first=/tmp/dt_ram/images.npz \\
        --second=/tmp/ram2/images.npz --third=/tmp/ram4/images.npz --share=0.4
"""

from __future__ import annotations

import os

import numpy as np
from absl import flags

from experiments.common import programs
from sact_tf.data.examples import DataError
from sact_tf.optional import lazy
from sact_tf.writing import write_json

stats = lazy("scipy.stats")

FLAGS = flags.FLAGS

_MODE = (
    "How that network stops: relaxed, discrete or thresholded, or network where there "
    "are no such modes; by default network or thresholded."
)
flags.DEFINE_string("first", "", "images.npz of a network.")
flags.DEFINE_string("first_mode", "", _MODE)
flags.DEFINE_string("second", "", "images.npz of the network it is compared with.")
flags.DEFINE_string("second_mode", "", _MODE)
flags.DEFINE_string("third", "", "images.npz of a network at the other end of a line.")
flags.DEFINE_string("third_mode", "", _MODE)
flags.DEFINE_float(
    "share", 0.5, "Of --second in the point of the line, the rest is --third's.", 0, 1
)
flags.DEFINE_integer("resamples", 10_000, "How often images are drawn.", lower_bound=1)
flags.DEFINE_float("confidence", 0.95, "Of the interval.", 0.0, 1.0)
flags.DEFINE_integer("seed", 0, "Of the draws.")
flags.DEFINE_string("output_file", "", "JSON file to write; empty: none.")


def read(flag: str) -> dict[str, np.ndarray]:
    """Reads what a flag's file says of a network's images.

    Raises:
        DataError: It is no such file, or has no such mode; names the flag.
    """
    path, mode = os.path.expanduser(FLAGS[flag].value), FLAGS[f"{flag}_mode"].value
    try:
        with np.load(path, allow_pickle=False) as file:
            values = {name: file[name] for name in file.files}
    except (ValueError, EOFError, KeyError) as error:
        raise DataError(f"--{flag}={path}: is no images.npz ({error})") from error
    modes = sorted({name.partition("/")[0] for name in values})
    if not mode:
        mode = "network" if "network" in modes else "thresholded"
    if f"{mode}/Accuracy" not in values:
        raise DataError(
            f"--{flag}_mode={mode}: {path} has {', '.join(modes) or 'none'}"
        )
    return {
        key: values.get(f"{mode}/{key}")
        for key in ("Accuracy", "Flops", "Expected Flops")
    }


def compare(
    first: np.ndarray, second: np.ndarray, resamples: int, confidence: float, seed: int
) -> dict[str, float]:
    """Returns the difference of two means over the same images, and its interval.

    Args:
        first: [images].
        second: [images].
        resamples: How often images are drawn.
        confidence: In (0, 1).
        seed: Of the draws.

    >>> compare(np.array([1.0, 1, 1, 0]), np.array([1.0, 1, 1, 0]), 10, 0.95, 0)
    {'difference': 0.0, 'low': 0.0, 'high': 0.0}
    """
    difference = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    mean = float(difference.mean())
    if np.ptp(difference) == 0:
        return {"difference": mean, "low": mean, "high": mean}
    interval = stats.bootstrap(
        [difference],
        np.mean,
        n_resamples=resamples,
        batch=100,
        confidence_level=confidence,
        method="percentile",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return {
        "difference": mean,
        "low": float(interval.low),
        "high": float(interval.high),
    }


def main() -> None:
    """Compares, prints and writes."""
    programs.require("first", "second")
    if not 0 < FLAGS.confidence < 1:
        raise ValueError(f"--confidence={FLAGS.confidence}: must lie between 0 and 1")
    names = ["first", "second", *(["third"] if FLAGS.third else [])]
    networks = {name: read(name) for name in names}
    count = len(networks["first"]["Accuracy"])
    results = {"images": count}
    for name, values in networks.items():
        if len(values["Accuracy"]) != count or not count:
            raise DataError(
                f"--{name}={FLAGS[name].value}: must have the images of --first, which "
                f"are {count}; got {len(values['Accuracy'])}"
            )
        flops = values["Expected Flops"]
        flops = values["Flops"] if flops is None else flops
        results[f"{name}/accuracy"] = float(np.mean(values["Accuracy"], dtype=float))
        results[f"{name}/flops"] = float(np.mean(flops, dtype=float))
    first, other, *third = (values["Accuracy"] for values in networks.values())
    if third:
        other = FLAGS.share * other + (1 - FLAGS.share) * third[0]
        results["line/accuracy"] = float(np.mean(other, dtype=float))
    results.update(compare(first, other, FLAGS.resamples, FLAGS.confidence, FLAGS.seed))
    for name, value in results.items():
        print(f"{name} {value:.8g}")
    if FLAGS.output_file:
        write_json(os.path.expanduser(FLAGS.output_file), results)


if __name__ == "__main__":
    programs.run(main)
