"""Scores a SACT network's ponder cost as a map of saliency (SACT, section 4.3).

    python -m experiments.saliency_eval --dataset_format=cat2000 \\
        --dataset_dir=cat2000/trainSet --image_size=320x180 --model=101 \\
        --checkpoint_dir=/tmp/sact --output_dir=saliency

Maps are normalised, blurred by sigma and blended with gamma times a prior for the
centre. The first half of the images chooses sigma and gamma by AUC-Judd, the second is
scored: `results.json` holds all metrics and the whole grid, `figure.png` images beside
their human and model maps, `maps.npz` the ponder cost, which another run with the same
network and images takes up. Of a detector's checkpoint, as coco_train writes it, the
ponder cost is that of blocks 1 to 3. --maps scores ready-made maps instead, and
--random_network an untrained network.
"""

from __future__ import annotations

import os
import time

import numpy as np
import tf_keras as keras
from absl import flags

import sact_tf
from experiments.common import maps, programs
from sact_tf import saliency, visualization
from sact_tf.data.examples import DataError
from sact_tf.data.images import read_image
from sact_tf.domains import AT_LEAST_0, INPUT_SIDE, SIGMA
from sact_tf.saliency import pictures, ponder, tuning
from sact_tf.saliency.data import HALVES
from sact_tf.writing import write_json

FLAGS = flags.FLAGS
_READERS = {
    "cat2000": saliency.load_cat2000,
    "mit1003": saliency.load_mit1003,
    "npz": saliency.load_npz,
}

flags.DEFINE_enum(
    "dataset_format",
    "cat2000",
    list(_READERS),
    "cat2000: its training set; mit1003: folders ALLSTIMULI and ALLFIXATIONMAPS; npz: "
    "fixations.npz and a folder images (see sact_tf/saliency/data.py).",
)
flags.DEFINE_string("dataset_dir", "", "Directory of the data set, or .npz file.")
programs.define_network_flags()
flags.DEFINE_bool("random_network", False, "Score an untrained network, of --seed.")
flags.DEFINE_integer("seed", 0, "Of the untrained network, and of noise against ties.")
flags.DEFINE_string(
    "maps",
    "",
    "Score ready-made maps instead of a network: directory of <name>.png, or .npz file "
    "with one array per image.",
)
flags.DEFINE_string(
    "image_size",
    "320",
    "Size of the network's input: WIDTHxHEIGHT, or the longer edge. Sigmas are pixels "
    "of it.",
)
flags.DEFINE_list("sigmas", [f"{s:g}" for s in tuning.SIGMAS], "Blurs to try.")
flags.DEFINE_list(
    "gammas", [f"{g:g}" for g in tuning.GAMMAS], "Weights of the centre prior to try."
)
flags.DEFINE_float(
    "human_sigma",
    None,
    "Blur of human maps in pixels of the original images; by default the MIT "
    "benchmark's. Maps that come with a data set take precedence.",
    lower_bound=0.0,
)
flags.DEFINE_bool(
    "jitter", True, "Break ties in AUC-Judd by noise of 1e-7, as the benchmark does."
)
flags.DEFINE_integer("num_figures", 8, "Images to draw.", lower_bound=0)
flags.DEFINE_string("output_dir", "", "Directory to write to.")

_MIN_SIZE = 32
_MAX = int(INPUT_SIDE.high)
DOMAINS = {"sigmas": SIGMA, "gammas": AT_LEAST_0}
_TITLES = {
    "auc_judd": "AUC-Judd",
    "auc_shuffled": "sAUC",
    "nss": "NSS",
    "cc": "CC",
    "kl": "KL",
    "sim": "SIM",
}


def image_size() -> tuple[int, int] | int:
    """Returns --image_size as (width, height), or the longer edge."""
    try:
        sides = [int(side) for side in FLAGS.image_size.split("x")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2) or not _MIN_SIZE <= min(sides) <= max(sides) <= _MAX:
        raise ValueError(
            f"--image_size={FLAGS.image_size}: must be WIDTHxHEIGHT or one number, at "
            f"least {_MIN_SIZE} and at most {_MAX}"
        )
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def numbers(flag: str) -> tuple[float, ...]:
    """Returns a list flag as numbers >= 0, in order."""
    try:
        values = {float(DOMAINS[flag].parse(text, flag)) for text in FLAGS[flag].value}
    except ValueError:
        values = set()
    if not values:
        raise ValueError(
            f"--{flag}={','.join(FLAGS[flag].value)}: must be numbers >= 0, joined by "
            f"commas, each {DOMAINS[flag]}"
        )
    return tuple(sorted(values))


