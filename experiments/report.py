"""Makes the SACT paper's tables 1 and 3 and figure 7 of evaluations.

    python -m experiments.report --evaluations='runs/*/eval.json' --output_dir=report

Reads the `eval.json` files of cifar_main, imagenet_eval and coco_eval, any number of
them, and writes `report.md` with pictures beside it:

* table 3: operations, units, accuracy and recall, for every size of the images;
* figures 7a and 7b: accuracy over operations, for every size of the images;
* figures 7c and 7d: accuracy over the size of the images, and over operations where it
  varies, for every network;
* dead units of adaptive networks, beside what their training did against them: the
  start from an ordinary network, and the bias of halting heads (section 4.1);
* table 1 and its figure: mean average precision and operations of detectors.

What was evaluated on different data stands apart. Files of other programs or versions
are named, counted and left out. Older files do not say what they are of; they are in a
table of their own, and in no figure (see plot_tradeoff).
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from absl import flags

from experiments.common import evaluation_files, programs
from experiments.common.evaluation_files import Evaluation
from sact_tf import visualization
from sact_tf.writing import write_bytes

FLAGS = flags.FLAGS

flags.DEFINE_multi_string(
    "evaluations", [], "Pattern of eval.json files, with * and ?; may be repeated."
)
flags.DEFINE_string("output_dir", "", "Directory to write to.")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table."""
    cells = [header, ["---"] * len(header), *rows]
    escaped = [[str(cell).replace("|", r"\|") for cell in row] for row in cells]
    return "\n".join(f"| {' | '.join(row)} |" for row in escaped)


def grouped(
    evaluations: Iterable[Evaluation], key: Callable[[Evaluation], object]
) -> dict:
    """Returns the evaluations by their key, in the order of keys."""
    groups: dict = {}
    for evaluation in evaluations:
        groups.setdefault(key(evaluation), []).append(evaluation)
    return dict(sorted(groups.items()))


def flops(evaluation: Evaluation) -> str:
    """Operations of an image, mean and deviation where they differ."""
    row = evaluation.row
    deviation = row["Total Flops/std"]
    mean = f"{row['Total Flops/mean']:.3g}"
    return f"{mean} ± {deviation:.2g}" if deviation else mean


def units(evaluation: Evaluation) -> str:
    """Mean units of every block; of an ordinary network all it has."""
    means = [
        value
        for name, value in sorted(evaluation.row.items())
        if re.fullmatch(r"block_?\d+/num_units_mean", name)
    ]
    if means and all(isinstance(mean, (int, float)) for mean in means):
        return ", ".join(f"{mean:.1f}" for mean in means)
    return str(evaluation.row.get("model", "")).replace("_", ", ")


def percent(evaluation: Evaluation, name: str) -> str:
    """A share in percent, empty where the file has none."""
    value = evaluation.row.get(name)
    return f"{100 * value:.2f}" if isinstance(value, (int, float)) else ""


def by_flops(evaluation: Evaluation) -> float:
    """Sorts evaluations by their operations."""
    return evaluation.row["Total Flops/mean"]


def classification_table(evaluations: Sequence[Evaluation]) -> str:
    """Returns SACT's table 3, of evaluations at one image size."""
    header = ["network", "steps", "FLOPs", "units per block", "accuracy, %", "recall@5"]
    return table(
        header,
        (
            [
                e.network,
                str(e.row["global_step"]),
                flops(e),
                units(e),
                percent(e, "eval/Accuracy"),
                percent(e, "eval/Recall@5"),
            ]
            for e in sorted(evaluations, key=by_flops)
        ),
    )


def _began(evaluation: Evaluation) -> tuple[str, str]:
    """Returns how an adaptive network's training began, empty where it is not told.

    That is whether it started from another network, and the bias that the halting
    heads of that start had.
    """
    training, network = (evaluation.row.get(k) for k in ("training", "network"))
    if not isinstance(training, Mapping) or not isinstance(training.get("flags"), list):
        return "", ""
    given = dict(
        str(flag).removeprefix("--").partition("=")[::2] for flag in training["flags"]
    )
    config = network.get("config") if isinstance(network, Mapping) else None
    usual = config.get("halting_bias", "") if isinstance(config, Mapping) else ""
    return (
        "yes" if "finetune_path" in given else "no",
        str(given.get("halting_bias", usual)),
    )


