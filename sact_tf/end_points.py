"""Metrics of the end points that networks return."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

ADAPTIVE_METRICS = ("ponder_cost", "num_units")


def metric_values(end_points: Mapping[str, object]) -> dict[str, tf.Tensor]:
    """Returns the values whose moments an evaluation reports, by metric name.

    Args:
        end_points: Of a network.

    Returns:
        `Total Flops` and `<block>/flops`, one value per image, and the same of expected
        operations where blocks tell them; `Total Macs` where the network counts
        multiply-accumulates; in adaptive networks also
        `<block>/ponder_cost` and `<block>/num_units`, one per image or position.
    """
    values = {"Total Flops": end_points["flops"]}
    if "expected_flops" in end_points:
        values["Total Expected Flops"] = end_points["expected_flops"]
    if "macs" in end_points:
        values["Total Macs"] = end_points["macs"]
    for block in end_points["block_scopes"]:
        for key in ("flops", "expected_flops", *ADAPTIVE_METRICS):
            name = f"{block}/{key}"
            if name in end_points:
                values[name] = end_points[name]
    return values
