"""Plots how a PACT network fares relaxed, discrete and thresholded, during training.

    python -m experiments.plot_modes --evaluations='runs/pact/eval_*/eval.json' \\
        --output_file=modes.png

The files are those that cifar_main and imagenet_eval write, of one run at several
steps. The third panel is of operations, in relaxed mode of those expected.
"""

from __future__ import annotations

import glob
import os

from absl import flags

from experiments.common import programs
from sact_tf import reading, visualization
from sact_tf.data.examples import DataError
from sact_tf.domains import AT_LEAST_0
from sact_tf.halting.probabilistic import MODES

FLAGS = flags.FLAGS

flags.DEFINE_string("evaluations", "", "Pattern of the eval.json files.")
flags.DEFINE_string("output_file", "", "Picture to write: .png, .pdf or .svg.")

_KINDS = (".png", ".pdf", ".svg")
_PANELS = {"Log Loss": "log loss", "Accuracy": "accuracy", "Flops": "operations"}
_ROW = {
    "global_step": reading.number(AT_LEAST_0),
    **{
        f"{mode}/{key}": reading.number(AT_LEAST_0)
        for mode in MODES
        for key in (*_PANELS, *(["Expected Flops"] if mode == "relaxed" else []))
    },
}


def read() -> list[dict[str, float]]:
    """Reads the evaluations, by their steps.

    Raises:
        FileNotFoundError: No file matches.
        DataError: A file is no evaluation of a PACT network.
    """
    pattern = os.path.expanduser(FLAGS.evaluations)
    paths = glob.glob(pattern)
    if not paths:
        raise FileNotFoundError(f"--evaluations={pattern}: matches no file")
    rows = []
    for path in paths:
        try:
            rows.append(reading.checked_row(reading.read_json(path), _ROW, "it"))
        except (OSError, DataError) as error:
            raise DataError(
                f"--evaluations={pattern}: {path} is no evaluation of a PACT network "
                f"({error})"
            ) from error
    return sorted(rows, key=lambda row: row["global_step"])


def modes_figure(rows: list[dict[str, float]]) -> visualization.figures.Figure:
    """Draws log loss, accuracy and operations of all modes over steps."""
    figure = visualization.figures.Figure(figsize=(11, 3.2), layout="constrained")
    axes = figure.subplots(1, len(_PANELS))
    steps = [row["global_step"] for row in rows]
    for axis, (key, label) in zip(axes, _PANELS.items()):
        for mode in MODES:
            is_expected = mode == "relaxed" and key == "Flops"
            name = f"{mode}/{'Expected Flops' if is_expected else key}"
            axis.plot(steps, [row[name] for row in rows], marker="o", label=mode)
        axis.set_xlabel("step")
        axis.set_ylabel(label)
    axes[0].legend()
    return figure


def main() -> None:
    """Plots."""
    programs.require("evaluations", "output_file")
    path = os.path.expanduser(FLAGS.output_file)
    if not path.endswith(_KINDS):
        raise ValueError(
            f"--output_file={path}: must end in one of {', '.join(_KINDS)}"
        )
    programs.make_directory("output_file", os.path.dirname(path) or ".")
    rows = read()
    visualization.save_figure(modes_figure(rows), path)
    print(f"Wrote {path}: {len(rows)} evaluations")


if __name__ == "__main__":
    programs.run(main)
