"""The program of perforation."""

import json

import pytest
import tensorflow as tf
import tf_keras as keras
from absl.testing import flagsaver

from sact_tf.data import shapes
from sact_tf.perforation import surgery

layers = keras.layers


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    keras.utils.set_random_seed(0)
    inputs = keras.Input([16, 16, 3])
    x = layers.Conv2D(4, 3, activation="relu", padding="same", name="one")(inputs)
    x = layers.MaxPooling2D(2)(x)
    x = layers.Conv2D(10, 3, padding="same", name="two")(x)
    path = str(tmp_path_factory.mktemp("dense") / "dense.keras")
    keras.Model(inputs, layers.GlobalAveragePooling2D()(x)).save(path)
    return path


@pytest.fixture
def run(program, dense, tmp_path, monkeypatch):
    monkeypatch.setitem(shapes.SPLIT_SIZES, "train", 32)
    monkeypatch.setitem(shapes.SPLIT_SIZES, "test", 16)

    def run(**values):
        defaults = dict(
            saved_model=dense,
            output_dir=str(tmp_path / "out"),
            dataset="shapes",
            image_size=16,
            batch_size=8,
            num_selection_images=8,
            num_recheck_images=16,
            num_impact_images=8,
            repetitions=1,
            redraws=1,
            export=False,
        )
        with flagsaver.flagsaver(**{**defaults, **values}):
            program.main()
        path = tmp_path / "out" / "results.json"
        return json.loads(path.read_text()) if path.exists() else None

    return run


@pytest.mark.long
def test_search_finetune_and_export(run, tmp_path, capsys):
    results = run(target_speedup=1.3, cost="multiplies", finetune_steps=3, export=True)
    assert results["multiplies_speedup"] >= 1.3 > 1
    assert results["multiplies_speedup"] == (
        results["dense_multiplies"] / results["multiplies"]
    )
    assert set(results["seconds"]) == {"dense", "native", "tensorflow", "explicit"}
    assert results["speedup"] == (
        results["seconds"]["dense"] / results["seconds"]["native"]
    )
    assert {"dense_error", "error_before", "error_after"} < set(results)
    out = tmp_path / "out"
    model = keras.models.load_model(str(out / "model.keras"), compile=False)
    assert surgery.realised(model) == results["kept"]
    assert len(json.loads((out / "search.json").read_text())["steps"]) >= 1
    serve = tf.saved_model.load(str(out / "saved_model_tensorflow"))
    assert "serving_default" in serve.signatures
    printed = capsys.readouterr().out
    assert "Trained" not in printed and "Error: dense" in printed
    again = run(target_speedup=1.3, cost="multiplies", finetune_steps=3)
    assert again["error_after"] == results["error_after"]  # went on, and was done
    run(mode="report", results=[str(out)])
    row = capsys.readouterr().out.splitlines()[-1]
    assert row.startswith("| search | ")


def test_finetune_in_bfloat16(run, dense, tmp_path):
    run(method="uniform", keep_fraction="0.5", repetitions=0)
    before = keras.models.load_model(str(tmp_path / "out/model.keras"), compile=False)
    results = run(
        method="uniform",
        keep_fraction="0.5",
        repetitions=0,
        finetune_steps=2,
        mixed_precision="bfloat16",
    )
    assert 0 <= results["error_after"] <= 1
    model = keras.models.load_model(str(tmp_path / "out/model.keras"), compile=False)
    assert {layer.compute_dtype for layer in model.layers} == {"float32"}
    for layer in ("one", "two"):
        old, new = before.get_layer(layer), model.get_layer(layer)
        tf.debugging.assert_equal(old.kept, new.kept)
        tf.debugging.assert_equal(old.nearest, new.nearest)
        assert 0 < tf.reduce_max(tf.abs(old.kernel - new.kernel)) < 0.1


@pytest.mark.parametrize(
    "method, options",
    [
        ("uniform", dict(target_speedup=2.0)),
        ("search", dict(keep_fraction="two=0.3", mask=["impact"])),
        ("stride", dict(layers=["one"])),
        ("input", dict(input_scale=0.5)),
    ],
)
def test_other_methods(run, method, options):
    results = run(method=method, **options)
    assert results["method"] == method and results["multiplies_speedup"] > 1.1
    assert "error_after" not in results
    if method == "search":
        assert list(results["kept"]) == ["two"]


@pytest.mark.long
def test_time_without_data(run):
    results = run(
        saved_model="",
        model="nin",
        dataset="none",
        num_classes=3,
        method="uniform",
        keep_fraction="0.3",
        batch_size=1,
    )
    assert "dense_error" not in results and len(results["kept"]) == 3


@pytest.mark.long
def test_curves(run, tmp_path):
    pytest.importorskip("matplotlib")
    run(
        mode="curves",
        num_eval_images=8,
        mask=["grid", "impact"],
        levels=["0.5", "0.25"],
    )
    rows = json.loads((tmp_path / "out" / "curves.json").read_text())["rows"]
    assert [(r["layer"], r["mask"]) for r in rows[::2]] == [
        *(("one", "grid"), ("one", "impact"), ("two", "grid"), ("two", "impact"))
    ]
    assert all(r["multiplies_speedup"] > 1 and 0 <= r["error"] <= 1 for r in rows)
    assert (tmp_path / "out" / "curves.png").stat().st_size > 1000


@pytest.mark.long
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_train(run, tmp_path, precision):
    log_dir = str(tmp_path / "log")
    run(
        mode="train",
        model="nin",
        train_steps=1,
        train_log_dir=log_dir,
        mixed_precision=precision,
    )
    model = keras.models.load_model(f"{log_dir}/model.keras", compile=False)
    assert model.output_shape == (None, 10)
    assert {layer.compute_dtype for layer in model.layers} == {"float32"}
    assert keras.mixed_precision.global_policy().name == "float32"


@pytest.mark.parametrize(
    "values, message",
    [
        (dict(mask=["chess"]), "--mask=chess: must be of uniform, grid"),
        (dict(method="uniform"), "--target_speedup: must be given with uniform"),
        (dict(keep_fraction="a=b"), "--keep_fraction=a=b: must be a number, or LAYER="),
        (dict(keep_fraction="0"), "keep_fraction must be a finite number > 0"),
        (dict(keep_fraction="six=0.1"), "keep_fraction names 'six'; expected some of"),
        (dict(keep_fraction="0.5", mask=["grid", "uniform"]), "only a search and curv"),
        (dict(method="stride"), "layers must be some of one, two; got none"),
        (dict(dataset="none"), "--dataset=none: --method=search needs images"),
        (dict(output_dir=""), "--output_dir: must be given"),
        (dict(saved_model="/none/a.keras"), "/none/a.keras: does not exist"),
        (dict(mode="curves", levels=["2"]), "--levels=2: a level must be"),
        (dict(mode="report"), "--results: must be given"),
        (dict(mode="report", results=["/none"]), "--results=/none: .*No such file"),
        (dict(image_size=18), "--image_size=18: the model takes images of shape"),
    ],
)
def test_refused(run, values, message):
    with pytest.raises((ValueError, OSError), match=message):
        run(**values)