def load_data() -> saliency.FixationData:
    """Reads the data set, and tells what was dropped."""
    with programs.naming_dataset_dir():
        data = _READERS[FLAGS.dataset_format](FLAGS.dataset_dir)
    counts = [len(data.half(half)) for half in HALVES]
    print(f"{counts[0]} images to choose sigma and gamma, {counts[1]} to score")
    if data.num_outside:
        print(f"Dropped {data.num_outside} fixations outside of their images")
    if data.skipped:
        print(f"Skipped {len(data.skipped)} images without fixations")
    return data


def make_network() -> tuple[keras.layers.Layer, dict[str, object]]:
    """Builds the network; returns it and what tells it from others."""
    programs.require(*([] if FLAGS.random_network else ["checkpoint_dir"]))
    if FLAGS.random_network and FLAGS.checkpoint_dir:
        raise ValueError(
            f"--checkpoint_dir={FLAGS.checkpoint_dir}: cannot go with --random_network"
        )
    names = ("network", "model", "num_classes", "base_channels", "tile_size")
    settings = {name: FLAGS[name].value for name in names}
    keras.utils.set_random_seed(FLAGS.seed)
    model = programs.make_network(model_type="sact", execution="perforated")
    if FLAGS.random_network:
        return model, {**settings, "random_seed": FLAGS.seed}
    model = maps.load_network(model)
    path = os.path.expanduser(FLAGS.checkpoint_dir)
    if os.path.isdir(path):
        path = sact_tf.newest_checkpoint(path)
    path = os.path.abspath(path)
    changed = os.path.getmtime(f"{path}.index")
    return model, {**settings, "checkpoint": path, "changed": changed}


def network_maps(data, cache: str) -> dict[str, np.ndarray]:
    """Returns the ponder cost of every image, from the cache file if it fits."""
    size = image_size()
    model, settings = make_network()
    settings["image_size"] = FLAGS.image_size
    settings["images"] = [os.path.abspath(s.image_path) for s in data.stimuli]
    names = [stimulus.name for stimulus in data.stimuli]
    if ponder.saved_settings(cache) == settings:
        print(f"Taking ponder cost from {cache}")
        return ponder.load_maps(cache, names)
    made, start = {}, time.monotonic()
    for stimulus in data.stimuli:
        with programs.naming_dataset_dir():
            image = read_image(stimulus.image_path).numpy()
            ponder.check_photograph(image, stimulus.size, stimulus.image_path)
        shape = ponder.input_size(size, stimulus.size)
        made[stimulus.name] = ponder.ponder_cost(model, image, shape)
    ponder.save_maps(cache, made, settings)
    print(
        f"Ponder cost of {len(made)} images: {time.monotonic() - start:.0f} s, written "
        f"to {cache}",
        flush=True,
    )
    return made


def ready_maps(data) -> dict[str, np.ndarray]:
    """Returns the maps of --maps."""
    if FLAGS.checkpoint_dir or FLAGS.random_network:
        raise ValueError(
            f"--maps={FLAGS.maps}: cannot go with --checkpoint_dir or --random_network"
        )
    try:
        return ponder.load_maps(FLAGS.maps, [s.name for s in data.stimuli])
    except DataError as error:
        raise DataError(f"--maps={FLAGS.maps}: {error}") from error


def print_table(rows: dict[str, dict[str, dict[str, float]]]) -> None:
    """Prints AUC-Judd of both halves, and all metrics of the second."""
    width = max(map(len, rows))
    titles = [_TITLES[name] for name in tuning.METRICS]
    print(f"\n{'':{width}} {'tuning':>9} {'validation':>9}")
    print(f"{'':{width}}", *(f"{title:>9}" for title in ["AUC-Judd", *titles]))
    for name, row in rows.items():
        tune, validate = (row[half] for half in HALVES)
        values = [tune["auc_judd"], *(validate.get(m) for m in tuning.METRICS)]
        shown = (f"{value:9.4f}" for value in values if value is not None)
        print(f"{name:{width}}", *shown)


