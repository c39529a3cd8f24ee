"""Reads the eval.json files of this project's programs, older ones too."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from experiments.common.evaluating import RECORD_VERSION
from sact_tf import reading
from sact_tf.data.examples import DataError
from sact_tf.domains import AT_LEAST_0, FINITE, FRACTION, Domain, brief
from sact_tf.networks.imagenet_resnet import UNITS_PER_BLOCK

_FLOPS = {
    "Total Flops/mean": reading.number(AT_LEAST_0),
    "Total Flops/std": reading.number(AT_LEAST_0),
}
CLASSIFICATION = {"eval/Accuracy": reading.number(FRACTION), **_FLOPS}
"""What an evaluation of a classification network holds."""

DETECTION = {
    "AP": reading.number(Domain(-1, 1)),
    "Relative Flops/mean": reading.number(AT_LEAST_0),
    "Relative Flops/std": reading.number(AT_LEAST_0),
    **_FLOPS,
}
"""What an evaluation of a detector holds."""

_PROGRAMS = {
    "cifar_main": CLASSIFICATION,
    "imagenet_eval": CLASSIFICATION,
    "coco_eval": DETECTION,
}
_RECORD = {
    "model": reading.text(),
    "model_type": reading.text(),
    "tau": reading.number(FINITE),
    "global_step": reading.number(AT_LEAST_0),
    "checkpoint": reading.text(),
}
_NAMES = {"vanilla": "ResNet", "act": "ACT", "sact": "SACT"}
_NAMES["act_early_stopping"] = "ACT"
_ITERATIVE = {"iterative": "IterativeNet", "iamnn": "IamNN"}
_DEPTHS = {"_".join(map(str, units)): name for name, units in UNITS_PER_BLOCK.items()}


def depth_name(model: str) -> str:
    """Returns the name of an ordinary network.

    >>> depth_name("3_4_23_3"), depth_name("50"), depth_name("5_5_5"), depth_name("1_2")
    ('ResNet-101', 'ResNet-50', 'ResNet-32', 'ResNet 1_2')

    Args:
        model: As of --model.
    """
    units = model.split("_")
    if model in UNITS_PER_BLOCK or model in _DEPTHS:
        return f"ResNet-{_DEPTHS.get(model, model)}"
    if len(units) == 3 and len(set(units)) == 1 and units[0].isdecimal():
        return f"ResNet-{6 * int(units[0]) + 2}"
    return f"ResNet {model}"


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """An evaluation, and what its file says of it.

    Attributes:
        path: Of the file.
        row: Its entries.
        is_recorded: Whether it says model, type, tau and image size; older files do
            not.
    """

    path: str
    row: Mapping[str, object]
    is_recorded: bool

    @property
    def is_detection(self) -> bool:
        """Whether a detector was evaluated."""
        return "AP" in self.row

    @property
    def source(self) -> str:
        """The program and its --dataset; others are no part of one figure."""
        dataset = self.row.get("dataset", "not recorded")
        return f"{self.row['program']}, {dataset}"

    @property
    def depth(self) -> str:
        """Name of the ordinary network of these units."""
        return depth_name(self.row["model"])

    @property
    def reference(self) -> str:
        """Name of the network that a detector's operations are relative to."""
        model = self.row.get("reference_model")
        return depth_name(model) if isinstance(model, str) else self.depth

    @property
    def family(self) -> str:
        """The line of a figure that this is a point of."""
        baseline = self.row.get("baseline_of")
        if isinstance(baseline, str):
            of = _NAMES.get(baseline, baseline) or "adaptive"
            return f"{of} baseline"
        kind = self.row["model_type"]
        if kind == "vanilla":
            return "ResNet"
        if kind in _ITERATIVE:
            return f"{_ITERATIVE[kind]}, limits {self.row['model'].replace('_', ',')}"
        return f"{_NAMES.get(kind, kind)}, {self.depth}"

    @property
    def network(self) -> str:
        """The network in words, without steps."""
        if isinstance(self.row.get("baseline_of"), str):
            return f"{self.family}, {self.depth}"
        if self.row["model_type"] == "vanilla":
            return self.depth
        return f"{self.family}, tau {self.row['tau']:g}"

    @property
    def image_size(self) -> tuple[int, ...]:
        """Side of the images; of a detector short side and limit of the long one."""
        size = self.row["image_size"]
        return tuple(size) if isinstance(size, list) else (size,)


def read(paths: Iterable[str]) -> tuple[list[Evaluation], dict[str, str]]:
    """Reads evaluations.

    Args:
        paths: JSON files of any kind.

    Returns:
        The evaluations, and why every other file is none, by its path.
    """
    evaluations, left_out = [], {}
    for path in paths:
        try:
            evaluations.append(_read(path))
        except (DataError, OSError) as error:
            left_out[path] = str(error).removeprefix(f"{path}: ")
    return evaluations, left_out


def _read(path):
    row = reading.read_json(path)
    if not isinstance(row, Mapping):
        raise DataError(f"is {brief(row)}, no evaluation")
    version = row.get("version", RECORD_VERSION)
    if version != RECORD_VERSION:
        raise DataError(
            f"is of version {brief(version)}; this program reads {RECORD_VERSION}"
        )
    row = reading.checked_row(row, _results(row), "it")
    if "program" not in row:
        return Evaluation(path, row, is_recorded=False)
    return Evaluation(path, reading.checked_row(row, _record(row), "it"), True)


def _results(row):
    """Returns the fields of results that a file must have."""
    if "program" in row:
        program = row["program"]
        if not isinstance(program, str) or program not in _PROGRAMS:
            raise DataError(
                f"is of the program {brief(program)}; expected one of "
                f"{', '.join(_PROGRAMS)}"
            )
        return _PROGRAMS[program]
    for fields in (CLASSIFICATION, DETECTION):
        if next(iter(fields)) in row:
            return fields
    raise DataError("is no evaluation: it has neither 'eval/Accuracy' nor 'AP'")


def _record(row):
    """Returns the fields of the record that a file must have."""
    side = Domain(0, is_integer=True)
    size = reading.number(side)
    if row["program"] == "coco_eval":
        size = reading.numbers(2, "short and long side", side)
    return {**_RECORD, "image_size": size}
