"""The detection evaluation program: what it prints and writes, bad input."""

import json

import pytest
import tensorflow as tf
from absl.testing import flagsaver

import sact_tf
from object_detection import evaluation
from object_detection.data import scenes
from object_detection.faster_rcnn import FasterRCNN, Options

TINY = dict(
    model="1_1_1_1",
    model_type="sact",
    base_channels=2,
    anchor_sizes=["16"],
    anchor_ratios=["1"],
    num_proposals=8,
    crop_size=7,
)


@pytest.fixture
def run(program, tmp_path):
    """Returns a function that runs the program on generated scenes."""

    def run(**values):
        defaults = dict(
            dataset="shapes",
            num_examples=3,
            short_side=48,
            score_threshold=0.0,
            checkpoint_dir=str(tmp_path / "log"),
            eval_dir=str(tmp_path / "eval"),
        )
        with flagsaver.flagsaver(**{**TINY, **defaults, **values}):
            program.main()

    return run


def detector():
    options = Options(anchor_sizes=(16,), aspect_ratios=(1.0,), crop_size=7)
    return FasterRCNN(10, "1_1_1_1", "sact", base_channels=2, options=options)


@pytest.fixture
def checkpoint(tmp_path):
    return sact_tf.save_slim_checkpoint(
        detector(), str(tmp_path / "log" / "model.ckpt-7"), 7
    )


@pytest.mark.parametrize("execution", ["masked", "perforated"])
def test_evaluates(run, checkpoint, tmp_path, capsys, execution):
    run(execution=execution)
    output = capsys.readouterr().out
    results = json.loads((tmp_path / "eval" / "eval.json").read_text())
    assert results["global_step"] == 7 and results["num_examples"] == 3
    record = dict(program="coco_eval", model="1_1_1_1", model_type="sact", tau=0.005)
    record.update(image_size=[48, 1024], dataset="shapes", checkpoint=checkpoint)
    assert {name: results.get(name) for name in record} == record
    assert {results[f"block{b}/dead_units"] for b in (1, 2, 3)} == {0}
    for name in ("AP", "AR_large", "AP50/star", "Relative Flops/mean"):
        assert f"\n{name} " in output and name in results
    # What the library counts on the same scenes, masked.
    examples = scenes.load("validation", 3, short_side=48)
    model = detector()
    sact_tf.load_slim_checkpoint(model, checkpoint)
    expected, _ = evaluation.evaluate(model, examples)
    for name in ("Total Flops/mean", "Relative Flops/mean", "block1/num_units_mean"):
        assert results[name] == pytest.approx(expected[name], rel=1e-6), name
    rows = json.loads((tmp_path / "eval" / "detections.json").read_text())
    assert rows and {"image_id", "category_id", "bbox", "score"} == set(rows[0])


@pytest.mark.long
def test_pact_is_evaluated_in_all_modes(run, tmp_path, capsys):
    options = Options(anchor_sizes=(16,), aspect_ratios=(1.0,), crop_size=7)
    model = FasterRCNN(10, "2_1_1_1", "pact", base_channels=2, options=options)
    for head in model.blocks[0].heads:  # so that chance, not the score, decides
        head.local_conv.bias.assign([0.0])
    sact_tf.save_slim_checkpoint(model, str(tmp_path / "log" / "model.ckpt-7"), 7)
    run(model="2_1_1_1", model_type="pact", num_samples=2, num_examples=2)
    results = json.loads((tmp_path / "eval" / "eval.json").read_text())
    printed = capsys.readouterr().out
    for mode in ("relaxed", "discrete", "thresholded"):
        for key in ("AP", "AP50", "Flops"):
            assert f"\n{mode}/{key} " in printed and f"{mode}/{key}" in results
    assert results["discrete/Flops std"] > 0
    assert results["discrete/Flops"] < results["relaxed/Flops"]
    assert results["thresholded/Flops"] == results["Total Flops/mean"]
    assert results["thresholded/AP"] == results["AP"]


def test_iterations_and_objects(run, tmp_path, capsys):
    options = Options(anchor_sizes=(16,), aspect_ratios=(1.0,), crop_size=7)
    values = dict(base_channels=2, max_iterations=(1, 2, 1, 1))
    model = FasterRCNN(10, model_type="iterative", options=options, **values)
    sact_tf.save_slim_checkpoint(model, str(tmp_path / "log" / "model.ckpt-7"), 7)
    values.update(max_iterations=["1", "2", "1", "1"], reference_model="50")
    run(model="101", model_type="iterative", num_examples=2, **values)
    results = json.loads((tmp_path / "eval" / "eval.json").read_text())
    assert results["model"] == "1_2_1_1" and results["tau"] == 0.001
    assert results["reference_model"] == "50"
    assert "\nIterations/objects " in capsys.readouterr().out
    rows = json.loads((tmp_path / "eval" / "iterations.json").read_text())
    assert [row["iterations"] for row in rows] == [4, 4]
    assert (tmp_path / "eval" / "iterations.png").stat().st_size > 1000


