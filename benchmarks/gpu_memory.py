"""Compares the predicted peak memory with the measured one, for each micro-batch of a config. Needs a CUDA GPU.

    python benchmarks/gpu_memory.py [--config C] [--schedule 3,2,3,2] [--set recipe.precision=bf16] [--json]

The steps are those of a training (`ray_jobs.training.learner`): as many zooms in flight, accumulated gradients,
allocated state of Adam, at the end of the training, where all losses are on; the prediction is for this moment. Weights
are random, slides are formulas. Target: a prediction within 15 % of the measured value. Without a GPU it prints that,
and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from magnet.fake_slide import formula_fetch, waves
from magnet.plan import BatchSplit
from magnet.zoom import MagNet
from ray_jobs.training.input.micro_batch import StepInput
from ray_jobs.training.learner import Learner, TooLargeError
from ray_jobs.training.memory.fit import list_batch_cuts, predict_memory
from service.settings.train import TrainSettings, read_train_settings

SIDE_PX = 110_000
SLIDE = waves([(3.0, 5.0), (7.0, 2.0), (11.0, 13.0)])
NUM_STEPS = 100
"""Steps of the training whose last steps are taken."""
TOLERANCE = 0.15
"""Largest relative error of a prediction that meets the target."""


def take_last_steps(settings: TrainSettings, cut: BatchSplit, device: torch.device) -> None:
    """Take two steps: the state of Adam exists from the second one on."""
    size = cut.micro_batch
    label_B = torch.arange(size) % 2.0
    fetch = formula_fetch([SLIDE] * size, [SIDE_PX] * size)
    side_px_B = np.full(size, float(SIDE_PX))
    inputs = [
        StepInput(index=index, side_px_B=side_px_B, fetch=fetch, label_B=label_B) for index in range(cut.per_worker)
    ]
    learner = Learner(MagNet(settings.model, to_be_loaded=True).to(device), settings.recipe, NUM_STEPS)
    with ThreadPoolExecutor(settings.model.zoom.num_in_flight) as pool:
        for step in (NUM_STEPS - 2, NUM_STEPS - 1):
            learner.step(step, inputs, pool)


def compare(settings: TrainSettings, cut: BatchSplit, device: torch.device) -> dict[str, Any]:
    """Return the row of a micro-batch; running out of memory is a result too."""
    guess = predict_memory(settings, cut).peak_bytes
    row = {"micro_batch": cut.micro_batch, "predicted_gb": round(guess / 1e9, 3)}
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    try:
        take_last_steps(settings, cut, device)
    except (TooLargeError, torch.OutOfMemoryError):
        return row | {"out_of_memory": True}
    taken = torch.cuda.max_memory_allocated(device)
    ratio = guess / taken
    return row | {
        "measured_gb": round(taken / 1e9, 3),
        "predicted_to_measured": round(ratio, 3),
        "within_reach": abs(ratio - 1) <= TOLERANCE,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="the training's YAML file; default: the evidence preset")
    parser.add_argument("--schedule", metavar="P1,P2,...", help="regions per parent, layer by layer")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting")
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    args = parser.parse_args()
    logging.getLogger("magnet").setLevel(logging.ERROR)  # it warns of random weights, which are meant here
    schedule = [f"model.zoom.schedule=[{args.schedule}]"] if args.schedule else []
    settings = read_train_settings(args.config, [*args.set, *schedule])
    about: dict[str, Any] = {"schedule": list(settings.model.zoom.schedule), "precision": settings.recipe.precision}
    if not torch.cuda.is_available():
        reason = "this machine has no CUDA GPU: nothing is measured"
        print(json.dumps(about | {"device": None, "reason": reason}) if args.json else reason)
        return
    device = torch.device("cuda")
    about |= {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    rows = []
    for cut in list_batch_cuts(settings):
        rows.append(compare(settings, cut, device))
        if not args.json:
            print(rows[-1], flush=True)
    if args.json:
        print(json.dumps(about | {"cases": rows}))


if __name__ == "__main__":
    main()
