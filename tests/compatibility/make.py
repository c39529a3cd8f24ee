"""Makes the files that later versions have to load, with what the networks gave then.

The files beside this script were made by version 0.1.0 at commit 4fdec25, on TensorFlow
2.20.0, tf_keras 2.20.1 and x86-64:

    python tests/compatibility/make.py tests/compatibility

They stay as they are: made anew by a later version, they would show nothing. What a
later version adds gets files of its own. `tests/sact_tf/test_compatibility.py` loads
them all.

* `<network>.keras`: networks saved by Keras, packed again to be smaller.
* `checkpoint/`: a TF-Slim checkpoint of training, with the accumulators of the
  optimizer. `checkpoint_after.npz` holds what it holds after one step more.
* `saved_model_<implementation>.tar.xz`: SavedModels of perforated execution.

The `.npz` of the same name holds `images` and the outputs for them.
"""

import os
import shutil
import sys
import tempfile
import zipfile

import numpy as np
import tensorflow as tf
import tf_keras as keras

import sact_tf
from sact_tf import training
from sact_tf.data.examples import Examples

STEPS = 2
"""Training steps before the checkpoint."""

BATCH = 4


class OneBatch(Examples):
    """Examples that make the same batch again and again, without augmentation."""

    def training_batches(self, batch_size, seed=None, **options):
        batch = (self.images[:batch_size] / np.float32(255), self.labels[:batch_size])
        return tf.data.Dataset.from_tensors(batch).repeat()


def networks():
    """Returns the networks that are saved by Keras, by their names."""
    return {
        "cifar_sact": sact_tf.cifar_resnet(
            "1_3_3", "sact", base_channels=2, tau=0.02, tile_size=2
        ),
        "cifar_vanilla": sact_tf.cifar_resnet("1_1_2", base_channels=2),
        "imagenet_act": sact_tf.imagenet_resnet(
            "1_4_1_2", "act", num_classes=3, base_channels=1, tau=0.02
        ),
    }


def small_sact(**options):
    """Returns the network of the checkpoint and of the SavedModels."""
    return sact_tf.cifar_resnet(
        "1_3_2", "sact", num_classes=3, base_channels=2, tau=0.05, **options
    )


def train_to(model, log_dir, steps):
    """Trains up to a step, from the checkpoint in `log_dir` if it has one."""
    rng = np.random.default_rng(5)
    images = rng.integers(0, 256, [BATCH, 16, 16, 3]).astype(np.uint8)
    rate = keras.optimizers.schedules.PiecewiseConstantDecay([1000], [0.01, 0.001])
    return training.train(
        model,
        OneBatch(images, np.arange(BATCH) % 3, num_classes=3),
        str(log_dir),
        steps,
        batch_size=BATCH,
        learning_rate=rate,
        save_summaries_secs=1e9,
        verbose=0,
    )


def randomise(model, seed=2):
    """Gives all variables random values, such that halting varies."""
    for number, (name, variable) in enumerate(sact_tf.slim_variables(model).items()):
        shape = variable.shape
        values = np.random.default_rng([seed, number]).normal(size=shape)
        if "moving_variance" in name or "gamma" in name:
            values = 1.0 + 0.2 * np.abs(values)
        elif name.endswith("weights"):
            values *= np.sqrt(1.0 / np.prod(shape[:-1]))
            values *= 4.0 if "halting_proba" in name else 1.0
        elif "halting_proba" in name and name.endswith("biases"):
            values = np.full(shape, 0.5)
        else:
            values *= 0.1
        variable.assign(values)


def random_images(height, width):
    """Returns two images whose few different values pack well."""
    values = np.random.default_rng(7).normal(size=[2, height, width, 3])
    values[1] = 2 * values[1] - 1  # for the images to halt at different units
    return (np.round(values * 4) / 4).astype(np.float32)


def outputs(model, images):
    """Returns the tensors that a network gives for images, by their names."""
    logits, end_points = model.with_end_points(images, training=False)
    tensors = {"logits": logits, "losses": tf.add_n(model.losses)}
    for key, value in end_points.items():
        if key.split("/")[-1] in ("flops", "num_units", "ponder_cost"):
            tensors[key] = value
    return {key: value.numpy() for key, value in tensors.items()}


def random_network(model, images):
    """Builds a network and randomises it."""
    model(images)
    randomise(model)
    return model


def make_keras_files(directory):
    for name, model in networks().items():
        images = random_images(32, 40) if "imagenet" in name else random_images(16, 18)
        random_network(model, images)
        path = os.path.join(directory, name)
        with tempfile.TemporaryDirectory() as temporary:
            model.save(f"{temporary}/model.keras")
            with (
                zipfile.ZipFile(f"{temporary}/model.keras") as source,
                zipfile.ZipFile(f"{path}.keras", "w", zipfile.ZIP_DEFLATED) as packed,
            ):
                for member in source.namelist():
                    packed.writestr(member, source.read(member))
        np.savez_compressed(f"{path}.npz", images=images, **outputs(model, images))


def make_saved_models(directory):
    images = random_images(16, 18)
    model = random_network(small_sact(execution="perforated"), images)
    for implementation in ("tensorflow", "native"):
        path = os.path.join(directory, f"saved_model_{implementation}")
        with tempfile.TemporaryDirectory() as temporary:
            model.export_saved_model(temporary, implementation=implementation)
            shutil.make_archive(path, "xztar", temporary)
            serve = tf.saved_model.load(temporary).signatures["serving_default"]
            served = serve(images=tf.constant(images))
        served = {key: value.numpy() for key, value in served.items()}
        np.savez_compressed(f"{path}.npz", images=images, **served)


def make_checkpoint(directory):
    images = random_images(16, 18)
    model = random_network(small_sact(), images)
    path = os.path.join(directory, "checkpoint")
    with tempfile.TemporaryDirectory() as temporary:
        train_to(model, temporary, STEPS)
        shutil.copytree(temporary, path, ignore=shutil.ignore_patterns("events*"))
        np.savez_compressed(f"{path}.npz", images=images, **outputs(model, images))
        last = train_to(small_sact(), temporary, STEPS + 1)
        reader = tf.train.load_checkpoint(last)
        names = reader.get_variable_to_shape_map()
        after = {name: reader.get_tensor(name) for name in names}
    np.savez_compressed(f"{path}_after.npz", **after)


if __name__ == "__main__":
    make_keras_files(sys.argv[1])
    make_saved_models(sys.argv[1])
    make_checkpoint(sys.argv[1])