def dead_units(evaluation: Evaluation) -> list[int]:
    """Returns how many units of every block no image runs; empty: it does not tell."""
    row = evaluation.row
    names = [name for name in sorted(row) if name.endswith("/dead_units")]
    return [row[name] for name in names if isinstance(row[name], int)]


def dead_units_table(evaluations: Sequence[Evaluation]) -> str:
    """Returns dead units and how training began (SACT, section 4.1)."""
    header = ["network", "from an ordinary network", "bias of heads", "steps"]
    header += ["dead units per block", "in all", "accuracy, %", "FLOPs"]
    return table(
        header,
        (
            [
                e.network,
                *_began(e),
                str(e.row["global_step"]),
                ", ".join(map(str, dead_units(e))),
                str(sum(dead_units(e))),
                percent(e, "eval/Accuracy"),
                flops(e),
            ]
            for e in sorted(evaluations, key=lambda e: (e.network, _began(e)))
        ),
    )


def detection_table(evaluations: Sequence[Evaluation]) -> str:
    """Returns SACT's table 1."""
    rows = []
    for e in sorted(evaluations, key=by_flops):
        relative = [100 * e.row[f"Relative Flops/{key}"] for key in ("mean", "std")]
        rows.append(
            [
                e.network,
                str(e.row["global_step"]),
                flops(e),
                f"{relative[0]:.1f} ± {relative[1]:.1f}",
                e.reference,
                percent(e, "AP"),
            ]
        )
    header = ["features", "steps", "FLOPs", "FLOPs, %", "100 % is", "mAP, %"]
    return table(header, rows)


def unrecorded_table(evaluations: Sequence[Evaluation]) -> str:
    """Returns a table of older files."""
    return table(
        ["file", "steps", "FLOPs", "units per block", "accuracy, %", "mAP, %"],
        (
            [
                e.path,
                str(e.row.get("global_step", "")),
                flops(e),
                units(e),
                percent(e, "eval/Accuracy"),
                percent(e, "AP"),
            ]
            for e in sorted(evaluations, key=lambda e: e.path)
        ),
    )


class Report:
    """A page of Markdown that grows, with pictures in the same directory.

    Args:
        output_dir: Where to write.
    """

    def __init__(self, output_dir: str):
        self._output_dir = output_dir
        self._parts: list[str] = []
        self.pictures: list[str] = []

    def add(self, *parts: str) -> None:
        """Adds paragraphs."""
        self._parts += parts

    def draw(
        self,
        name: str,
        title: str,
        curves: dict[str, list[tuple[float, float, float]]],
        x: str,
        y: str,
    ) -> None:
        """Adds a figure; says which of its lines are only a point."""
        file = re.sub(r"[^\w.-]+", "_", name) + ".png"
        figure = visualization.curves_figure(curves, x, y)
        visualization.save_figure(figure, os.path.join(self._output_dir, file))
        self.pictures.append(file)
        self.add(f"![{title}]({file})", f"*{title}.*")
        single = [label for label, points in curves.items() if len(points) == 1]
        if single:
            self.add(f"Of one point only: {'; '.join(single)}.")

    def write(self) -> str:
        """Writes the page; returns its path."""
        path = os.path.join(self._output_dir, "report.md")
        write_bytes(path, ("\n\n".join(self._parts) + "\n").encode())
        return path


def accuracy_points(evaluations: Iterable[Evaluation], x=by_flops) -> list[tuple]:
    """Returns the points of a line: x, accuracy, and the deviation of operations."""
    return [
        (
            x(e),
            100 * e.row["eval/Accuracy"],
            e.row["Total Flops/std"] if x is by_flops else 0.0,
        )
        for e in evaluations
    ]


