"""HDF5 files of what networks spend on images."""

import h5py
import numpy as np
import pytest
from absl import flags

import sact_tf


@pytest.fixture
def checkpoint(tmp_path):
    def save(model_type):
        model = sact_tf.imagenet_resnet("1_1_2_1", model_type, 3, base_channels=2)
        return sact_tf.save_slim_checkpoint(model, str(tmp_path / "model.ckpt-7"))

    return save


def test_original_defaults(program):
    expected = dict(
        num_examples=1000,
        batch_size=32,
        split_name="validation",
        model="101",
        model_type="vanilla",
        checkpoint_dir="",
        export_path="",
        dataset_dir=None,
    )
    assert {name: flags.FLAGS[name].default for name in expected} == expected


@pytest.mark.parametrize("model_type", ["act", "sact"])
def test_exports(run_imagenet, checkpoint, tmp_path, model_type):
    path = tmp_path / "new" / "maps.hdf5"
    run_imagenet(
        model_type=model_type,
        checkpoint_dir=checkpoint(model_type),
        export_path=str(path),
        num_examples=7,
    )
    with h5py.File(path) as file:
        blocks = [f"block{b}" for b in range(1, 5)]
        assert list(file.attrs["block_scopes"]) == blocks
        assert file["images"].shape == (7, 32, 32, 3)
        assert file["images"].dtype == np.float32
        assert file["images"].compression == "lzf"
        model = sact_tf.imagenet_resnet("1_1_2_1", model_type, 3, base_channels=2)
        sact_tf.load_slim_checkpoint(model, str(tmp_path / "model.ckpt-7"))
        _, end_points = model.with_end_points(file["images"][:], training=False)
        np.testing.assert_array_equal(file["flops"], end_points["flops"])
        for key in ("num_units", "ponder_cost", "halting_distribution"):
            np.testing.assert_allclose(
                file[f"block3/{key}"], end_points[f"block3/{key}"], atol=1e-4
            )
        # The stem halves twice, the first unit of block 3 did so twice more.
        sides = (2, 2) if model_type == "sact" else ()
        assert file["block3/num_units"].shape == (7, *sides)
        assert file["block3/halting_distribution"].shape == (7, *sides, 2)
        np.testing.assert_allclose(file["block3/halting_distribution"][:].sum(-1), 1)
        assert ("ponder_cost_map" in file) == (model_type == "sact")
        if model_type == "sact":
            total = sum(file[f"{b}/ponder_cost"][:].mean((1, 2)) for b in blocks)
            maps = file["ponder_cost_map"][:]
            assert maps.shape == (7, 32, 32, 1)
            np.testing.assert_allclose(maps.mean((1, 2, 3)), total, rtol=1e-4)


def test_errors_name_the_flag(run_imagenet, checkpoint, tmp_path):
    path = tmp_path / "maps.hdf5"
    options = dict(checkpoint_dir=checkpoint("sact"), export_path=str(path))
    with pytest.raises(ValueError, match="--model_type=vanilla: must be adaptive"):
        run_imagenet(**options)
    with pytest.raises(ValueError, match="--export_path: must be given"):
        run_imagenet(**{**options, "export_path": ""})
    path.write_bytes(b"precious")
    with pytest.raises(ValueError, match="--export_path=.*maps.hdf5: exists"):
        run_imagenet(model_type="sact", **options)
    assert path.read_bytes() == b"precious"


@pytest.mark.long
def test_a_full_disk_leaves_nothing(
    run_imagenet, checkpoint, tmp_path, no_file_larger_than
):
    """The HDF5 library alone would end the process."""
    path = tmp_path / "new" / "maps.hdf5"
    options = dict(checkpoint_dir=checkpoint("sact"), export_path=str(path))
    with no_file_larger_than(20000):
        with pytest.raises(OSError, match=r"maps\.hdf5: cannot be written \(File too"):
            run_imagenet(model_type="sact", **options)
    assert not list(path.parent.iterdir())
    run_imagenet(model_type="sact", **options)
    assert [entry.name for entry in path.parent.iterdir()] == ["maps.hdf5"]
