"""The saliency program on a small data set and a small network."""

import json
import os

import matplotlib.image
import numpy as np
import pytest
import tensorflow as tf
from absl.testing import flagsaver
from PIL import Image

import sact_tf
from object_detection.feature_extractor import load_features
from sact_tf import visualization
from sact_tf.saliency import ponder

NAMES = [f"{k}" for k in range(6)]


@pytest.fixture
def data_dir(tmp_path):
    """Six images, each looked at by two people around a place of its own."""
    rng = np.random.default_rng(0)
    (tmp_path / "data" / "images").mkdir(parents=True)
    places = rng.uniform([15, 15], [65, 45], [6, 2])
    for name in NAMES:
        pixels = rng.integers(0, 256, [30, 40, 3]).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data" / "images" / f"{name}.png")
    xy = np.repeat(places, 20, axis=0) + rng.normal(0, 4, [120, 2])
    xy[0] = [-1, 5]
    np.savez(
        tmp_path / "data" / "fixations.npz",
        image=[f"{name}.png" for name in NAMES],
        xy=xy,
        offset=np.arange(0, 121, 20),
        original_size=[80, 60],
        subject=np.tile([0, 1], 60),
    )
    rows, columns = np.mgrid[:30, :40] * 2.0
    np.savez(
        tmp_path / "true.npz",
        **{
            name: np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 32)
            for name, (x, y) in zip(NAMES, places)
        },
    )
    return tmp_path / "data"


@pytest.fixture
def run(program, data_dir, tmp_path):
    defaults = dict(
        dataset_format="npz",
        dataset_dir=str(data_dir),
        model="1_1_2_1",
        num_classes=3,
        base_channels=2,
        image_size="40",
        sigmas=["0", "2"],
        gammas=["0", "0.1", "1"],
        num_figures=2,
        output_dir=str(tmp_path / "out"),
    )

    def run(**values):
        with flagsaver.flagsaver(**{**defaults, **values}):
            program.main()
        with open(tmp_path / "out" / "results.json") as file:
            return json.load(file)

    return run


def save_model(tmp_path):
    model = sact_tf.imagenet_resnet("1_1_2_1", "sact", 3, base_channels=2)
    return sact_tf.save_slim_checkpoint(model, str(tmp_path / "model.ckpt"))


def test_a_checkpoint_from_end_to_end(run, tmp_path, capsys):
    checkpoint = save_model(tmp_path)
    results = run(checkpoint_dir=checkpoint)
    printed = capsys.readouterr().out
    assert "3 images to choose sigma and gamma, 3 to score" in printed
    assert "Dropped 1 fixations outside of their images" in printed
    assert results["num_images"] == {"tune": 3, "validate": 3}
    assert results["num_fixations_outside"] == 1
    assert list(results["scores"])[0] == "centre only"
    assert list(results["scores"])[-1] == "humans, one against the rest"
    grid = np.array(results["grid"]["auc_judd"])
    assert grid.shape == (2, 3)
    model = results["scores"][
        f"ponder cost, sigma {results['sigma']:g}, gamma {results['gamma']:g}"
    ]
    assert model["tune"]["nss"] != results["scores"]["centre only"]["tune"]["nss"]
    # The search and the scores are two programs for one number.
    assert model["tune"]["auc_judd"] == pytest.approx(grid.max(), abs=1e-6)
    for row in results["scores"].values():
        assert f"{row['validate']['auc_judd']:.4f}" in printed
    picture = matplotlib.image.imread(tmp_path / "out" / "figure.png")
    assert picture.shape[0] > 200 and picture.std() > 0.05

    again = run(checkpoint_dir=checkpoint)
    assert "Taking ponder cost from" in capsys.readouterr().out
    assert again == results
    run(checkpoint_dir=checkpoint, image_size="48x36")
    assert "Taking" not in capsys.readouterr().out
    (values, *_) = ponder.load_maps(str(tmp_path / "out" / "maps.npz"), NAMES).values()
    assert values.shape == (36, 48)


def test_a_detector(run, tiny_detector, tmp_path):
    """Its ponder cost is that of blocks 1 to 3, on images of any size."""
    prefix, flags = tiny_detector
    options = {name: flags[name] for name in ("model", "base_channels")}
    run(checkpoint_dir=os.path.dirname(prefix), image_size="50x38", **options)
    found = ponder.load_maps(str(tmp_path / "out" / "maps.npz"), NAMES)["0"]
    network = sact_tf.imagenet_resnet("1_2_1_1", "sact", 2, base_channels=2)
    features = load_features(network, prefix)
    pixels = np.asarray(Image.open(tmp_path / "data" / "images" / "0.png"))
    inputs = ponder.network_input(features, pixels, (38, 50))
    _, end_points = features(inputs, tf.constant([[38, 50]]))
    assert end_points["block_scopes"] == ["block1", "block2", "block3"]
    expected = visualization.sact_map(end_points)[0, ..., 0]
    assert found.shape == (38, 50) and len(np.unique(found)) > 1
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_detector_is_around_an_imagenet_network(refusal, tiny_detector, data_dir):
    prefix, _ = tiny_detector
    data = dict(dataset_format="npz", dataset_dir=str(data_dir))
    options = dict(network="cifar", model="1_1_1", output_dir=str(data_dir / "out"))
    message = refusal(checkpoint_dir=prefix, **data, **options)
    assert message == (
        f"--checkpoint_dir={prefix}: is a detector's, which needs --network=imagenet"
    )


