"""How the training programs use devices and machines: flags and their meaning."""

from __future__ import annotations

import json
import os
import re
import socket
import time

import tensorflow as tf
import tf_keras as keras
from absl import flags

from sact_tf.layers import synchronize_batch_norm
from sact_tf.optional import lazy

distribute_utils = lazy("official.common.distribute_utils")

FLAGS = flags.FLAGS
# Flags defined here belong to the program that asks for them, and to its --help.
flags.disclaim_key_flags()

PRECISIONS = {
    "float32": "float32",
    "bfloat16": "mixed_bfloat16",
    "float16": "mixed_float16",
}
"""Keras' policies by the values of --mixed_precision."""
_SERVICE_PATIENCE = 30.0  # seconds until a tf.data service that starts is there
_CLUSTER_STRATEGIES = ("multi_worker_mirrored", "parameter_server")


def define_flags() -> None:
    """Defines --distribution_strategy and what goes with it."""
    flags.DEFINE_enum(
        "distribution_strategy",
        "one_device",
        ["one_device", "mirrored", *_CLUSTER_STRATEGIES],
        "one_device; mirrored: all GPUs of this machine share every batch; "
        "multi_worker_mirrored: those of all machines do; parameter_server: every "
        "worker makes steps of its own, asynchronously, as in the SACT paper. The last "
        "two read the cluster from the environment variable TF_CONFIG.",
    )
    flags.DEFINE_bool(
        "sync_batch_norm",
        True,
        "Whether devices that share a batch normalize with the statistics of all of "
        "it, rather than each with those of its part.",
    )
    flags.DEFINE_enum(
        "mixed_precision",
        "float32",
        list(PRECISIONS),
        "Type that layers compute in; weights and halting stay float32.",
    )
    flags.DEFINE_bool("jit_compile", False, "Compile the training step with XLA.")
    flags.DEFINE_string(
        "data_service",
        None,
        "Address of a tf.data service that prepares the batches, such as "
        "grpc://localhost:5000.",
    )


def make_strategy() -> tf.distribute.Strategy:
    """Makes what --distribution_strategy names, before anything else of TensorFlow.

    Also sets --mixed_precision. In worker and parameter server tasks of a
    `parameter_server` cluster it serves the coordinator, and never returns.

    Raises:
        ValueError: TF_CONFIG is missing or not what the strategy needs, or nothing
            answers at --data_service.
    """
    name = FLAGS.distribution_strategy
    if name in _CLUSTER_STRATEGIES:
        _check_cluster(name)
        # Waiting for lost peers without end would hide that they are lost.
        os.environ.setdefault("GRPC_FAIL_FAST", "use_caller")
    if name == "parameter_server":
        _serve_unless_coordinator()
    if FLAGS.data_service is not None:
        await_data_service(FLAGS.data_service)
    num_gpus = len(tf.config.list_physical_devices("GPU"))
    if name == "one_device":
        strategy = tf.distribute.OneDeviceStrategy(
            "device:GPU:0" if num_gpus else "device:CPU:0"
        )
    else:
        strategy = distribute_utils.get_distribution_strategy(name, num_gpus)
    keras.mixed_precision.set_global_policy(PRECISIONS[FLAGS.mixed_precision])
    return strategy


def await_data_service(address: str, patience: float | None = None) -> None:
    """Returns once something answers there; TensorFlow would wait for ever, silently.

    Args:
        address: Of --data_service.
        patience: Seconds; None: 30.

    Raises:
        ValueError: It is no address, or nothing answers.
    """
    found = re.fullmatch(r"grpcs?://(\[[^]]+\]|[^:/\s]+):(\d{1,5})", address)
    if not found or not 1 <= int(found[2]) <= 65535:
        raise ValueError(
            f"--data_service={address}: must be an address such as "
            "grpc://localhost:5000"
        )
    patience = _SERVICE_PATIENCE if patience is None else patience
    place, start = (found[1].strip("[]"), int(found[2])), time.monotonic()
    has_told = False
    while True:
        try:
            with socket.create_connection(place, timeout=max(patience, 1.0)):
                return
        except OSError as error:
            if time.monotonic() - start >= patience:
                raise ValueError(
                    f"--data_service={address}: nothing answers there "
                    f"({error.strerror or error}); start a tf.data service first"
                ) from error
        if not has_told:
            print(
                f"--data_service={address}: nothing answers there yet; waiting up to "
                f"{patience:g} s",
                flush=True,
            )
            has_told = True
        time.sleep(min(1.0, patience / 10))


def _check_cluster(name: str) -> None:
    """Raises ValueError unless TF_CONFIG describes a cluster for the strategy."""
    example = {"cluster": {"worker": ["host0:5000", "host1:5000"]}}
    example["task"] = {"type": "worker", "index": 0}
    if name == "parameter_server":
        example["cluster"] = {
            "chief": ["host0:5000"],
            "worker": ["host1:5000", "host2:5000"],
            "ps": ["host0:5001"],
        }
    text = os.environ.get("TF_CONFIG", "")
    try:
        config = json.loads(text)
        cluster, task = config["cluster"], config["task"]
        cluster[task["type"]][int(task["index"])]
        is_complete = all(cluster.get(job) for job in example["cluster"])
    except (ValueError, KeyError, IndexError, TypeError):
        is_complete = False
    if not is_complete:
        raise ValueError(
            f"--distribution_strategy={name}: needs the environment variable "
            f"TF_CONFIG, such as {json.dumps(example)}; got {text!r}"
        )


def _serve_unless_coordinator() -> None:
    """Runs the tasks that only serve; they end when they are told to from outside."""
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    if resolver.task_type not in ("worker", "ps"):
        return
    server = tf.distribute.Server(
        resolver.cluster_spec(),
        job_name=resolver.task_type,
        task_index=resolver.task_id,
        protocol=resolver.rpc_layer or "grpc",
    )
    print(f"Serving as {resolver.task_type} {resolver.task_id}", flush=True)
    server.join()


def training_options(model: keras.Model) -> dict[str, object]:
    """Returns the options that flags give to `training.train`; prepares the model."""
    synchronize_batch_norm(model, FLAGS.sync_batch_norm)
    return dict(jit_compile=FLAGS.jit_compile, data_service=FLAGS.data_service)
