"""Image files: turned by EXIF data, with a tail, too large, damaged."""

import io
import zlib

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import tensorflow as tf

from sact_tf.data import images
from sact_tf.data.examples import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, [6, 10, 3]).astype(np.uint8)
PIXELS = PIXELS.repeat(8, 0).repeat(8, 1)


def encode(kind="JPEG", **options):
    file = io.BytesIO()
    PIL.Image.fromarray(PIXELS).save(file, kind, **options)
    return file.getvalue()


def exif(orientation, endian="<"):
    """EXIF data of several tags."""
    data = PIL.Image.Exif()
    data.endian = endian
    data[0x010F] = "a camera maker"
    data[0x0112] = orientation
    data[0x0132] = "2020:01:01 00:00:00"
    return data.tobytes()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("how", range(10))
def test_upright_as_by_pillow(tmp_path, kind, endian, how):
    encoded = encode(kind, exif=exif(how, endian))
    expected = PIL.Image.open(io.BytesIO(encoded))
    expected = np.asarray(PIL.ImageOps.exif_transpose(expected), np.int32)
    got = images.decode_image(encoded, "x").numpy().astype(np.int32)
    assert got.shape == expected.shape
    assert np.abs(got - expected).mean() < 2  # two decoders of JPEG
    flat = images.decode_image(encoded, "x", upright=False)
    assert flat.shape == PIXELS.shape
    path = tmp_path / "x"
    path.write_bytes(encoded)
    assert images.image_size(path) == expected.shape[:2]
    assert images.encoded_size(encoded) == expected.shape[:2]
    np.testing.assert_array_equal(images.read_image(str(path)), got)


def test_exif_data_that_are_damaged():
    """Whatever they hold, the image is read, in a graph too."""
    decode = tf.function(
        lambda encoded: images.decode_image(encoded, "x"),
        input_signature=[tf.TensorSpec([], tf.string)],
    )
    whole = exif(6)
    rng = np.random.default_rng(0)
    shapes = set()
    for k in range(60):
        data = np.frombuffer(whole, np.uint8).copy()
        data[rng.integers(6, len(data), 3)] = rng.integers(0, 256, 3)
        data = data.tobytes()[: None if k % 2 else rng.integers(7, len(data))]
        shapes.add(tuple(decode(encode(exif=data)).shape))
    assert shapes == {(48, 80, 3), (80, 48, 3)}


def test_a_segment_of_another_name_says_nothing():
    comment = b"Exif\x00\x00" + exif(6)[6:]
    encoded = encode(comment=comment)
    assert int(images.orientation(encoded)) == 1
    assert int(images.orientation(encode(comment=comment, exif=exif(8)))) == 8


def test_a_film_behind_the_photograph(tmp_path):
    path = tmp_path / "motion.jpg"
    encoded = encode(quality=95)
    tail = np.random.default_rng(0).integers(0, 255, [100000]).astype(np.uint8)
    path.write_bytes(encoded + tail.tobytes())
    np.testing.assert_array_equal(
        images.read_image(str(path)), tf.io.decode_jpeg(encoded, channels=3)
    )
    path.write_bytes(encoded[:-200] + bytes(5000))
    with pytest.raises(DataError, match=r"motion\.jpg: is cut off"):
        images.read_image(str(path))
    path.write_bytes(encode(exif=exif(1) + encode())[:1500])  # a thumbnail has an end
    with pytest.raises(DataError, match=r"motion\.jpg: cannot be read as JPEG or PNG"):
        images.read_image(str(path))


def bomb(side):
    """A PNG file of few bytes that claims side x side pixels."""

    def chunk(kind, content):
        check = zlib.crc32(kind + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + kind + content + check

    header = side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(9999)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def test_bombs(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb(60000))
    with pytest.raises(DataError, match=r"bomb\.png: cannot be read as JPEG or PNG"):
        images.read_image(str(path))
    with pytest.raises(DataError, match=r"bomb\.png: is too large an image"):
        images.image_size(path)


def test_not_finite():
    images.require_finite(PIXELS, "x")
    images.require_finite(tf.zeros([2, 2]), "x")
    for value in (np.nan, np.inf, -np.inf):
        values = np.zeros([4, 5, 3], np.float32)
        values[1, 2, 0] = value
        with pytest.raises(DataError, match="x: 1 of 60 values are NaN or infinite"):
            images.require_finite(values, "x")
    with pytest.raises(DataError, match="x: 2 of 2 values"):
        images.require_finite(tf.constant([np.nan, np.inf], tf.bfloat16), "x")
