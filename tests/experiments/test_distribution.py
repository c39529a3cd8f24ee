"""Training by real processes on this machine, some of which are killed."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import tensorflow as tf
from tensorflow.core.util import event_pb2

import sact_tf
from experiments.common import distribution

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
_PATIENCE = 600  # seconds


def free_addresses(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("localhost", 0))
        return [f"localhost:{each.getsockname()[1]}" for each in sockets]


class Cluster:
    """Tasks that run a program on loopback ports, each with a log file."""

    def __init__(self, program, cluster, directory, *arguments):
        self.program = program
        self.cluster = cluster
        self.directory = directory
        self.log_dir = directory / "log"
        self.arguments = [f"--train_log_dir={self.log_dir}", *arguments]
        self.tasks = {}

    def start(self, job, index, *arguments):
        task = {"type": job, "index": index}
        config = json.dumps({"cluster": self.cluster, "task": task})
        with open(self.directory / f"{job}{index}.txt", "a") as log:
            self.tasks[job, index] = subprocess.Popen(
                [sys.executable, "-m", f"experiments.{self.program}"]
                + [*self.arguments, *arguments],
                cwd=ROOT,
                env={**os.environ, "TF_CONFIG": config, "TF_CPP_MIN_LOG_LEVEL": "3"},
                stdout=log,
                stderr=log,
            )

    def output(self, job, index):
        return (self.directory / f"{job}{index}.txt").read_text()

    def step(self):
        with contextlib.suppress(FileNotFoundError):
            return sact_tf.checkpoint_step(self.log_dir)
        return 0

    def wait(self, condition, watched):
        """Waits until something holds, as long as a task runs."""
        deadline = time.monotonic() + _PATIENCE
        while not condition():
            assert time.monotonic() < deadline
            assert self.tasks[watched].poll() is None, self.output(*watched)
            time.sleep(0.2)

    def kill(self, job, index):
        self.tasks[job, index].send_signal(signal.SIGKILL)
        self.tasks[job, index].wait()

    def stop(self):
        for task in self.tasks.values():
            task.kill()
            task.wait()


def image_tags(directory):
    """Tags of the pictures in TensorBoard's files below a directory."""
    return {
        value.tag
        for path in directory.rglob("events*")
        for record in tf.data.TFRecordDataset(str(path))
        for value in event_pb2.Event.FromString(record.numpy()).summary.value
        if value.metadata.plugin_data.plugin_name == "images"
    }


@pytest.fixture
def arguments(write_cifar):
    """Flags of tiny networks, by program."""
    return {
        "cifar_main": [
            f"--dataset_dir={write_cifar()}",
            "--model=1_2_1",
            "--batch_size=8",
        ],
        "coco_train": [
            "--dataset=shapes",
            "--num_examples=8",
            "--short_side=48",
            "--model=1_1_1_1",
            "--base_channels=8",
            "--anchor_sizes=16",
            "--anchor_ratios=1",
            "--num_proposals=8",
            "--num_region_samples=8",
            "--crop_size=7",
            "--batch_size=4",
        ],
    }


@pytest.fixture
def make_cluster(arguments, tmp_path):
    """Returns a function that makes clusters, whose tasks end with the test."""
    with contextlib.ExitStack() as stack:

        def make(program, cluster, strategy):
            made = Cluster(
                program,
                cluster,
                tmp_path,
                *arguments[program],
                f"--distribution_strategy={strategy}",
                "--model_type=sact",
                "--tau=0.01",
                "--save_interval_secs=0",
                "--save_summaries_secs=1000",
            )
            stack.callback(made.stop)
            return made

        yield make


@pytest.mark.parametrize("program", ["cifar_main", "coco_train"])
@pytest.mark.long
def test_parameter_server_survives_lost_workers_and_coordinators(program, make_cluster):
    chief, *workers, server = free_addresses(4)
    cluster = make_cluster(
        program,
        {"chief": [chief], "worker": workers, "ps": [server]},
        "parameter_server",
    )
    for job, index in (("ps", 0), ("worker", 0), ("worker", 1)):
        cluster.start(job, index, "--max_number_of_steps=100000")
    cluster.start("chief", 0, "--max_number_of_steps=100000")
    cluster.wait(lambda: cluster.step() > 0, ("chief", 0))

    cluster.kill("worker", 1)
    step = cluster.step()
    cluster.wait(lambda: cluster.step() > step, ("chief", 0))  # by the other worker
    cluster.start("worker", 1)
    recovered = re.compile("task:1 has been recovered")
    cluster.wait(lambda: recovered.search(cluster.output("chief", 0)), ("chief", 0))

    cluster.kill("chief", 0)
    step = cluster.step()
    cluster.start("chief", 0, f"--max_number_of_steps={step + 60}")
    assert cluster.tasks["chief", 0].wait(_PATIENCE) == 0, cluster.output("chief", 0)
    assert f"at step {step}\n" in cluster.output("chief", 0)
    assert cluster.step() >= step + 60


@pytest.mark.long
@pytest.mark.parametrize("program", ["cifar_main", "coco_train"])
def test_mirrored_workers_go_on_when_all_are_started_again(
    program, make_cluster, tmp_path
):
    cluster = make_cluster(
        program, {"worker": free_addresses(2)}, "multi_worker_mirrored"
    )
    for index in range(2):
        cluster.start("worker", index, "--max_number_of_steps=100000")
    cluster.wait(lambda: cluster.step() > 0, ("worker", 0))
    cluster.kill("worker", 1)
    assert cluster.tasks["worker", 0].wait(_PATIENCE) != 0
    assert "another process of this" in cluster.output("worker", 0)
    step = cluster.step()
    for index in range(2):
        cluster.start("worker", index, f"--max_number_of_steps={step + 3}")
    for index in range(2):
        assert cluster.tasks["worker", index].wait(_PATIENCE) == 0
    assert f"at step {step}\n" in cluster.output("worker", 0)
    assert cluster.step() == step + 3
    # The chief draws, alone.
    drawn = image_tags(tmp_path)
    assert any(tag.startswith("heatmaps/") for tag in drawn)
    if program == "coco_train":
        assert {f"detections/{k}" for k in range(4)} <= drawn


@pytest.mark.parametrize(
    "address",
    ["localhost:1", "grpc://localhost", "grpc://:5", "grpc://a:99999", "x", ""],
)
def test_addresses_that_are_none(address):
    with pytest.raises(ValueError, match=f"--data_service={address}: must be an addr"):
        distribution.await_data_service(address)


def test_a_data_service_that_is_not_there(capsys):
    """TensorFlow alone would wait for ever, silently."""
    (address,) = free_addresses(1)
    start = time.monotonic()
    message = f"--data_service=grpc://{address}: nothing answers there .*refused"
    with pytest.raises(ValueError, match=message):
        distribution.await_data_service(f"grpc://{address}", patience=0.5)
    assert time.monotonic() - start < 5
    told = capsys.readouterr().out
    assert told == (
        f"--data_service=grpc://{address}: nothing answers there yet; waiting up to "
        "0.5 s\n"
    )


def test_a_data_service_that_starts_later(capsys):
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        port = listening.getsockname()[1]
        timer = threading.Timer(0.3, listening.listen)
        timer.start()
        distribution.await_data_service(f"grpc://localhost:{port}", patience=30)
        timer.join()
    assert "nothing answers there yet" in capsys.readouterr().out
