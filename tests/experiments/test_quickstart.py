"""The first set-up command."""

import json

import numpy as np
import pytest
from absl.testing import flagsaver

import sact_tf
from sact_tf.data import shapes
from sact_tf.data.images import read_image
from sact_tf.zoo import loading


@pytest.mark.long
@pytest.mark.skipif(
    "sact-shapes64" not in sact_tf.list_networks(),
    reason="the zoo has no sact-shapes64",
)
def test_it_shows_a_trained_network(program, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(program, "NUM_SHOWN", 60)
    with flagsaver.flagsaver(output_dir=str(tmp_path)):
        program.main()
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["sact"]["eval/Accuracy"] > 0.5
    assert results["relative_flops"] < 1
    # Most is spent where the objects are.
    assert results["ponder_cost"]["inside"] > 1.2 * results["ponder_cost"]["outside"]
    assert 0 < results["photograph"]["relative_flops"] < 1.1
    for name in ("ponder_maps.png", "photograph.png", "saved_model"):
        assert (tmp_path / name).exists()
    assert "--train" in capsys.readouterr().out


def test_flags_of_training_need_it(program, refusal, tmp_path, monkeypatch):
    monkeypatch.setattr(sact_tf, "list_networks", lambda: [program.SHAPES_NETWORK])
    message = refusal(steps=3, output_dir=str(tmp_path))
    assert message == "--steps=3: needs --train"


@pytest.mark.long
def test_it_trains_where_nothing_is_packed(program, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loading, "DIRECTORY", str(tmp_path / "none"))
    options = dict(image_size=16, num_examples=160, steps=2, model="1", batch_size=16)
    with flagsaver.flagsaver(output_dir=str(tmp_path), base_channels=4, **options):
        program.main()
    output = capsys.readouterr().out
    assert "sact-shapes64 does not come with this installation: training" in output
    results = json.loads((tmp_path / "results.json").read_text())
    assert {"vanilla", "sact", "ponder_cost", "seconds"} <= set(results)


def test_the_photograph_comes_with_matplotlib(program):
    assert read_image(program.photograph()).shape[2] == 3


def test_inside_and_outside(program):
    maps = np.zeros([1, 4, 4])
    maps[0, 1:3, 1:3] = 2.0
    boxes = np.array([[1, 1, 3, 3]])
    assert program.ponder_inside_outside(maps, boxes) == (2.0, 0.0)
    assert shapes.load("test", 16, 1).boxes.shape == (1, 4)