def add_classification(
    report: Report, source: str, evaluations: list[Evaluation]
) -> None:
    """Adds table 3 and figure 7, of evaluations on the same data."""
    report.add(f"## Classification: {source}")
    accuracy, operations = "accuracy, %", "FLOPs per image"
    for (size,), some in grouped(evaluations, lambda e: e.image_size).items():
        report.add(f"### Images of {size}x{size} (SACT, table 3)")
        report.add(classification_table(some))
        adaptive = [e for e in some if dead_units(e)]
        if adaptive:
            report.add("#### Dead units (SACT, section 4.1)")
            report.add(dead_units_table(adaptive))
        families = grouped(some, lambda e: e.family)
        report.draw(
            f"{source}_{size}",
            f"Accuracy over operations at {size}x{size} (SACT, figures 7a and 7b)",
            {family: accuracy_points(v) for family, v in families.items()},
            operations,
            accuracy,
        )
    networks = grouped(evaluations, lambda e: (e.network, e.row["checkpoint"]))
    names = [network for network, _ in networks]
    labels = {
        key: key[0] if names.count(key[0]) == 1 else f"{key[0]}, {key[1]}"
        for key in networks
    }
    report.add("### Images of several sizes")
    for name, title, x, label in (
        (
            "sizes",
            "Accuracy over the size of the images (SACT, figure 7c)",
            lambda e: e.image_size[0],
            "side of the images, pixels",
        ),
        (
            "varying_size",
            "Accuracy over operations where the size of the images varies (SACT, "
            "figure 7d)",
            by_flops,
            operations,
        ),
    ):
        curves = {labels[key]: accuracy_points(v, x) for key, v in networks.items()}
        report.draw(f"{source}_{name}", title, curves, label, accuracy)


def add_detection(report: Report, source: str, evaluations: list[Evaluation]) -> None:
    """Adds table 1 and its figure, of evaluations on the same data."""
    report.add(f"## Detection: {source} (SACT, table 1)")
    for (short, long), some in grouped(evaluations, lambda e: e.image_size).items():
        sides = f"short side {short}" + (f", long side at most {long}" if long else "")
        report.add(f"### Images of {sides} pixels", detection_table(some))
        points = {
            family: [
                (by_flops(e), 100 * e.row["AP"], e.row["Total Flops/std"]) for e in line
            ]
            for family, line in grouped(some, lambda e: e.family).items()
        }
        report.draw(
            f"{source}_{short}_{long}",
            f"mAP over operations of the feature extractor, {sides}",
            points,
            "FLOPs per image",
            "mAP, %",
        )


def find(patterns: Sequence[str]) -> list[str]:
    """Returns the files that patterns match, each once.

    Raises:
        FileNotFoundError: A pattern matches none.
    """
    paths = []
    for pattern in patterns:
        found = sorted(glob.glob(os.path.expanduser(pattern), recursive=True))
        if not found:
            raise FileNotFoundError(f"--evaluations={pattern}: matches no file")
        paths += found
    return list(dict.fromkeys(paths))


def main() -> None:
    """Writes the report."""
    programs.require("evaluations", "output_dir")
    paths = find(FLAGS.evaluations)
    evaluations, left_out = evaluation_files.read(paths)
    for path, reason in left_out.items():
        print(f"Left out: {path}: {reason}", flush=True)
    if not evaluations:
        raise ValueError(
            f"--evaluations={','.join(FLAGS.evaluations)}: none of the {len(paths)} "
            "files is an evaluation of this project"
        )
    output_dir = programs.make_directory("output_dir", FLAGS.output_dir)
    report = Report(output_dir)
    report.add(f"# {len(evaluations)} evaluations")
    recorded = [e for e in evaluations if e.is_recorded]
    for (is_detection, source), some in grouped(
        recorded, lambda e: (e.is_detection, e.source)
    ).items():
        (add_detection if is_detection else add_classification)(report, source, some)
    older = [e for e in evaluations if not e.is_recorded]
    if older:
        report.add("## Files that do not say model, type, tau and image size")
        report.add(unrecorded_table(older))
        print(f"{len(older)} older files do not say model, type, tau and image size")
    if left_out:
        report.add(f"## Left out: {len(left_out)} files")
        report.add("\n".join(f"* {path}: {why}" for path, why in left_out.items()))
    path = report.write()
    print(
        f"Wrote {path}: {len(evaluations)} evaluations, {len(report.pictures)} "
        f"figures; {len(left_out)} files left out"
    )


if __name__ == "__main__":
    programs.run(main)
