"""The console command `sact`: the programs of `experiments` by short names."""

from __future__ import annotations

import runpy
import sys

COMMANDS = {
    "quickstart": ("quickstart", "trains an ordinary and a SACT network, in minutes"),
    "cifar": ("cifar_main", "trains or evaluates a network on CIFAR-10"),
    "cifar convert": ("convert_cifar10", "makes its files from CIFAR-10 as published"),
    "train": ("imagenet_train", "trains a network on ImageNet or a folder of images"),
    "eval": ("imagenet_eval", "evaluates such a network"),
    "ponder": ("ponder", "tells and draws where a network computes on your images"),
    "maps": ("imagenet_ponder_map", "draws ponder cost maps of photographs"),
    "maps export": ("imagenet_export", "writes images and ponder cost to a file"),
    "maps draw": ("draw_ponder_maps", "draws the maps of such a file"),
    "report": ("report", "makes the paper's tables and figures of evaluations"),
    "modes": ("plot_modes", "plots how PACT fares relaxed, discrete, thresholded"),
    "compare": ("paired_bootstrap", "compares two networks on the same images"),
    "attention train": ("dt_ram_train", "trains recurrent attention, RAM or DT-RAM"),
    "attention eval": ("dt_ram_eval", "evaluates it and draws where it looks"),
    "perforate": ("perforate", "makes convolutional networks faster by static masks"),
    "parity": ("parity_task", "trains recurrent networks that halt, on parity"),
    "tradeoff": ("plot_tradeoff", "plots accuracy against operations"),
    "garden": ("model_garden_train", "trains with the TensorFlow Model Garden"),
    "models": ("models", "lists the trained networks that come along, and cards"),
    "models pack": ("zoo_pack", "packs a trained network, with its card"),
    "models time": ("benchmarks.zoo", "times trained networks on test images"),
    "squeeze": ("squeeze_model", "copies a checkpoint without training's variables"),
    "convert": ("convert_checkpoint", "converts between checkpoints and Keras files"),
    "export": ("export_saved_model", "exports a network as a SavedModel"),
    "export portable": ("export_portable", "exports for TensorFlow Lite or ONNX"),
    "detect train": ("coco_train", "trains Faster R-CNN on data in COCO's format"),
    "detect eval": ("coco_eval", "scores a detector as COCO does"),
    "detect export": ("coco_export", "exports a detector as a SavedModel"),
    "detect run": ("coco_detect", "detects objects in photographs"),
    "segment train": ("segmentation_train", "trains segmentation of images"),
    "segment eval": ("segmentation_eval", "scores a segmentation network"),
    "segment export": ("segmentation_export", "exports it as a SavedModel"),
    "segment run": ("segmentation_predict", "segments photographs and draws them"),
    "saliency": ("saliency_eval", "scores ponder cost as a prediction of gaze"),
    "bench": ("benchmarks.network", "times adaptive networks and single layers"),
    "bench detect": ("benchmarks.detection", "times detection and its training"),
    "bench exports": ("benchmarks.exports", "times exported networks"),
    "bench input": ("benchmarks.input", "tells how much of training waits for input"),
    "bench iterative": ("benchmarks.iterative", "times networks that stop early"),
    "bench precision": ("benchmarks.precision", "compares bfloat16 with float32"),
    "bench segment": ("benchmarks.segmentation", "times a segmentation network"),
    "bench step": ("benchmarks.training_step", "times a training step"),
}
"""The program's module in `experiments`, and what it does, by the command's words."""


def usage() -> str:
    """Returns what `sact --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: sact COMMAND [--flag=value ...]",
            "",
            *lines,
            "",
            "`sact COMMAND --help` lists a command's flags. Each is the program",
            "`python -m experiments.NAME` of the same flags.",
        ]
    )


def find(words: list[str]) -> tuple[str, list[str]]:
    """Returns the command that arguments begin with, of most words, and the others.

    Raises:
        ValueError: They begin with no command.
    """
    for count in (2, 1):
        name = " ".join(words[:count])
        if len(words) >= count and name in COMMANDS:
            return name, words[count:]
    given = " ".join(words[:2]) if words else "none"
    raise ValueError(f"command must be one of {', '.join(COMMANDS)}; got {given}")


def main() -> None:
    """Runs the program that the command line names."""
    words = sys.argv[1:]
    if not words or words[0] in ("help", "--help", "-h"):
        print(usage())
        sys.exit(0 if words else 2)
    try:
        name, arguments = find(words)
    except ValueError as error:
        sys.exit(f"sact: error: {error}")
    sys.argv = ["sact", *arguments]
    # As `python -m` runs it, so that --help is the same.
    runpy.run_module(
        f"experiments.{COMMANDS[name][0]}", run_name="__main__", alter_sys=True
    )
