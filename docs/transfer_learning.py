# %% [markdown]
# # Transfer learning on a folder of images
#
# An ordinary network, a SACT network that starts from it, where that one computes,
# and a SavedModel. Run it whole (`python docs/transfer_learning.py`), or cell by cell
# in an editor that knows `# %%`. Without IMAGES it makes a folder of generated shapes.
# %%
import os
import pathlib

import numpy as np
import tensorflow as tf
import tf_keras as keras
from PIL import Image

import sact_tf
from sact_tf import evaluation, training
from sact_tf.data import imagenet, shapes

STEPS = int(os.environ.get("STEPS", "300"))
OUTPUT = pathlib.Path(os.environ.get("OUTPUT", "transfer_learning_output"))
IMAGES = os.environ.get("IMAGES", "")
SIZE = 64  # of the images; 224 for photographs
NETWORK = dict(model="1_2_2_1", base_channels=8)  # dict(model="50") for photographs

# %% [markdown]
# ## The folder: one directory per class, in `train` and `validation`
# %%
if not IMAGES:
    IMAGES = str(OUTPUT / "images")
    for split, name, count in (("train", "train", 240), ("validation", "test", 60)):
        examples = shapes.load(name, SIZE, count)
        for k, (image, label) in enumerate(zip(examples.images, examples.labels)):
            directory = pathlib.Path(IMAGES, split, f"class_{label}")
            directory.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(directory / f"{k}.png")
train = imagenet.load_folder(IMAGES, "train", SIZE)
validation = imagenet.load_folder(IMAGES, "validation", SIZE)
print(f"{train.num_examples} images to train on, {train.num_classes} classes")

# %% [markdown]
# ## An ordinary network
#
# For photographs, start from weights that others have trained:
# `sact_tf.imagenet_resnet("50", "vanilla", num_classes, weights="keras_applications")`.
# %%
options = dict(num_classes=train.num_classes, **NETWORK)
rate = keras.optimizers.schedules.CosineDecay(0.02, STEPS)
vanilla = sact_tf.imagenet_resnet(model_type="vanilla", **options)
checkpoint = training.train(
    vanilla,
    train,
    str(OUTPUT / "vanilla"),
    STEPS,
    batch_size=16,
    learning_rate=rate,
    seed=0,
)

# %% [markdown]
# ## SACT from it
#
# Halting heads start fresh. A larger tau computes less.
# %%
sact = sact_tf.imagenet_resnet(model_type="sact", tau=0.02, **options)
sact_tf.load_pretrained(sact, checkpoint)
training.train(
    sact,
    train,
    str(OUTPUT / "sact"),
    STEPS,
    batch_size=16,
    learning_rate=rate,
    seed=0,
)
for name, network in (("vanilla", vanilla), ("sact", sact)):
    results = evaluation.evaluate(network, validation.evaluation_batches(16))
    accuracy, flops = results["eval/Accuracy"], results["Total Flops/mean"]
    print(f"{name:8} accuracy {100 * accuracy:.1f} %, {flops:.4g} operations per image")

# %% [markdown]
# ## Where it computes
# %%
first = sorted(pathlib.Path(IMAGES, "validation").glob("*/*.*"))[0]
spent = sact_tf.ponder(sact, first)
print(f"{first.name}: {spent.flops / spent.dense_flops:.1%} of all operations")
Image.fromarray(np.concatenate([spent.image, spent.overlay], 1)).save(
    OUTPUT / "ponder.png"
)

# %% [markdown]
# ## Export, and a look at what it serves
# %%
sact.export_saved_model(str(OUTPUT / "saved_model"))
served = tf.saved_model.load(str(OUTPUT / "saved_model")).signatures["serving_bytes"]
outputs = served(image_bytes=tf.constant([first.read_bytes()]))
print({name: value.shape.as_list() for name, value in outputs.items()})
