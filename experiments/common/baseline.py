"""The SACT paper's non-adaptive baseline: as many units as an adaptive network runs."""

from __future__ import annotations

import os
from collections.abc import Sequence

from absl import flags

from sact_tf import reading
from sact_tf.data.examples import DataError
from sact_tf.domains import MAX_UNITS, Domain

FLAGS = flags.FLAGS
# Flags defined here belong to the program that asks for them, and to its --help.
flags.disclaim_key_flags()


def define_flag() -> None:
    """Defines --units_from."""
    flags.DEFINE_string(
        "units_from",
        "",
        "eval.json of an adaptive network, whose mean units per block, rounded, "
        "--model=auto takes: the SACT paper's non-adaptive baseline.",
    )


def units(blocks: Sequence[str]) -> str:
    """Returns --model, or the units that --units_from stands for.

    Args:
        blocks: Names of the network's blocks.

    Raises:
        ValueError: Naming the flag, if the file is no evaluation of an adaptive
            network.
    """
    if FLAGS.model != "auto":
        if FLAGS.units_from:
            raise ValueError(
                f"--units_from={FLAGS.units_from}: needs --model=auto; got "
                f"--model={FLAGS.model}"
            )
        return FLAGS.model
    row = _evaluation(blocks)
    return "_".join(str(max(round(row[_mean(block)]), 1)) for block in blocks)


def baseline_of() -> str | None:
    """Returns what the network is the baseline of, None where it is none.

    That is the model type in the file of --units_from; "" if the file does not say.
    """
    if FLAGS.model != "auto":
        return None
    kind = _evaluation(()).get("model_type")
    return kind if isinstance(kind, str) else ""


def _mean(block):
    return f"{block}/num_units_mean"


def _evaluation(blocks):
    path = os.path.expanduser(FLAGS.units_from)
    if not path:
        raise ValueError("--model=auto: needs --units_from, an eval.json")
    mean_units = reading.number(Domain(0, MAX_UNITS))
    fields = {_mean(block): mean_units for block in blocks}
    try:
        return reading.checked_row(reading.read_json(path), fields, "it")
    except (DataError, OSError) as error:
        raise ValueError(
            f"--units_from={path}: is no eval.json of an adaptive network ({error})"
        ) from error