def test_true_maps_beat_the_centre(run, tmp_path):
    scores = run(maps=str(tmp_path / "true.npz"))["scores"]
    centre, *_, best, humans = (row["validate"] for row in scores.values())
    assert best["auc_judd"] > max(0.9, centre["auc_judd"] + 0.05)
    assert best["nss"] > centre["nss"] and best["kl"] < centre["kl"]
    assert humans["auc_judd"] > centre["auc_judd"]


def test_random_networks_depend_on_the_seed(run, tmp_path):
    maps = str(tmp_path / "out" / "maps.npz")
    made = []
    for seed in (0, 1, 0):
        run(random_network=True, seed=seed, jitter=False)
        made.append(ponder.load_maps(maps, NAMES)["0"])
    np.testing.assert_array_equal(made[0], made[2])
    assert (made[0] != made[1]).any()


def test_a_cifar_network(run):
    results = run(
        network="cifar",
        model="1_1_1",
        random_network=True,
        gammas=["0.1"],
        human_sigma=3,
    )
    assert len(results["scores"]) == 3  # no row without the centre


@pytest.mark.parametrize(
    "values, message",
    [
        (dict(dataset_dir=""), "--dataset_dir: must be given"),
        (dict(dataset_dir="/nowhere"), "--dataset_dir=/nowhere: .*does not exist"),
        (dict(dataset_format="cat2000"), "--dataset_dir=.*has no directory Stimuli"),
        (dict(output_dir=""), "--output_dir: must be given"),
        (dict(image_size="3x"), "--image_size=3x: must be WIDTHxHEIGHT"),
        (dict(image_size="320x16"), "--image_size=320x16: must be .* at least 32"),
        (dict(sigmas=["1", "x"]), "--sigmas=1,x: must be numbers >= 0"),
        (dict(gammas=["-1"]), "--gammas=-1: must be numbers >= 0"),
        (dict(gammas=["nan"]), "--gammas=nan: must be numbers >= 0.*each a finite"),
        (dict(sigmas=["1e9"]), "--sigmas=1e9: must be .*each a finite .* 0 to 10000"),
        (dict(sigmas=["2", "inf"]), "--sigmas=2,inf: must be numbers >= 0"),
        (dict(image_size="99999x320"), "--image_size=99999x320: must be .* most 8192"),
        ({}, "--checkpoint_dir: must be given"),
        (dict(checkpoint_dir="/nowhere"), "/nowhere"),
        (
            dict(checkpoint_dir="x", random_network=True),
            "--checkpoint_dir=x: cannot go with --random_network",
        ),
        (dict(maps="x", random_network=True), "--maps=x: cannot go with"),
        (dict(maps="/nowhere"), "--maps=/nowhere: /nowhere: does not exist"),
    ],
)
def test_errors_name_the_flag(run, values, message):
    with pytest.raises((ValueError, OSError), match=message):
        run(**values)


def test_images_of_another_aspect_are_named(run, data_dir):
    Image.new("RGB", (40, 40)).save(data_dir / "images" / "3.png")
    with pytest.raises(ValueError, match=r"--dataset_dir=.*3\.png: is 40x40, which"):
        run(random_network=True)


def test_maps_of_another_aspect_are_named(run, tmp_path):
    np.savez(tmp_path / "m.npz", **{name: np.eye(9) for name in NAMES})
    with pytest.raises(ValueError, match="^map of 0: is 9x9, which is no scaled"):
        run(maps=str(tmp_path / "m.npz"))


def test_constant_maps_are_counted(run, tmp_path, capsys):
    np.savez(tmp_path / "m.npz", **{name: np.ones([6, 8]) for name in NAMES})
    results = run(maps=str(tmp_path / "m.npz"), jitter=False)
    assert "6 maps are constant" in capsys.readouterr().out
    assert results["num_constant_maps"] == 6
    assert results["gamma"] > 0 and results["grid"]["auc_judd"][0][0] == 0.5


@pytest.mark.parametrize("value", [float("nan"), 1e9])
def test_human_sigmas_that_cannot_be(refusal, data_dir, tmp_path, value):
    message = refusal(
        dataset_dir=str(data_dir), output_dir=str(tmp_path / "o"), human_sigma=value
    )
    assert message == f"--human_sigma={value}: must be a finite number from 0 to 10000"
    assert not (tmp_path / "o").exists()


def test_maps_that_are_not_finite_are_named(run, tmp_path):
    maps = {name: np.eye(9) for name in NAMES}
    maps[NAMES[1]] = np.full([6, 8], np.nan)
    np.savez(tmp_path / "m.npz", **maps)
    with pytest.raises(
        ValueError, match=r"--maps=.*m\.npz: 1: 48 of 48 values are NaN"
    ):
        run(maps=str(tmp_path / "m.npz"))
