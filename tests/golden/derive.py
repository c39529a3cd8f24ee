"""Derives what is small enough to ship from the original network's full outputs.

    python tests/golden/derive.py GOLDEN_DIR tests/golden

`imagenet_101_bc4_sact` is a plain copy of the case of that name. Of two more:

* `cifar_n2_sact_train.npz`, a training step (`tests/sact_tf/test_parity.py` checks it):
  the batch and the weights before the step in full, the latter without their last five
  bits, which moves gradients by 6e-5 of their norm at most; losses, logits, operations
  and units in full; of every gradient and every variable after the step what `summary`
  keeps.
* `heatmaps.npz`, heat maps of the network of `imagenet_101_bc4_sact`: one of two
  images, every 16th row, and of the units' heat map the red channel, for the others
  are those of the ponder cost's.
"""

import json
import os
import pathlib
import sys

import numpy as np

SAMPLES = 8
"""Entries that are kept of an array."""

ROW_STEP = 16
"""Every how many rows of a heat map are kept."""


def summary(array):
    """Returns norm, projection and entries of an array, float32 [2 + SAMPLES].

    The projection is on the cosines of 0, 1, 2, ...: it sees where each value is. The
    entries are spread evenly; those of small arrays come more than once.
    """
    flat = np.asarray(array, np.float64).ravel()
    projection = flat @ np.cos(np.arange(flat.size))
    chosen = np.linspace(0, flat.size - 1, SAMPLES).astype(int)
    return np.float32([np.linalg.norm(flat), projection, *flat[chosen]])


def pack(values):
    """Rounds off five bits of float32 values, and splits them into planes of bytes.

    Exponents by themselves zip well.

    Args:
        values: float32 [n], finite.

    Returns:
        uint8 [4, n]: exponents, and signs and mantissas in three bytes.
    """
    bits = (np.asarray(values, "<f4").view("<u4") + 16) >> 5 << 5
    rest = bits >> 31 << 23 | bits & 0x7FFFFF
    return np.uint8([bits >> 23 & 255, rest >> 16, rest >> 8 & 255, rest & 255])


def unpack(planes):
    """Returns the float32 [n] values that `pack` has rounded."""
    exponent, *rest = planes.astype("<u4")
    rest = rest[0] << 16 | rest[1] << 8 | rest[2]
    bits = rest >> 23 << 31 | exponent << 23 | rest & 0x7FFFFF
    return bits.view("<f4")


def derive_training_step(source, target):
    import tensorflow as tf

    golden = np.load(source / "golden.npz")
    info = json.loads((source / "info.json").read_text())
    before = tf.train.load_checkpoint(str(source / "ckpt" / "model.ckpt-0"))
    after = tf.train.load_checkpoint(str(source / "ckpt_after_step" / "model.ckpt-1"))
    names = sorted(json.loads((source / "variables.json").read_text()))
    arrays = {
        "names": np.array(names),
        "weights": pack(np.concatenate([before.get_tensor(n).ravel() for n in names])),
        "after": np.array([summary(after.get_tensor(n)) for n in names]),
        "learning_rate": info["learning_rate"],
        "momentum": info["momentum"],
    }
    trained = [name for name in names if f"grad/{name}" in golden.files]
    key = "gradients_that_are_mathematically_zero_rounding_noise"
    arrays["trained"] = np.array(trained)
    arrays["gradients"] = np.array([summary(golden[f"grad/{n}"]) for n in trained])
    arrays["zero_gradients"] = np.array(info["goldens"][0][key])
    for name in golden.files:
        kept = ("flops", "num_units", "images", "labels", "logits")
        if name.split("/")[-1] in kept or name.startswith("loss/"):
            arrays[name] = golden[name]
    np.savez_compressed(target, **arrays)


def derive_heatmaps(source, target):
    golden = np.load(source)
    np.savez_compressed(
        target,
        images=golden["images"][:1],
        heatmap_ponder_cost=golden["heatmap_ponder_cost"][:1, ::ROW_STEP],
        heatmap_num_units_red=golden["heatmap_num_units"][:1, ::ROW_STEP, :, 0],
        alpha=golden["alpha"],
        border=golden["border"],
    )


if __name__ == "__main__":
    golden_dir = pathlib.Path(sys.argv[1])
    output_dir = sys.argv[2]
    case = "cifar_n2_sact_train"
    derive_training_step(golden_dir / case, os.path.join(output_dir, f"{case}.npz"))
    heatmaps = golden_dir / "heatmaps" / "imagenet_101_bc4_sact.npz"
    derive_heatmaps(heatmaps, os.path.join(output_dir, "heatmaps.npz"))
