"""The program that compares bfloat16 with float32."""

import json
import pathlib

import numpy as np
import pytest
from absl.testing import flagsaver

from sact_tf.data.examples import DataError

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "imagenet_101_bc4_sact"


@pytest.mark.long
def test_of_a_golden_network(program, capsys):
    values = dict(network="imagenet", model="3_4_23_3", base_channels=4)
    values.update(num_classes=11, model_type="sact", json=True)
    values["checkpoint_dir"] = str(GOLDEN / "ckpt")
    values["images"] = str(GOLDEN / "golden_64x64.npz")
    with flagsaver.flagsaver(**values):
        program.main()
    lines = capsys.readouterr().out.splitlines()
    exact, half = (json.loads(line) for line in lines if line.startswith("{"))
    assert exact["precision"] == "float32" and half["precision"] == "bfloat16"
    assert exact["largest_difference"] < 1e-4 < half["largest_difference"] < 0.1
    assert exact["other_class"] == 0
    for block in range(1, 5):
        name = f"block{block}_num_units"
        assert exact[f"{name}_differ"] == 0
        assert half[f"{name}_differ"] < 0.2 and half[name] > 0


@pytest.mark.parametrize(
    "array, message",
    [
        (np.zeros([1, 4, 4, 3]), "must be float32"),
        (np.zeros([4, 4, 3], np.float32), "must be float32"),
        (np.zeros([0, 4, 4, 3], np.float32), "there are no images"),
    ],
)
def test_refuses_other_files(program, tmp_path, array, message):
    path = tmp_path / "images.npz"
    np.savez(path, images=array)
    with flagsaver.flagsaver(checkpoint_dir="x", images=str(path)):
        with pytest.raises(DataError, match=f"--images=.*{message}"):
            program.main()