def test_relative_to_another_depth(run, checkpoint, tmp_path):
    found = {}
    for reference in (None, "9_1_1_1"):
        run(reference_model=reference, num_examples=1)
        results = json.loads((tmp_path / "eval" / "eval.json").read_text())
        found[results["reference_model"]] = results["Relative Flops/mean"]
    image, sizes = tf.zeros([1, 48, 48, 3]), tf.constant([[48, 48]])
    dense = {}
    for depth in ("1_1_1_1", "9_1_1_1"):
        network = sact_tf.imagenet_resnet(depth, base_channels=2)
        dense[depth] = int(network.dense_flops_of_blocks(image, sizes, 3)[0])
    assert dense["9_1_1_1"] > dense["1_1_1_1"]
    expected = results["Total Flops/mean"]
    for depth, count in dense.items():
        assert found[depth] == pytest.approx(expected / count, rel=1e-9)


def test_a_depth_that_does_not_exist(refusal, checkpoint, tmp_path):
    options = dict(checkpoint_dir=checkpoint, eval_dir=str(tmp_path / "eval"))
    for name in ("7", "102", "1_2"):
        message = refusal(reference_model=name, **options)
        assert message.startswith(f"--reference_model={name}: model must be one of")
        assert "\n" not in message


def test_checkpoint_of_a_classification_network(refusal, tmp_path):
    model = sact_tf.imagenet_resnet("1_1_1_1", "sact", 3, base_channels=2)
    path = sact_tf.save_slim_checkpoint(model, str(tmp_path / "model.ckpt-7"), 7)
    options = dict(dataset="shapes", num_examples=1, short_side=48, **TINY)
    message = refusal(checkpoint_dir=path, eval_dir=str(tmp_path / "eval"), **options)
    assert message.startswith(
        f"--checkpoint_dir={path}: checkpoint {path} is that of a classification "
        "network, not of a detector; imagenet_eval"
    )
    assert "\n" not in message


def test_detections_of_any_origin(run, tmp_path, capsys):
    truth = scenes.load("validation", 3).ground_truth()
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    keys = ("image_id", "category_id", "bbox")
    rows = [{k: a[k] for k in keys} | {"score": 1.0} for a in truth["annotations"]]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    options = dict(annotations=str(tmp_path / "truth.json"), detections=str(path))
    run(**options)
    assert json.loads((tmp_path / "eval" / "eval.json").read_text())["AP"] == 1.0
    for content, message in (
        ("[", "is no JSON file"),
        ('[{"image_id": 99}]', r"detections\[0\] has no 'category_id'"),
        (json.dumps([rows[0] | {"image_id": 99}]), "of another data set"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=f"--detections={path}: .*{message}"):
            run(**options)
    with pytest.raises(OSError, match="nowhere"):
        run(**{**options, "detections": "/nowhere"})


def test_no_checkpoint(run):
    with pytest.raises(FileNotFoundError, match="--checkpoint_dir=.* holds no checkp"):
        run()


def test_checkpoint_of_another_detector(run, checkpoint):
    with pytest.raises(sact_tf.CheckpointMismatchError, match="rpn/score/weights"):
        run(anchor_sizes=["16", "32"])


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(score=float("nan")), r"detections\[0\] has score nan; expected a finite"),
        (dict(bbox=[1, 2, None, 4]), r"detections\[0\] has bbox \[1, 2, None, 4\]"),
        (dict(bbox=[1e400, 2, 3, 4]), r"detections\[0\] has bbox \[inf, 2, 3, 4\]"),
        (dict(image_id={}), "has image_id {}"),
        (dict(category_id=2**70), "has category_id 1180591620717411303424; expected"),
        (dict(score=[1]), r"has score \[1\]"),
    ],
)
def test_detections_of_other_types(run, tmp_path, change, message):
    truth = scenes.load("validation", 1).ground_truth()
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    row = dict(image_id=1, category_id=1, bbox=[1, 2, 3, 4], score=0.5)
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{**row, **change}]))
    with pytest.raises(ValueError, match=f"--detections={path}: .*{message}"):
        run(annotations=str(tmp_path / "truth.json"), detections=str(path))


def test_annotations_are_named_by_their_flag(refusal, tmp_path):
    path = tmp_path / "truth.json"
    for content, message in (
        ("[" * 10**5, f"{path}: is no JSON file (nested too deeply)"),
        ('{"images": [null]}', f"{path}: images[0] is null, which has no 'id'"),
    ):
        path.write_text(content)
        options = dict(detections="x.json", eval_dir=str(tmp_path / "eval"))
        got = refusal(annotations=str(path), **options)
        assert got == f"--annotations={path}: {message}"
    path.unlink()
    path.mkdir()
    got = refusal(annotations=str(path), **options)
    assert got == f"--annotations={path}: {path}: cannot be read (Is a directory)"
