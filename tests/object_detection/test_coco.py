"""COCO annotation files: what real ones have, and what is wrong with others."""

import json

import numpy as np
import pytest

from object_detection.data import coco
from sact_tf.data.examples import DataError


@pytest.fixture
def load(coco_dataset):
    """Returns a function that changes the annotations and loads the data set."""
    path, folder, content = coco_dataset

    def load(change=lambda content: None, **options):
        change(content)
        path.write_text(json.dumps(content))
        return coco.load(str(path), str(folder), **{"short_side": 40, **options})

    return load


def test_what_real_files_have(load):
    examples = load()
    assert [c["name"] for c in examples.categories] == ["plate", "cell"]  # by id
    assert examples.num_classes == 2 and examples.num_examples == 4
    assert examples.max_boxes == 2 and examples.num_boxes == 4
    assert list(examples.notes) == [
        "4 images, 4 boxes",
        "1 images without boxes",
        "1 boxes outside of their image left out",
        "1 boxes without area left out",
        "1 boxes clipped to their image",
        "1 crowds left out",
    ]
    batches = list(examples.evaluation_batches())
    assert [int(b["id"][0]) for b in batches] == [7, 9, 12, 30]
    first = batches[0]
    scale = 40 / 48
    assert first["size"].numpy().tolist() == [[40, 53]]
    np.testing.assert_allclose(first["scale"], [[scale, 53 / 64]])
    boxes = np.array([[8, 10, 24, 30], [40, 50, 48, 64]])
    boxes = boxes * np.tile([scale, 53 / 64], 2)
    np.testing.assert_allclose(first["boxes"][0], boxes, rtol=1e-5)
    assert first["classes"].numpy().tolist() == [[1, 2]]
    assert batches[2]["classes"].numpy().tolist() == [[-1, -1]]
    assert np.all(batches[2]["boxes"] == -1)


def test_training_batches_are_padded_and_flipped(load):
    examples = load(flip_vertically=True, cache=True)
    flips = set()
    for _, batch in zip(range(20), examples.training_batches(2, seed=1)):
        assert batch["image"].shape[0] == 2
        for k in range(2):
            height, width = batch["size"][k].numpy()
            image = batch["image"][k].numpy()
            assert not image[height:].any() and not image[:, width:].any()
            boxes = batch["boxes"][k].numpy()[batch["classes"][k].numpy() > 0]
            assert (boxes >= -1e-3).all()
            assert (boxes[:, 2:] <= np.array([height, width]) + 1e-3).all()
            if int(batch["id"][k]) == 30:
                flips.add(tuple(np.round(boxes[0]).astype(int)))
    # An object 10 rows from the top of 40, 30 columns from the left of 80, 24 x 24.
    assert flips == {
        (10, 30, 34, 54),
        (6, 30, 30, 54),
        (10, 26, 34, 50),
        (6, 26, 30, 50),
    }


def test_the_object_is_where_its_box_is(load):
    """A flipped image shows the same pixels in the flipped box."""
    examples = load(short_side=40)
    crops = {}
    for batch in examples.evaluation_batches():
        crops[int(batch["id"][0])] = _crop(batch, 0)
    for _, batch in zip(range(6), examples.training_batches(2, seed=3)):
        for k, image_id in enumerate(batch["id"].numpy()):
            if image_id in (30,):
                crop = _crop(batch, k)
                same = np.allclose(crop, crops[30], atol=0.02)
                assert same or np.allclose(crop[:, ::-1], crops[30], atol=0.02)


def _crop(batch, k):
    ymin, xmin, ymax, xmax = np.round(batch["boxes"][k, 0].numpy()).astype(int)
    return batch["image"][k].numpy()[max(ymin, 0) : ymax, max(xmin, 0) : xmax]


