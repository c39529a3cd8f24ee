"""COCO annotation files: what real ones have, and what is wrong with others."""

import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from object_detection.data import coco
from object_detection.data.examples import resized_input
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


@pytest.mark.parametrize(
    "long_side, sizes",
    [
        (64, [(48, 64), (64, 43), (60, 60), (32, 64)]),
        (0, [(60, 80), (90, 60), (60, 60), (60, 120)]),  # the paper's rule
    ],
)
def test_sides(load, long_side, sizes):
    batches = load(short_side=60, long_side=long_side).evaluation_batches()
    found = [tuple(batch["size"][0].numpy().tolist()) for batch in batches]
    assert found == sizes


def test_no_side_is_larger_than_what_a_network_can_be_run_on():
    image, scale = resized_input(tf.zeros([8, 2000, 3], tf.uint8), 60, 0)
    assert image.shape == [33, 8192, 3]
    np.testing.assert_allclose(scale, [33 / 8, 8192 / 2000], rtol=1e-6)


@pytest.mark.parametrize(
    "change, message",
    [
        (set_row("annotations", 0, bbox="1234"), r"annotations\[0\] has bbox '1234'"),
        (
            set_row("annotations", 0, bbox=[1, 2, "3", 4]),
            "expected x, y, width, height",
        ),
        (set_row("annotations", 0, iscrowd="yes"), "has iscrowd 'yes'; expected 0, 1"),
        (set_row("annotations", 0, iscrowd=[]), r"has iscrowd \[\]"),
        (set_row("annotations", 0, area="big"), "has area 'big'"),
        (set_row("annotations", 0, image_id=[7]), r"has image_id \[7\]"),
        (set_row("annotations", 0, id=10**30), "has id 1000"),
        (set_row("annotations", 0, image_id="7"), "image_id '7', which is not in im"),
        (set_row("images", 0, file_name=None), r"images\[0\] has file_name null"),
        (set_row("images", 0, width="64"), r"images\[0\] has width '64'; expected an"),
        (set_row("images", 0, width=0), "has width 0; expected an integer >= 1"),
        (set_row("images", 0, height=float("inf")), "has height inf"),
        (set_row("categories", 0, name=["x"]), r"categories\[0\] has name \['x'\]"),
        (set_row("categories", 0, id=True), "has id True"),
        (lambda c: c["images"].append(None), r"images\[4\] is null, which has no 'id'"),
    ],
)
def test_fields_of_other_types(load, change, message):
    with pytest.raises(DataError, match=message) as error:
        load(change)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize("value", ["0", 0, False, None, "absent", 0.0])
def test_no_crowd(load, value):
    """A string of a zero is a zero, though not one to Python."""

    def change(content):
        for annotation in content["annotations"]:
            annotation["iscrowd"] = value
            if value == "absent":
                del annotation["iscrowd"]

    assert load(change).num_boxes == 5


@pytest.mark.parametrize("value", ["1", 1, True])
def test_crowds(load, value):
    assert load(set_row("annotations", 0, iscrowd=value)).num_boxes == 3


def test_areas_that_are_not_given(load):
    def change(content):
        content["annotations"][0]["area"] = None
        del content["annotations"][1]["area"]

    rows = load(change).ground_truth()["annotations"]
    assert [row["area"] for row in rows[:2]] == [20 * 16, 30 * 20]


def test_ids_of_any_kind(load):
    """Strings, zero and more than 32 bits tell images and categories apart."""

    def change(content):
        for image in content["images"]:
            image["id"] = f"photo {image['id']}"
        for annotation in content["annotations"]:
            annotation["image_id"] = f"photo {annotation['image_id']}"
            annotation["category_id"] = {3: 0, 90: 2**40}[annotation["category_id"]]
        for category in content["categories"]:
            category["id"] = {3: 0, 90: 2**40}[category["id"]]
        content["annotations"][0]["id"] = 0

    examples = load(change)
    assert [c["name"] for c in examples.categories] == ["plate", "cell"]
    numbers = [batch["id"][0].numpy() for batch in examples.evaluation_batches()]
    names = [examples.image_id(number) for number in numbers]
    assert names == ["photo 7", "photo 9", "photo 12", "photo 30"]
    assert examples.num_boxes == 4


