"""The detection training program: defaults, stages, a kill, bad input."""

import json

import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from absl.testing import flagsaver

import sact_tf

TINY = dict(
    dataset="shapes",
    num_examples=4,
    short_side=48,
    model="1_1_1_1",
    base_channels=8,
    anchor_sizes=["16"],
    anchor_ratios=["1"],
    num_proposals=8,
    num_region_samples=8,
    crop_size=7,
)


@pytest.fixture
def run(program, tmp_path):
    """Returns a function that runs the program on a tiny network."""

    def run(**values):
        defaults = {**TINY, "train_log_dir": str(tmp_path / "log")}
        with flagsaver.flagsaver(**{**defaults, **values}):
            program.main()

    return run


def test_defaults_of_the_paper(program):
    expected = dict(
        batch_size=1,
        max_number_of_steps=1200000,
        learning_rate=3e-4,
        momentum=0.9,
        train_batch_norm=False,
        model="101",
        model_type="vanilla",
        short_side=600,
        num_proposals=300,
        num_region_samples=256,
        proposal_nms_iou=0.6,
        crop_size=28,
        anchor_sizes=["64", "128", "256", "512"],
        anchor_ratios=["0.5", "1", "2"],
        halting_bias=-3.0,
    )
    assert {name: flags.FLAGS[name].default for name in expected} == expected


def test_stages_of_the_paper(run, tmp_path, capsys):
    """A classification network, a detector from it, and SACT from that."""
    network = sact_tf.imagenet_resnet("1_1_1_1", "vanilla", 5, base_channels=8)
    sact_tf.save_slim_checkpoint(network, str(tmp_path / "resnet" / "model.ckpt-0"))
    vanilla, sact = str(tmp_path / "vanilla"), str(tmp_path / "sact")
    run(
        finetune_path=str(tmp_path / "resnet"),
        train_log_dir=vanilla,
        max_number_of_steps=1,
    )
    name = "resnet_v2/block4/unit_1/bottleneck_v2/conv2/weights"
    before, after = (
        tf.train.load_variable(path, name)
        for path in (str(tmp_path / "resnet"), vanilla)
    )
    np.testing.assert_allclose(before, after, atol=1e-2)
    assert not np.array_equal(before, after)
    options = dict(model_type="sact", finetune_path=vanilla, train_log_dir=sact)
    run(max_number_of_steps=1, **options)
    run(max_number_of_steps=1, **options)  # is done already
    assert f"Continuing from {sact}/model.ckpt-1 at step 1" in capsys.readouterr().out
    assert sact_tf.checkpoint_step(sact) == 1
    names = [n for n, _ in tf.train.list_variables(sact)]
    assert "rpn/conv/weights" in names and "rpn/conv/weights/Momentum" in names


def test_training_skips(run, tmp_path):
    run(max_number_of_steps=1, model_type="sact", execution="perforated")
    assert sact_tf.checkpoint_step(str(tmp_path / "log")) == 1


def test_halting_bias(program):
    options = {**TINY, "model": "1_2_1_1", "model_type": "sact", "halting_bias": -1.5}
    with flagsaver.flagsaver(**options):
        model = program.detection.make_model(3)
    (head,) = model.network.blocks[1].heads
    assert head.local_conv.bias.numpy().tolist() == [-1.5]


@pytest.mark.parametrize(
    "values, message",
    [
        (dict(dataset="coco"), "--annotations: must be given"),
        (
            dict(dataset="coco", annotations="/nowhere.json", images="/tmp"),
            "--annotations=/nowhere.json: .*No such file",
        ),
        (dict(short_side=2000), "--short_side=2000: must be at most --long_side, 1024"),
        (dict(anchor_sizes=["x"]), "--anchor_sizes: .*'x'"),
        (dict(model="7"), "model must be .*'7'"),
        (dict(split_name="test"), "split must be one of train, validation; got 'test'"),
        (dict(batch_size=9), "batch_size 9 is larger than the 4 examples"),
        (dict(train_log_dir="/proc/x"), "--train_log_dir=/proc/x: cannot be written"),
        (dict(finetune_path="/nowhere"), "/nowhere"),
        (
            dict(execution="perforated", train_batch_norm=True),
            "execution must be 'masked' to train with train_batch_norm",
        ),
        (
            dict(execution="perforated", batch_size=2),
            "batch_size must be 1 .* execution='perforated'",
        ),
        (dict(crop_size=8), "crop_size must be a multiple of pool_size 7; got 8"),
    ],
)
def test_errors_name_the_flag(run, values, message):
    with pytest.raises((ValueError, OSError), match=message):
        run(max_number_of_steps=1, **values)


def test_nothing_to_learn_from(run, tmp_path):
    content = dict(
        images=[dict(id=1, file_name="a.png", width=8, height=8)],
        annotations=[
            dict(id=1, image_id=1, category_id=1, bbox=[0, 0, 5, 5], iscrowd=1)
        ],
        categories=[dict(id=1, name="thing")],
    )
    (tmp_path / "a.json").write_text(json.dumps(content))
    (tmp_path / "a.png").write_bytes(
        tf.io.encode_png(np.zeros([8, 8, 3], "uint8")).numpy()
    )
    with pytest.raises(ValueError, match="a.json: there are no boxes to learn from"):
        run(
            dataset="coco",
            num_examples=None,
            annotations=str(tmp_path / "a.json"),
            images=str(tmp_path),
        )


@pytest.mark.long  # as test_distribution and test_training
def test_killed_at_any_moment_it_goes_on(kill_training):
    texts = {k: ",".join(v) if isinstance(v, list) else v for k, v in TINY.items()}
    kill_training(save_summaries_secs=1000, **texts)


def test_groups_of_images_of_several_sizes_are_refused(refusal, tmp_path):
    message = refusal(
        **{**TINY, "train_log_dir": str(tmp_path / "log")},
        model_type="pact",
        group_grid=2,
    )
    assert message.startswith("--group_grid=2: must be 1")


ITERATIVE = dict(
    model="101",
    model_type="iterative",
    max_iterations=["1", "2", "1", "2"],
    base_channels=2,
    train_batch_norm=True,
)


@pytest.mark.long
def test_iterative_networks_train_and_go_on(run, tmp_path):
    """Stage 4 too learns, and what does not fit is refused."""
    network = sact_tf.iterative_net(
        "iterative", (1, 2, 1, 2), num_classes=5, base_channels=2
    )
    path = sact_tf.save_slim_checkpoint(network, str(tmp_path / "net" / "model"))
    for steps in (1, 2):
        run(max_number_of_steps=steps, finetune_path=path, **ITERATIVE)
        assert sact_tf.checkpoint_step(tmp_path / "log") == steps
    name = "iterative_net/block_4/unit_1/conv1/weights"
    before, after = (
        tf.train.load_variable(one, name) for one in (path, str(tmp_path / "log"))
    )
    assert np.abs(after - before).max() > 0
    other = {**ITERATIVE, "max_iterations": ["1", "3", "1", "2"]}
    with pytest.raises(ValueError, match="this one has .*max_iterations=1,3,1,2"):
        run(max_number_of_steps=3, **other)
