"""Greedy search: its order, its path in a file, and when it ends."""

import itertools
import json
import math

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from sact_tf.data.examples import DataError
from sact_tf.perforation import (
    CompactNetwork,
    baselines,
    impact,
    perforate,
    search,
    search_rates,
    surgery,
)
from sact_tf.perforation.candidates import Candidate

layers = keras.layers


def test_order_is_that_of_brute_force():
    """Three layers of known multiplications, and a table of losses."""
    keep, weights = (1, 1 / 1.5, 1 / 2, 1 / 3), (50.0, 30.0, 20.0)
    rng = np.random.default_rng(3)
    table = {
        levels: 1 + sum(levels) + 0.5 * rng.random()
        for levels in itertools.product(range(4), repeat=3)
    }
    table[0, 0, 0] = 1.0

    def cost(levels):
        return sum(w * keep[k] for w, k in zip(weights, levels))

    def by_brute_force():
        levels = (0, 0, 0)
        while any(k < 3 for k in levels):
            nexts = [
                tuple(k + (n == layer) for n, k in enumerate(levels))
                for layer in range(3)
                if levels[layer] < 3
            ]
            levels = min(
                nexts, key=lambda n: (table[n] - 1.0) / (cost((0, 0, 0)) - cost(n))
            )
            yield levels

    dense = current = Candidate((0, 0, 0), ("grid",) * 3, 0, 0)
    found = []
    for step in range(9):
        best = search.choose(
            search.proposals(current, ["grid"], 2, 4, step),
            lambda c: cost(c.levels),
            lambda c, is_thorough: table[c.levels],
            dense,
        )
        current = best.candidate
        found.append(current.levels)
    assert found == list(by_brute_force())
    assert search.proposals(current, ["grid"], 2, 4, 9) == []


def test_best_three_are_scored_again():
    dense = Candidate((0,) * 5, ("grid",) * 5, 0, 0)
    thorough = []

    def loss(candidate, is_thorough):
        layer = candidate.levels.index(1) if any(candidate.levels) else -1
        if is_thorough and layer >= 0:
            thorough.append(layer)
        return float(layer if not is_thorough else -layer)

    candidates = search.proposals(dense, ["grid"], 1, 2, 0)
    best = search.choose(candidates, lambda c: 10.0 - sum(c.levels), loss, dense)
    assert thorough == [0, 1, 2]
    assert best.candidate.levels.index(1) == 2 and best.price == -2 - 1


def test_what_saves_nothing_or_breaks_is_not_chosen():
    assert search.price(1.0, 10.0, 1.0, 10.0) == math.inf
    assert search.price(math.nan, 5.0, 1.0, 10.0) == math.inf
    dense = Candidate((0,), ("grid",), 0, 0)
    candidates = search.proposals(dense, ["grid"], 2, 3, 0)
    assert search.choose(candidates, lambda c: 1.0, lambda c, t: 0.0, dense) is None


def test_masks_are_drawn_anew():
    dense = Candidate((0, 0), ("grid",) * 2, 0, 0)
    made = [search.proposals(dense, ["grid", "uniform"], 2, 3, s) for s in range(2)]
    assert [len(candidates) for candidates in made] == [8, 8]
    assert {c.kinds for c in made[0]} == {
        *(("grid", "grid"), ("uniform", "grid"), ("grid", "uniform"))
    }
    seeds = [{c.seed for c in candidates} for candidates in made]
    assert len(seeds[0]) == 2 and not seeds[0] & seeds[1]


@pytest.fixture(scope="module")
def case():
    keras.utils.set_random_seed(0)
    inputs = keras.Input([8, 8, 2])
    x = layers.Conv2D(4, 3, activation="relu", padding="same", name="one")(inputs)
    x = layers.MaxPooling2D(2)(x)
    x = layers.Conv2D(5, 3, padding="same", name="two")(x)
    model = keras.Model(inputs, layers.GlobalAveragePooling2D()(x))
    rng = np.random.default_rng(0)
    images = rng.normal(size=[12, 8, 8, 2]).astype(np.float32)
    return model, (images, rng.integers(0, 5, 12))


OPTIONS = dict(num_images=4, num_recheck=8, batch_size=4, levels=(1, 0.5, 0.25))