@pytest.mark.parametrize(
    "size, expected",
    [
        ((10, 10), (600, 600)),
        ((10, 8000), (1, 1024)),
        ((8000, 8000), (600, 600)),
        ((480, 640), (600, 800)),
        ((300, 900), (341, 1024)),
    ],
)
def test_tiny_and_huge_images(size, expected):
    import tensorflow as tf

    from object_detection.data.examples import resize

    example = {
        "image": tf.zeros([*size, 3], tf.uint8),
        "boxes": tf.constant([[0.0, 0.0, *map(float, size)]]),
    }
    result = resize(example, 600, 1024)
    assert tuple(result["image"].shape[:2]) == expected
    np.testing.assert_allclose(result["boxes"], [[0, 0, *expected]], rtol=1e-5)


def set_row(key, k, **values):
    return lambda content: content[key][k].update(values)


def remove(key):
    return lambda content: content.pop(key)


@pytest.mark.parametrize(
    "change, message",
    [
        (remove("images"), "is no COCO annotation file: no list 'images'"),
        (remove("categories"), "no list 'categories'"),
        (lambda c: c.update(annotations={}), "no list 'annotations'"),
        (lambda c: c["annotations"][1].pop("bbox"), r"annotations\[1\] has no 'bbox'"),
        (lambda c: c["images"].clear(), "the split has no images"),
        (lambda c: c["categories"].clear(), "has no categories"),
        (set_row("images", 1, id=7), "1 ids of images are used more than once.* 7"),
        (set_row("categories", 1, id=90), "ids of categories .* 90"),
        (set_row("annotations", 1, id=1), "ids of annotations .* 1$"),
        (
            set_row("annotations", 2, category_id=5),
            r"annotations\[2\] has category_id 5",
        ),
        (set_row("annotations", 0, image_id=8), r"annotations\[0\] has image_id 8"),
        (set_row("annotations", 0, bbox=[1, 2, 3]), r"annotations\[0\] has bbox"),
        (set_row("annotations", 0, bbox=[1, 2, float("nan"), 3]), "has bbox"),
    ],
)
def test_files_that_are_not_right(load, change, message):
    with pytest.raises(DataError, match=message):
        load(change)


def test_no_json_and_no_object(coco_dataset):
    path, folder, _ = coco_dataset
    path.write_text("{cut off")
    with pytest.raises(DataError, match="instances.json: is no JSON file"):
        coco.load(str(path), str(folder))
    path.write_text("[1, 2]")
    with pytest.raises(DataError, match="no JSON object"):
        coco.load(str(path), str(folder))


def test_missing_files(load, coco_dataset):
    path, folder, _ = coco_dataset
    (folder / "12.png").unlink()
    with pytest.raises(FileNotFoundError, match="1 of 4 images .* such as .*12.png"):
        load()
    with pytest.raises(FileNotFoundError, match="image directory /nowhere does not"):
        coco.load(str(path), "/nowhere")


def test_an_image_cut_off(load, coco_dataset):
    _, folder, _ = coco_dataset
    content = (folder / "9.png").read_bytes()
    (folder / "9.png").write_bytes(content[: len(content) // 2])
    examples = load()
    with pytest.raises(DataError, match="9.png"), examples.explained_errors():
        list(examples.evaluation_batches())


def test_all_boxes_are_crowds(load):
    def make_crowds(content):
        for annotation in content["annotations"]:
            annotation["iscrowd"] = 1

    examples = load(make_crowds)
    assert examples.num_boxes == 0 and "7 crowds left out" in examples.notes
    assert np.all(next(iter(examples.evaluation_batches()))["classes"] == -1)


def test_first(load):
    examples = load().first(2)
    assert examples.num_examples == 2
    assert [int(b["id"][0]) for b in examples.evaluation_batches()] == [7, 9]
    truth = examples.ground_truth()
    assert [image["id"] for image in truth["images"]] == [7, 9]
    assert {a["image_id"] for a in truth["annotations"]} == {7, 9}


def test_sides_in_the_wrong_order(load):
    with pytest.raises(ValueError, match="short_side must be between 1 and long_side"):
        load(short_side=700, long_side=600)
