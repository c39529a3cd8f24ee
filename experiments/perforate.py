"""Trains feed-forward networks, and makes trained ones faster by perforation.

Train Network in Network on CIFAR-10; writes model.keras to --train_log_dir:

    python -m experiments.perforate --mode=train --model=nin --dataset_dir=DIR \\
        --train_steps=5000 --train_log_dir=/tmp/nin

Training that was stopped, for any reason, continues from its newest checkpoint when you
start it again.
"""

from __future__ import annotations

import os

import tf_keras as keras
from absl import flags

from experiments.common import feedforward, programs
from sact_tf import classifiers, keras_files
from sact_tf.networks.feedforward import NETWORKS
from sact_tf.writing import write_json

FLAGS = flags.FLAGS

flags.DEFINE_enum("mode", "train", ["train"], "What to do.")
flags.DEFINE_enum("model", "nin", list(NETWORKS), "Network, with fresh weights.")
flags.DEFINE_integer("batch_size", 128, "Images per step.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "Of weights, masks, data order and augmentation.")
feedforward.define_data_flags()
feedforward.define_train_flags()


def train() -> None:
    """Trains --model, evaluates it, and writes it to --train_log_dir."""
    keras.utils.set_random_seed(FLAGS.seed)
    log_dir = programs.make_directory("train_log_dir", FLAGS.train_log_dir)
    examples, test = map(feedforward.load_examples, ("train", "eval"))
    model = feedforward.make_model(examples.num_classes)
    print(f"{FLAGS.model}: {model.count_params():,} parameters", flush=True)
    feedforward.train(model, examples, log_dir)
    path = feedforward.model_file(log_dir)
    keras_files.save_network(model, path)
    with test.explained_errors():
        result = classifiers.score(model, test.evaluation_batches(FLAGS.batch_size))
    about = dict(model=FLAGS.model, dataset=FLAGS.dataset, steps=FLAGS.train_steps)
    write_json(os.path.join(log_dir, "eval.json"), {**about, **result})
    print(f"Error {1 - result['accuracy']:.2%} of {result['images']} images")
    print(f"Wrote {path}")


def main() -> None:
    """Runs the mode asked for."""
    train()


if __name__ == "__main__":
    programs.run(main)