def _mean(values):
    """Mean over the images that have a value; None where none has, as in JSON."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else None


def evaluate(data, ponder_costs) -> tuple[dict, tuning.Grid, dict]:
    """Searches the grid and scores; returns rows of means, the grid and predictors."""
    seed = FLAGS.seed if FLAGS.jitter else None
    sigmas, gammas = numbers("sigmas"), numbers("gammas")
    start = time.monotonic()
    grid = tuning.grid_search(
        data.half("tune"), ponder_costs, sigmas, gammas, jitter_seed=seed
    )
    print(
        f"Grid of {len(sigmas)} x {len(gammas)} points on {len(grid.scores)} images: "
        f"{time.monotonic() - start:.0f} s",
        flush=True,
    )
    sigma, gamma = grid.best()
    model_name = "ponder cost" if not FLAGS.maps else "map"
    predictors = {"centre only": tuning.centre_only}
    if gamma and 0.0 in gammas:
        alone, _ = grid.best(gamma=0.0)
        name = f"{model_name}, sigma {alone:g}, no centre"
        predictors[name] = tuning.predictions(ponder_costs, alone, 0.0)
    name = f"{model_name}, sigma {sigma:g}, gamma {gamma:g}"
    predictors[name] = tuning.predictions(ponder_costs, sigma, gamma)
    rows = {name: {} for name in predictors}
    options = dict(jitter_seed=seed, human_sigma=FLAGS.human_sigma)
    for half in HALVES:
        scores = tuning.score(data.half(half), predictors, **options)
        for name, values in scores.items():
            rows[name][half] = {m: _mean(v) for m, v in values.items()}
    if data.has_subjects:
        rows["humans, one against the rest"] = {
            half: {
                "auc_judd": float(np.nanmean(tuning.humans(data.half(half), **options)))
            }
            for half in HALVES
        }
    return rows, grid, predictors


def draw(data, predictors, path: str) -> None:
    """Draws the first images of the second half."""
    stimuli = data.half("validate")[: FLAGS.num_figures]
    if not stimuli:
        return
    rows = [
        (
            stimulus.name,
            read_image(stimulus.image_path).numpy(),
            [stimulus.human_map(FLAGS.human_sigma)]
            + [predict(stimulus) for predict in predictors.values()],
        )
        for stimulus in stimuli
    ]
    figure = pictures.saliency_figure(rows, ["humans", *predictors])
    visualization.save_figure(figure, path, dpi=110)


def main() -> None:
    """Scores a network or maps."""
    programs.require("dataset_dir", "output_dir")
    image_size(), numbers("sigmas"), numbers("gammas")
    data = load_data()
    output_dir = programs.make_directory("output_dir", FLAGS.output_dir)
    if FLAGS.maps:
        ponder_costs = ready_maps(data)
    else:
        ponder_costs = network_maps(data, os.path.join(output_dir, "maps.npz"))
    constant = sum(np.ptp(values) == 0 for values in ponder_costs.values())
    if constant:
        print(f"{constant} maps are constant: only the centre prior tells them apart")
    rows, grid, predictors = evaluate(data, ponder_costs)
    print_table(rows)
    sigma, gamma = grid.best()
    path = os.path.join(output_dir, "results.json")
    write_json(
        path,
        {
            "flags": {
                f.name: f.value for f in FLAGS.get_key_flags_for_module(__name__)
            },
            "num_images": {half: len(data.half(half)) for half in HALVES},
            "num_fixations_outside": data.num_outside,
            "skipped_images": list(data.skipped),
            "num_constant_maps": int(constant),
            "sigma": sigma,
            "gamma": gamma,
            "scores": rows,
            "grid": {
                "sigmas": list(grid.sigmas),
                "gammas": list(grid.gammas),
                "auc_judd": grid.mean.tolist(),
            },
        },
    )
    draw(data, predictors, os.path.join(output_dir, "figure.png"))
    print(f"\nWrote {output_dir}")


if __name__ == "__main__":
    programs.run(main)
