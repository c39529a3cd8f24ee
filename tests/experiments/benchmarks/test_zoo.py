"""The program that times trained networks."""

import json

import matplotlib.image
import pytest
from absl.testing import flagsaver

import custom_ops
import sact_tf
from experiments.common import evaluating


@pytest.fixture
def write(tmp_path, lively):
    """Returns a function that writes the eval.json of a network with its checkpoint."""

    def write(name, model_type, **changes):
        model = lively(sact_tf.cifar_resnet("2", model_type, base_channels=2))
        prefix = str(tmp_path / name / "model.ckpt-7")
        sact_tf.save_slim_checkpoint(model, prefix, 7)
        row = {
            **evaluating.record("cifar_main", model.options, prefix, 16),
            **evaluating.provenance(model, prefix),
            "dataset": "shapes",
            "eval/Accuracy": 0.5,
            "Total Flops/mean": 1e5,
            **changes,
        }
        (tmp_path / name / "eval.json").write_text(json.dumps(row))

    return write


@pytest.fixture
def run(program, tmp_path):
    def run(**values):
        options = dict(
            evaluations=[str(tmp_path / "*" / "eval.json")],
            sides=["masked", "ordinary"],
            num_images=4,
            batch_size=2,
            repetitions=1,
            output_dir=str(tmp_path / "times"),
        )
        with flagsaver.flagsaver(**{**options, **values}):
            program.main()
        return json.loads((tmp_path / "times" / "times.json").read_text())

    return run


def test_sides_of_every_network(run, write, tmp_path):
    write("a", "vanilla")
    write("b", "sact", **{"Total Flops/mean": 1000.0})
    rows = run()
    found = [(row["name"].split("/")[-2], row["side"]) for row in rows]
    assert found == [("a", "ordinary"), ("b", "masked"), ("b", "ordinary")]
    for row in rows:
        assert row["milliseconds"] > 0 and row["num_images"] == 4
    # The ordinary network beside an adaptive one was not trained.
    assert [row["accuracy"] for row in rows] == [0.5, 0.5, None]
    assert rows[1]["relative_flops"] < 1 == rows[2]["relative_flops"]
    assert rows[2]["flops"] > rows[1]["flops"] == 1000
    picture = matplotlib.image.imread(tmp_path / "times" / "tradeoff.png")
    assert picture.shape[1] > 2 * picture.shape[0]  # two panels


@pytest.mark.long
def test_all_sides_agree(run, write):
    pytest.importorskip("openvino", reason="needs the extra [openvino]")
    if custom_ops.load() is None:
        pytest.skip("no kernels here")
    write("b", "sact")
    rows = run(sides=["masked", "native", "ordinary", "openvino"])
    assert [row["side"] for row in rows] == ["masked", "native", "ordinary", "openvino"]


def test_sides_that_differ_are_an_error(run, write, program, monkeypatch):
    write("b", "sact")
    monkeypatch.setattr(custom_ops, "load", lambda: True)
    monkeypatch.setattr(
        program, "in_tensorflow", lambda model, *a: lambda x: 1.0 * len(a) + 0 * x
    )
    with pytest.raises(ValueError, match="logits of masked and native differ by 1"):
        run(sides=["masked", "native"])


def test_what_cannot_be_timed(run, write, refusal, tmp_path):
    options = dict(output_dir=str(tmp_path / "times"))
    assert refusal().startswith("--output_dir: must be given")
    assert "expected any of masked" in refusal(sides=["fast"], **options)
    none = str(tmp_path / "*" / "eval.json")
    assert "matches no file" in refusal(evaluations=[none], sides=["masked"], **options)
    write("b", "sact", program="coco_eval")
    assert "is of coco_eval" in refusal(evaluations=[none], sides=["masked"], **options)
    message = refusal(networks=["x"], sides=["masked"], **options)
    assert message.startswith("--networks=x: name must be one of")