def test_search_goes_on_where_it_was_killed(case, tmp_path, monkeypatch):
    model, examples = case
    path = tmp_path / "search.json"
    whole = search_rates(model, examples, steps=2, redraws=1, **OPTIONS)
    measured = []
    score = search.Scorer.loss

    def killed(self, candidate, is_thorough):
        if len(measured) == 4:
            raise KeyboardInterrupt
        measured.append(candidate)
        return score(self, candidate, is_thorough)

    arguments = dict(steps=2, redraws=1, path=str(path), **OPTIONS)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(search.Scorer, "loss", killed)
        search_rates(model, examples, **arguments)
    rates = search_rates(model, examples, **arguments)
    assert rates == whole and rates.seed == whole.seed
    content = json.loads(path.read_text())
    assert [sum(step["levels"]) for step in content["steps"]] == [1, 2]
    network = CompactNetwork(perforate(model, rates))
    dense = baselines.count_multiplies(model)
    assert content["steps"][-1]["cost"] == network.multiplies
    assert content["steps"][-1]["speedup"] == dense / network.multiplies
    losses = list(content["measured"]["loss of 8"].values())
    assert content["steps"][-1]["loss"] in losses
    again = search_rates(model, examples, **arguments)
    assert again == rates and json.loads(path.read_text()) == content
    for change, message in (
        (dict(seed=1), "with seed 0; got 1"),
        (dict(mask="uniform"), r"with mask \['grid'\]; got \['uniform'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            search_rates(model, examples, **{**arguments, **change})
    path.write_text("[]")
    with pytest.raises(DataError, match="is no file of a search"):
        search_rates(model, examples, **arguments)


def test_search_stops_at_its_target(case, capsys):
    model, examples = case
    rates = search_rates(
        model, examples, target_speedup=1.2, redraws=1, verbose=True, **OPTIONS
    )
    network = CompactNetwork(perforate(model, rates))
    assert baselines.count_multiplies(model) / network.multiplies >= 1.2
    assert "x, loss" in capsys.readouterr().out.splitlines()[-1]


def test_search_ends_at_the_last_levels(case):
    model, examples = case
    rates = search_rates(
        model, examples, steps=9, redraws=1, **{**OPTIONS, "levels": (1, 0.3)}
    )
    assert rates == {"one": 0.3, "two": 0.3}


@pytest.mark.parametrize("costs, made", [([10.0], 0), ([10.0, 9.0], 1)])
def test_search_stops_with_what_it_has(case, tmp_path, monkeypatch, costs, made):
    """Where no candidate is cheaper than the dense network."""
    model, examples = case
    by_steps = dict(enumerate(costs))
    monkeypatch.setattr(
        search.Scorer, "cost", lambda self, c: by_steps.get(sum(c.levels), 11.0)
    )
    path = tmp_path / "search.json"
    rates = search_rates(model, examples, steps=5, redraws=1, path=str(path), **OPTIONS)
    assert sorted(rates.values()) == [0.5] * made + [1.0] * (2 - made)
    if made:
        assert len(json.loads(path.read_text())["steps"]) == made
    assert len(surgery.realised(perforate(model, rates))) == made


@pytest.mark.long
def test_search_by_time_and_by_impact(case, tmp_path):
    """Rates bring the scores of their masks."""
    model, examples = case
    path = tmp_path / "search.json"
    rates = search_rates(
        model,
        examples,
        steps=1,
        redraws=1,
        mask="impact",
        num_impact=4,
        cost="time",
        path=str(path),
        **OPTIONS,
    )
    times = json.loads(path.read_text())["measured"]["time"]
    assert set(times) == {"dense", "one impact 0.5000", "two impact 0.5000"}
    first = tuple(x[:4] for x in examples)
    scores = impact.impact_scores(model, first, ["one", "two"])
    for name, fraction in rates.items():
        np.testing.assert_allclose(rates.scores[name], scores[name], rtol=1e-5)
        if fraction < 1:
            kept = perforate(model, rates).get_layer(name).kept.numpy()
            best = np.argsort(-scores[name].ravel())[: len(kept)]
            assert set(kept) == set(best)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(steps=0), "steps must be an integer >= 1"),
        (dict(cost="energy"), "cost must be one of multiplies, time; got 'energy'"),
        (dict(mask="chess"), "mask must be one of uniform"),
        (dict(target_speedup=0), "target_speedup must be a finite number > 0"),
        (dict(levels=(0.5, 1)), "levels must be keep fractions descending from 1"),
    ],
)
def test_refused(case, arguments, message):
    with pytest.raises(ValueError, match=message):
        search_rates(*case, **arguments)


def test_uniform_rate(case):
    model, _ = case
    for mask in ("grid", "uniform"):
        rate = baselines.uniform_rate(model, 2, mask)
        fewer, more = (
            CompactNetwork(perforate(model, r, mask)).multiplies
            for r in (rate, rate + 0.001)
        )
        dense = baselines.count_multiplies(model)
        assert dense / fewer >= 2 > dense / more
    with pytest.raises(ValueError, match="target_speedup 1e.06 is out of reach"):
        baselines.uniform_rate(model, 1e6)


def test_larger_stride(case):
    model, (images, _) = case
    strided = baselines.with_larger_stride(model, ["one"])
    assert strided.get_layer("one").strides == (2, 2)
    assert strided.get_layer("one").output_shape[1:3] == (4, 4)
    assert strided.get_layer("two").output_shape[1:3] == (4, 4)  # pooling made up
    kernel = model.get_layer("one").kernel
    expected = tf.nn.relu(tf.nn.conv2d(images, kernel, 2, "SAME"))
    np.testing.assert_allclose(strided.get_layer("one")(images), expected, atol=1e-6)
    smaller = baselines.with_larger_stride(model, ["two"], 3)
    assert smaller.get_layer("two").output_shape[1:3] == (2, 2)
    with pytest.raises(ValueError, match="layers must be some of one, two; got three"):
        baselines.with_larger_stride(model, ["three"])


def test_smaller_input(case):
    model, (images, _) = case
    smaller = baselines.with_smaller_input(model, 0.5)
    x = tf.image.resize(images, [4, 4])
    for layer in model.layers[1:]:
        x = layer(x)
    np.testing.assert_allclose(smaller(images), x, atol=1e-6)
    assert smaller.input_shape == model.input_shape
    assert smaller.get_layer("two").output_shape[1:3] == (2, 2)
    scale = baselines.input_scale(model, 3)
    ratio = baselines.count_multiplies(model) / baselines.count_multiplies(
        baselines.with_smaller_input(model, scale)
    )
    assert scale == 0.5 and ratio == 4
    x = layers.Dense(2)(layers.Flatten()(model.get_layer("two").output))
    with pytest.raises(ValueError, match="layers that take maps of one size only"):
        baselines.with_smaller_input(keras.Model(model.input, x), 0.5)


def test_full_levels_keep_layers_dense(case):
    model, _ = case
    assert surgery.realised(perforate(model, {"one": 1, "two": 1.0})) == {}
