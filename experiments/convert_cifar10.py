"""Makes the TFRecord files that cifar_main reads from CIFAR-10's binary version.

    python -m experiments.convert_cifar10 --input=cifar-10-binary.tar.gz \\
        --dataset_dir=~/tensorflow/data/cifar10

Takes the published archive, or a directory with its files `data_batch_1.bin` to
`data_batch_5.bin` and `test_batch.bin`. Writes `cifar10_train.tfrecord` and
`cifar10_test.tfrecord`, with PNG images and the fields of the original's converter.
"""

from __future__ import annotations

import os

from absl import flags

from experiments.common import programs
from sact_tf.data import cifar, cifar_binary
from sact_tf.data.examples import DataError

FLAGS = flags.FLAGS

flags.DEFINE_string(
    "input", "", "cifar-10-binary.tar.gz, or the directory of its .bin files."
)
flags.DEFINE_string(
    "dataset_dir", cifar.DEFAULT_DIRECTORY, "Directory to write the files to."
)


def main() -> None:
    """Converts."""
    programs.require("input", "dataset_dir")
    path = os.path.expanduser(FLAGS.input)
    directory = programs.make_directory("dataset_dir", FLAGS.dataset_dir)

    def progress(split, done):
        print(f"{split}: {done} images", flush=True)

    try:
        cifar_binary.convert(path, directory, progress)
    except (DataError, FileNotFoundError) as error:
        raise type(error)(f"--input={FLAGS.input}: {error}") from error
    print(f"Wrote {' and '.join(f'cifar10_{s}.tfrecord' for s in cifar.SPLITS)}")
    print(f"in {directory}")


if __name__ == "__main__":
    programs.run(main)
