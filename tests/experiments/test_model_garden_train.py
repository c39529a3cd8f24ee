"""The tasks of the Model Garden train through the YAML files that ship."""

import json
import pathlib
import signal

import numpy as np
import pytest
import tensorflow as tf
from absl.testing import flagsaver
from official.core.file_writers import write_small_dataset
from official.vision.data.tf_example_builder import TfExampleBuilder

from sact_tf import run_control

CONFIGS = pathlib.Path(__file__).parents[2] / "experiments" / "configs"
SIZE = 32
BLOCKS = [f"block{k}/units" for k in range(1, 5)]


def image_with_square(k):
    """Noise with a bright square; returns the image and where the square is."""
    rng = np.random.default_rng(k)
    image = rng.integers(0, 100, [SIZE, SIZE, 3]).astype(np.uint8)
    top, left = rng.integers(0, SIZE // 2, 2)
    box = top, left, top + SIZE // 2, left + SIZE // 2
    image[box[0] : box[2], box[1] : box[3]] += 150
    return image, box


def builder(k, image_format="PNG"):
    example = TfExampleBuilder()
    return example.add_image_matrix_feature(
        image_with_square(k)[0], image_format, str(k + 1).encode()
    )


def classification_example(k):
    return builder(k, "JPEG").add_ints_feature("image/class/label", [k]).example


def detection_example(k):
    ymin, xmin, ymax, xmax = (np.array(image_with_square(k)[1]) / SIZE).tolist()
    boxes = builder(k).add_boxes_feature([xmin], [xmax], [ymin], [ymax], [1])
    return boxes.add_ints_feature("image/object/is_crowd", [0]).example


def coco_annotations():
    """The same as a COCO annotation file, for the evaluation."""
    boxes = [image_with_square(k)[1] for k in range(2)]
    return {
        "images": [{"id": k + 1, "height": SIZE, "width": SIZE} for k in range(2)],
        "categories": [{"id": 1, "name": "square"}],
        "annotations": [
            {
                "id": k + 1,
                "image_id": k + 1,
                "category_id": 1,
                "bbox": [int(left), int(top), SIZE // 2, SIZE // 2],
                "area": (SIZE // 2) ** 2,
                "iscrowd": 0,
            }
            for k, (top, left, *_) in enumerate(boxes)
        ],
    }


def segmentation_example(k):
    top, left, bottom, right = image_with_square(k)[1]
    mask = np.zeros([SIZE, SIZE, 1], np.uint8)
    mask[top:bottom, left:right] = 1
    return builder(k).add_semantic_mask_matrix_feature(mask).example


TASKS = {
    "classification": (
        "sact_resnet_imagenet",
        "imagenet_sact_resnet50.yaml",
        classification_example,
        {"train_data": {"aug_rand_hflip": False, "aug_crop": False}},
    ),
    "detection": (
        "retinanet_sact_resnetfpn_coco",
        "coco_retinanet_sact_resnet50.yaml",
        detection_example,
        {
            "model": {
                "max_level": 5,
                "decoder": {"fpn": {"num_filters": 4}},
                "head": {"num_convs": 1, "num_filters": 4},
            },
            "train_data": {
                "parser": {
                    "aug_rand_hflip": False,
                    "aug_scale_min": 1.0,
                    "aug_scale_max": 1.0,
                }
            },
        },
    ),
    "segmentation": (
        "seg_sact_resnetfpn_pascal",
        "pascal_fpn_sact_resnet50.yaml",
        segmentation_example,
        {
            "model": {
                "decoder": {"fpn": {"num_filters": 4}},
                "head": {"num_convs": 1, "num_filters": 4},
            },
            "train_data": {
                "output_size": [SIZE, SIZE],
                "aug_rand_hflip": False,
                "aug_scale_min": 1.0,
                "aug_scale_max": 1.0,
            },
            "validation_data": {
                "output_size": [SIZE, SIZE],
                "groundtruth_padded_size": [SIZE, SIZE],
            },
        },
    ),
}


def merged(a, b):
    """Dictionary of both, b's values going before a's."""
    out = dict(a)
    for key, value in b.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merged(out[key], value) if both else value
    return out


@pytest.fixture
def run(program, tmp_path):
    """Returns a function that runs a task on two tiny examples; it gives model_dir.

    What is overridden makes it tiny and every batch the same, but for `parameters`.
    """

    def run(task, mode="train_and_eval", parameters=(), **flags):
        experiment, config_file, make_example, task_parameters = TASKS[task]
        path = tmp_path / f"{task}.tfrecord"
        write_small_dataset([make_example(k) for k in range(2)], str(path))
        if task == "detection":
            annotations = tmp_path / "annotations.json"
            annotations.write_text(json.dumps(coco_annotations()))
            task_parameters = {**task_parameters, "annotation_file": str(annotations)}
        data = {"input_path": str(path), "global_batch_size": 2}
        network = {"model": "1_1_2_1", "base_channels": 2, "tau": 1.0}
        constant = {"type": "constant", "constant": {"learning_rate": 0.01}}
        tiny = {
            "runtime": {"num_gpus": 0},
            "task": {
                "model": {
                    "num_classes": 3,
                    "input_size": [SIZE, SIZE, 3],
                    "backbone": {"sact_resnet": network},
                },
                "train_data": {**data, "shuffle_buffer_size": 2},
                "validation_data": data,
            },
            "trainer": {
                "train_steps": 8,
                "steps_per_loop": 2,
                "summary_interval": 2,
                "checkpoint_interval": 2,
                "validation_interval": 8,
                "validation_steps": 1,
                "optimizer_config": {
                    "learning_rate": constant,
                    "warmup": {"type": None},
                },
            },
        }
        tiny = merged(merged(tiny, {"task": task_parameters}), dict(parameters))
        defaults = dict(
            experiment=experiment,
            config_file=[str(CONFIGS / config_file)],
            mode=mode,
            model_dir=str(tmp_path / f"{task}_run"),
            params_override=json.dumps(tiny),
        )
        with flagsaver.flagsaver(**{**defaults, **flags}):
            program.main()
        return pathlib.Path(defaults["model_dir"])

    return run


def summaries(directory):
    """Scalars of a directory's event files: name -> {step: value}."""
    values = {}
    for path in sorted(directory.glob("events.*")):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                if value.tensor.dtype == tf.float32.as_datatype_enum:
                    array = tf.make_ndarray(value.tensor)
                    values.setdefault(value.tag, {})[event.step] = float(array)
    return values


@pytest.mark.parametrize(
    "task",
    [
        "classification",
        pytest.param("detection", marks=pytest.mark.long),
        pytest.param("segmentation", marks=pytest.mark.long),
    ],
)
def test_trains_and_evaluates(run, task):
    model_dir = run(task)
    assert tf.train.latest_checkpoint(model_dir).endswith("ckpt-8")
    train = summaries(model_dir / "train")
    validation = summaries(model_dir / "validation")
    assert sorted(train["training_loss"]) == [2, 4, 6, 8]
    assert train["training_loss"][8] < train["training_loss"][2]
    for values in (train, validation):
        assert values["flops"][8] > 1e4
        # A block's ponder cost is its number of units and a remainder of at most 1.
        units = sum(values[name][8] for name in BLOCKS)
        assert units < values["ponder_cost"][8] <= units + 4
    # Where tau is high, the remainder of the block with two units falls at once.
    assert train["ponder_cost"][8] < train["ponder_cost"][2]
    accuracies = {
        "classification": "accuracy",
        "detection": "AP",
        "segmentation": "mean_iou",
    }
    assert 0 <= validation[accuracies[task]][8] <= 1


@pytest.mark.long
def test_goes_on_and_evaluates_alone(run):
    def eagerly(train_steps):  # which spares tracing the same three times
        return {
            "trainer": {
                "train_steps": train_steps,
                "train_tf_function": False,
                "train_tf_while_loop": False,
                "eval_tf_function": False,
            }
        }

    run("classification", "train", eagerly(2))
    model_dir = run("classification", "train", eagerly(4))
    assert sorted(summaries(model_dir / "train")["training_loss"]) == [2, 4]
    run("classification", "eval", eagerly(4))
    assert set(summaries(model_dir / "validation")["flops"]) == {4}


@pytest.mark.long
def test_a_signal_ends_training_after_a_loop(run, monkeypatch, capsys):
    asked = run_control.Interruption()
    asked.signal = signal.SIGTERM
    monkeypatch.setattr(run_control, "Interruption", lambda: asked)
    with pytest.raises(SystemExit) as stopped:
        run("classification", "train")
    assert stopped.value.code == 143
    assert "Stopped by SIGTERM at step 2; start again" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"model_dir": "runs/[1]"}, "--model_dir=runs/\\[1\\]: must be a path without"),
        (
            {"experiment": "nonsense"},
            "--experiment=nonsense: not known; use one of sact",
        ),
        ({"experiment": None}, "--experiment: must be given"),
        ({"config_file": ["no.yaml"]}, "--config_file=no.yaml: there is no such file"),
        (
            {"params_override": "task.modle.num_classes=2"},
            "--params_override=.*'modle'",
        ),
        ({"params_override": "{a: ["}, "--params_override=.*in YAML"),
        (
            {"params_override": "trainer: 3"},
            "--params_override: trainer must hold .* got 3",
        ),
        ({"mode": "eval", "params_override": ""}, "holds no checkpoint"),
    ],
)
def test_bad_flags(run, flags, message):
    with pytest.raises((ValueError, OSError), match=message) as raised:
        run("classification", **flags)
    assert "\n" not in str(raised.value)


def test_bad_yaml_file(run, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("task:\n  model: [\n")
    with pytest.raises(ValueError, match=f"--config_file={path}: does not hold"):
        run("classification", config_file=[str(path)])
    path.write_text("just words\n")
    with pytest.raises(ValueError, match=f"--config_file={path}: does not hold"):
        run("classification", config_file=[str(path)])


def test_bad_parameters_of_the_backbone(run):
    def bad(**values):
        return {"task": {"model": {"backbone": {"sact_resnet": values}}}}

    with pytest.raises(ValueError, match="model_type must be one of .* got 'sacct'"):
        run("classification", parameters=bad(model_type="sacct"))
    with pytest.raises(FileNotFoundError, match="no readable TF-Slim checkpoint at no"):
        run("classification", parameters=bad(init_checkpoint="no"))
    with pytest.raises(ValueError, match="nowhere-\\* does not match any files"):
        run(
            "classification",
            parameters={"task": {"train_data": {"input_path": "nowhere-*"}}},
        )
