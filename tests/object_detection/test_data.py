"""Generated scenes, and data sets of TensorFlow Datasets (by its mock data)."""

import numpy as np
import pytest

from object_detection.data import datasets, scenes
from object_detection.evaluation import average_precision
from sact_tf.data.examples import DataError


def test_scenes_are_deterministic_and_boxed():
    examples = scenes.load("train", 12, short_side=128)
    again = scenes.load("train", 8, short_side=128)
    other = scenes.load("validation", 8, short_side=128)
    counts = []
    for one, two, three in zip(
        *(e.evaluation_batches() for e in (examples, again, other))
    ):
        np.testing.assert_array_equal(one["image"], two["image"])
        np.testing.assert_array_equal(one["boxes"], two["boxes"])
        assert not np.array_equal(one["image"], three["image"])
        classes = one["classes"][0].numpy()
        counts.append(int((classes > 0).sum()))
        for box, label in zip(one["boxes"][0].numpy(), classes):
            if label > 0:
                ymin, xmin, ymax, xmax = box
                assert 0 <= ymin < ymax <= 128 and 0 <= xmin < xmax <= 128
                assert 1 <= label <= 10
    assert min(counts) >= 1 and max(counts) > 1


def test_scenes_objects_stand_out_in_their_boxes():
    """Colours are bright inside of boxes, and dull outside of all of them."""
    for batch in scenes.load("train", 4, short_side=128).evaluation_batches():
        image = batch["image"][0].numpy()
        saturation = image.max(-1) - image.min(-1)
        outside = np.ones([128, 128], bool)
        for ymin, xmin, ymax, xmax in batch["boxes"][0].numpy().astype(int):
            if ymin >= 0:
                assert saturation[ymin:ymax, xmin:xmax].max() > 1.1
                outside[ymin:ymax, xmin:xmax] = False
        assert np.percentile(saturation[outside], 99) < 1.0


def test_scenes_ground_truth_finds_itself():
    examples = scenes.load("validation", 5)
    truth = examples.ground_truth()
    results = [
        {key: a[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9}
        for a in truth["annotations"]
    ]
    assert average_precision(truth, results)["AP"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("test",), "split must be one of train, validation; got 'test'"),
        (("train", 2, 20), "image_size must be at least 32; got 20"),
    ],
)
def test_scenes_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        scenes.load(*arguments)


def make_builder(is_coco, directory):
    """Prepares three images as COCO or VOC of TensorFlow Datasets have them."""
    import tensorflow_datasets as tfds

    ignored = "is_crowd" if is_coco else "is_difficult"
    objects = {
        "bbox": tfds.features.BBoxFeature(),
        "label": tfds.features.ClassLabel(names=["cat", "dog"]),
        ignored: tfds.features.Tensor(shape=(), dtype=np.bool_),
    }
    features = {
        "image": tfds.features.Image(encoding_format="jpeg"),
        "image/filename": tfds.features.Text(),
        "objects": tfds.features.Sequence(objects),
    }
    if is_coco:
        features["image/id"] = tfds.features.Tensor(shape=(), dtype=np.int64)

    class Tiny(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        name = "tiny_coco" if is_coco else "tiny_voc"
        __module__ = "__main__"  # whose files the base class does not look for

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for k in range(3):
                rows = [
                    {
                        "bbox": tfds.features.BBox(0.25, 0.1, 0.75, 0.6),
                        "label": "dog",
                        ignored: ignore,
                    }
                    for ignore in [False, True][: k + 1]
                ]
                example = {
                    "image": np.full([20, 40, 3], 60 * k, np.uint8),
                    "image/filename": f"{k + 11:06d}.jpg",
                    "objects": rows,
                }
                if is_coco:
                    example["image/id"] = k + 11
                yield k, example

    builder = Tiny(data_dir=str(directory))
    builder.download_and_prepare()
    return builder


@pytest.mark.parametrize("name", ["coco/2017", "voc/2007"])
def test_tensorflow_datasets(name, tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    builder = make_builder(name.startswith("coco"), tmp_path)
    monkeypatch.setattr(tfds, "builder", lambda *args, **kwargs: builder)
    examples = datasets.load(name, "train", str(tmp_path), short_side=40)
    assert [c["name"] for c in examples.categories] == ["cat", "dog"]
    assert examples.num_examples == 3
    batches = {int(b["id"][0]): b for b in examples.evaluation_batches()}
    assert sorted(batches) == [11, 12, 13]
    for batch in batches.values():  # ignored ones are not learned from
        assert batch["classes"].shape == [1, 128]
        assert batch["classes"][0, :2].numpy().tolist() == [2, -1]
        np.testing.assert_allclose(batch["boxes"][0, 0], [10, 8, 30, 48], rtol=1e-5)
    truth = examples.ground_truth()
    assert {i["id"] for i in truth["images"]} == {11, 12, 13}
    assert {(i["width"], i["height"]) for i in truth["images"]} == {(40, 20)}
    assert sorted(a["iscrowd"] for a in truth["annotations"]) == [0, 0, 0, 1, 1]
    np.testing.assert_allclose(truth["annotations"][0]["bbox"], [4, 5, 20, 10])
    metrics = average_precision(
        truth,
        [dict(image_id=11, category_id=2, bbox=[4, 5, 20, 10], score=1.0)],
    )
    assert metrics["AR_100"] == pytest.approx(1 / 3)
    with pytest.raises(DataError, match="could not provide .*'nosuch'"):
        datasets.load(name, "nosuch", str(tmp_path))


def test_tensorflow_datasets_that_cannot_download(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def fail(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(tfds, "builder", fail)
    with pytest.raises(DataError, match="could not provide voc/2007.*no network"):
        datasets.load("voc/2007", "train", str(tmp_path))
