"""Plots accuracy over operations from evaluations, as in SACT, figure 7.

    python -m experiments.plot_tradeoff --output_file=tradeoff.png \\
        --curve='ResNet=runs/vanilla_*/eval.json' --curve='SACT=runs/sact_*/eval.json'
"""

from __future__ import annotations

import glob
import os

from absl import flags

from experiments.common import programs
from sact_tf import reading, visualization
from sact_tf.data.examples import DataError

FLAGS = flags.FLAGS

flags.DEFINE_multi_string(
    "curve", [], "LABEL=PATTERN: a line through the eval.json files that match."
)
flags.DEFINE_string("output_file", "", "Picture to write: .png, .pdf or .svg.")

_KINDS = (".png", ".pdf", ".svg")


def read_curve(curve: str) -> tuple[str, list[dict[str, float]]]:
    """Reads the evaluations of a --curve.

    Raises:
        ValueError: It is no LABEL=PATTERN, or a file is no evaluation.
        FileNotFoundError: No file matches.
    """
    label, _, pattern = curve.partition("=")
    if not label or not pattern:
        raise ValueError(f"--curve={curve}: must be LABEL=PATTERN")
    paths = sorted(glob.glob(os.path.expanduser(pattern)))
    if not paths:
        raise FileNotFoundError(f"--curve={curve}: matches no file")
    evaluations = []
    for path in paths:
        try:
            evaluations.append(reading.read_json(path))
            reading.checked_row(evaluations[-1], visualization.TRADEOFF, "it")
        except (OSError, DataError) as error:
            raise ValueError(
                f"--curve={curve}: {path} is no evaluation ({error})"
            ) from error
    return label, evaluations


def main() -> None:
    """Plots."""
    programs.require("curve", "output_file")
    path = os.path.expanduser(FLAGS.output_file)
    if not path.endswith(_KINDS):
        raise ValueError(
            f"--output_file={path}: must end in one of {', '.join(_KINDS)}"
        )
    programs.make_directory("output_file", os.path.dirname(path) or ".")
    curves = dict(map(read_curve, FLAGS.curve))
    visualization.save_figure(visualization.tradeoff_figure(curves), path)
    print(f"Wrote {path}: {sum(map(len, curves.values()))} evaluations")


if __name__ == "__main__":
    programs.run(main)