@pytest.mark.parametrize("missing", [-1, None, "absent", -1.0])
def test_sizes_that_are_not_given_are_those_of_the_pictures(load, missing):
    expected = load().ground_truth()["images"]

    def change(content):
        for image in content["images"]:
            image.update(width=missing, height=missing)
            if missing == "absent":
                del image["width"]

    if missing == "absent":
        with pytest.raises(DataError, match="has height 'absent'"):
            load(change)
        return
    examples = load(change)
    assert examples.ground_truth()["images"] == expected
    assert examples.num_boxes == 4


def test_sizes_that_are_not_there(load):
    def change(content):
        for image in content["images"]:
            del image["width"], image["height"]

    assert load(change).num_boxes == 4


def test_another_size_than_that_of_the_picture(load):
    message = r"images\[1\] has width x height 60x40, but .*9\.png, upright, is 40x60"
    with pytest.raises(DataError, match=message):
        load(set_row("images", 1, width=60, height=40))
    with pytest.raises(DataError, match=r"images\[1\] has width x height 41x60"):
        load(set_row("images", 1, width=41, height=-1))


def turned_photograph(path, orientation):
    """Writes 64x48 pixels that EXIF data turn; returns them upright by PIL."""
    from PIL import ImageOps

    pixels = np.zeros([48, 64, 3], np.uint8)
    pixels[:24, :32] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif, quality=95)
    return np.asarray(ImageOps.exif_transpose(Image.open(path)))


@pytest.mark.parametrize("kind", ["jpg", "png"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_photographs_are_turned_upright(tmp_path, orientation, kind):
    upright = turned_photograph(tmp_path / f"a.{kind}", orientation)
    height, width = upright.shape[:2]
    top, left = (40, 10) if height > width else (20, 40)
    content = dict(
        images=[dict(id=1, file_name=f"a.{kind}", width=width, height=height)],
        annotations=[dict(id=1, image_id=1, category_id=1, bbox=[left, top, 20, 20])],
        categories=[dict(id=1, name="x")],
    )
    path = tmp_path / "x.json"
    path.write_text(json.dumps(content))
    examples = coco.load(str(path), str(tmp_path), short_side=48)
    assert list(examples.notes) == ["1 images, 1 boxes"]
    (batch,) = examples.evaluation_batches()
    assert batch["size"].numpy().tolist() == [[height, width]]
    np.testing.assert_array_equal(
        batch["boxes"][0, 0], [top, left, top + 20, left + 20]
    )
    shown = (batch["image"][0].numpy() + 1) * 127.5
    assert np.abs(shown - upright).mean() < 3
    # Without turning, the sizes are another picture's.
    content["images"][0].update(width=63)
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"a\.{kind}, upright, is {width}x{height}"):
        coco.load(str(path), str(tmp_path))


def test_a_picture_that_cannot_be_decoded_is_named(load, coco_dataset):
    """Its header is whole, its pixels are not, and its end is there."""
    _, folder, _ = coco_dataset
    content = (folder / "9.png").read_bytes()
    (folder / "9.png").write_bytes(content[:100] + bytes(50) + content[150:])
    examples = load()
    with pytest.raises(DataError, match="9.png: an image cannot be decoded") as error:
        with examples.explained_errors():
            list(examples.evaluation_batches())
    assert "\n" not in str(error.value)
    (folder / "9.png").write_text("no picture")
    with pytest.raises(DataError, match="9.png: cannot be read as JPEG or PNG image"):
        load()


def test_a_picture_that_goes_away_while_it_is_read(load, coco_dataset):
    _, folder, _ = coco_dataset
    examples = load()
    (folder / "9.png").unlink()
    with pytest.raises(DataError, match="9.png"), examples.explained_errors():
        list(examples.evaluation_batches())
    (folder / "9.png").mkdir()
    with pytest.raises(DataError, match="9.png"), examples.explained_errors():
        list(examples.evaluation_batches())
