"""Evaluation results."""

import functools
import json

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

import sact_tf
from sact_tf import evaluation, writing
from sact_tf.halting import CumulativeHalting
from sact_tf.halting.probabilistic import ProbabilisticHalting


@given(st.lists(st.lists(st.floats(-1e6, 1e6), max_size=5), min_size=1, max_size=6))
def test_moments_are_those_of_the_whole(parts):
    moments = evaluation.Moments()
    for part in parts:
        moments.add(np.array(part))
    whole = np.concatenate(parts)
    if len(whole):
        np.testing.assert_allclose(moments.mean, whole.mean(), rtol=1e-9, atol=1e-6)
    if len(whole) > 1:
        np.testing.assert_allclose(moments.std, whole.std(ddof=1), rtol=1e-6, atol=1e-4)


def test_constant_values_have_no_deviation():
    moments = evaluation.Moments()
    for _ in range(100):
        moments.add(np.full([100], 137725184, np.int64))
    assert (moments.mean, moments.std) == (137725184.0, 0.0)


def test_results_do_not_depend_on_the_batch_size(tiny_examples):
    model = sact_tf.cifar_resnet("2", "sact", num_classes=3, base_channels=4, tau=0.1)
    whole = evaluation.evaluate(model, tiny_examples.evaluation_batches(20))
    parts = evaluation.evaluate(model, tiny_examples.evaluation_batches(7))
    assert whole.keys() == parts.keys()
    for name in whole:
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-4, err_msg=name)
    images, labels = next(iter(tiny_examples.evaluation_batches(20)))
    logits, end_points = model.with_end_points(images, training=False)
    accuracy = np.mean(np.argmax(logits, 1) == labels.numpy())
    np.testing.assert_allclose(whole["eval/Accuracy"], accuracy)
    units = end_points["block_2/num_units"].numpy()
    np.testing.assert_allclose(whole["block_2/num_units_mean"], units.mean())
    np.testing.assert_allclose(
        whole["block_2/num_units_std"], units.std(ddof=1), atol=1e-9
    )
    flops = end_points["flops"].numpy()
    np.testing.assert_allclose(whole["Total Flops/std"], flops.std(ddof=1), rtol=1e-6)


def test_names_are_the_originals(tiny_examples):
    model = sact_tf.cifar_resnet("2", "act", num_classes=3, base_channels=4)
    results = evaluation.evaluate(model, tiny_examples.evaluation_batches(8))
    expected = {
        "eval/Accuracy",
        "eval/Mean Loss",
        "Total Flops/mean",
        "Total Flops/std",
    }
    for block in model.block_scopes:
        for key in ("ponder_cost", "num_units", "flops"):
            expected |= {f"{block}/{key}_mean", f"{block}/{key}_std"}
        expected |= {f"{block}/num_units_max", f"{block}/dead_units"}
    assert set(results) == expected


def test_dead_units_are_those_that_nothing_runs(tiny_examples):
    model = sact_tf.cifar_resnet("4", "sact", num_classes=3, base_channels=4)
    images = next(iter(tiny_examples.evaluation_batches(20)))[0]
    # Block 2 stops at unit 2 at the latest, and runs it at one position of one image.
    units = np.ones([len(images), 8, 8], np.int32)
    units[17, 3, 5] = 2
    model.blocks[1].impose_units(tf.constant(units))
    model.blocks[2].impose_units(4)
    results = evaluation.evaluate(model, tiny_examples.evaluation_batches(20))
    assert (results["block_2/num_units_max"], results["block_2/dead_units"]) == (2, 2)
    assert (results["block_3/num_units_max"], results["block_3/dead_units"]) == (4, 0)
    vanilla = sact_tf.cifar_resnet("1", num_classes=3, base_channels=4)
    results = evaluation.evaluate(vanilla, tiny_examples.evaluation_batches(20))
    assert not any("dead_units" in name for name in results)


def test_nothing_to_evaluate(tiny_examples):
    model = sact_tf.cifar_resnet("2", num_classes=3, base_channels=4)
    with pytest.raises(ValueError, match="no images"):
        evaluation.evaluate(model, tiny_examples.evaluation_batches(8).take(0))


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "eval.json"
    writing.write_json(str(path), {"a": 1})
    with pytest.raises(TypeError):
        writing.write_json(str(path), {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}


@pytest.mark.long
def test_samples_of_a_seed_are_always_the_same(tiny_examples, lively):
    model = lively(sact_tf.cifar_resnet("2_1_1", "pact", 3, 2))
    batches = functools.partial(tiny_examples.evaluation_batches, 7)
    runs = [
        evaluation.evaluate_modes(model, batches, 3, seed, True) for seed in (0, 0, 1)
    ]
    assert runs[0][0] == runs[1][0]
    for name, values in runs[0][1].items():
        np.testing.assert_array_equal(values, runs[1][1][name])
    assert runs[0][0]["discrete/Flops"] != runs[2][0]["discrete/Flops"]
    assert runs[0][0]["thresholded/Flops"] == runs[2][0]["thresholded/Flops"]
    sact = sact_tf.cifar_resnet("1", "sact", 3, 2)
    results, images = evaluation.evaluate_modes(sact, batches, per_image=True)
    assert results == {} and len(images["network/Accuracy"]) == 20


class Moded:
    """A model that says in which mode it is."""

    def __init__(self, mode=None):
        self.mode = mode

    def with_options(self, test_mode):
        return Moded(test_mode)


def test_all_modes_of_any_model():
    def evaluate(model, sample, mode):
        assert model.mode == mode
        return {"AP": len(mode) + sample}

    rule = ProbabilisticHalting()
    results = evaluation.in_all_modes(Moded(), rule, evaluate, num_samples=3)
    expected = {"relaxed/AP": 7, "discrete/AP": 9, "thresholded/AP": 11}
    assert results == {**expected, "discrete/AP std": 1}
    for rule in (None, CumulativeHalting()):
        assert evaluation.in_all_modes(Moded(), rule, evaluate) == {}


def test_units_of_images():
    end_points = {
        "block_scopes": ["a", "b", "c"],
        "a/num_units": tf.constant([1, 2]),
        "c/num_units": tf.constant([3, 1]),
    }
    np.testing.assert_array_equal(evaluation.units_of_images(end_points), [4, 3])
    end_points["c/num_units"] = tf.ones([2, 4, 4], tf.int32)
    assert evaluation.units_of_images(end_points) is None
    assert evaluation.units_of_images({"block_scopes": ["a"]}) is None
