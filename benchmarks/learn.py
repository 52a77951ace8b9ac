"""Trains a MagNet from slide labels alone, and compares it with controls: does it learn where to look?

    python benchmarks/learn.py [--cohort DIR] [--preset evidence|paper] [--schedule 3,2] [--seeds 0,1,2]
                               [--minutes M | --steps N] [--arms magnet,random_tissue,thumbnail,tiling]
                               [--set KEY=VALUE] [--out DIR] [--json]

DIR contains `manifest.csv` and `lesions.geojson` (and `decoys.geojson`), as `python -m service.synthetic` and other
cohort tools write them; by default a cohort of 600 slides of 8,192 px with decoys and no hint is generated in build/. A
minute is CPU time of this process, which computes in one thread: it does not depend on other processes.

The arms, all with the same encoder and head, are evaluated on the slides of split test:

- magnet: the zoom.
- random_tissue: as many boxes with the mean sizes of the MagNet's, their centres uniform on tissue; trained for the
  same time.
- thumbnail: only the view that the MagNet starts with; as many steps as the MagNet.
- tiling: all tissue tiles of the size of the last boxes, through the MagNet's encoder, with attention over the tiles.

`hit_rate` is the share of the positive slides with a last box of which the lesion covers at least 10 %. `on_candidates`
is the share of the last boxes' area on lesions and decoys, which look the same at low magnification. For the first seed
there are figures: its regions over the epochs, and zooms into held-out slides, one of them wrong. The results of each
seed are written to --out when it ends; the same command continues with the seeds and arms that are missing.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from learning import (
    ArmResult,
    World,
    chance_on_candidates,
    default_cohort,
    difference,
    evaluate_model,
    magnet_arm,
    open_world,
    random_arm,
    steps_within,
    thumbnail_arm,
)
from regions_over_epochs import RegionHistory
from tiling import tiling_arm
from zoom_pictures import draw_zooms

from magnet.zoom import MagNet
from service.settings.train import TrainSettings, read_train_settings
from service.slides.reader import RegionReader

ARMS = ("magnet", "random_tissue", "thumbnail", "tiling")
SMALL = ("model.zoom.patch_px=64", "model.classifier.encoder=test_resnet", "recipe.batch=16", "recipe.micro_batch=8")
"""Settings that make the networks of the presets small enough for one core."""
TILE_CACHE_BYTES = 256 << 20


def make_settings(args: argparse.Namespace, seed: int) -> TrainSettings:
    """Return the preset, made small, with the changes of --schedule and --set."""
    overrides = [*SMALL, f"preset={args.preset}", f"model.zoom.schedule=[{args.schedule}]", f"recipe.seed={seed}"]
    return read_train_settings(None, [*overrides, *args.set])


def run_seed(args: argparse.Namespace, world: World, seed: int, earlier: dict[str, Any]) -> dict[str, Any]:
    """Run the missing arms of a seed; return the results of all arms.

    Args:
        args: command line.
        world: the cohort.
        seed: seed of the trainings.
        earlier: results of the arms that an earlier run completed.
    """
    settings, weights = make_settings(args, seed), args.out / f"magnet_seed{seed}.pt"
    missing = {"magnet", *args.arms} - earlier.keys()
    if not missing:
        return earlier
    if "magnet" in missing:
        steps = args.steps or steps_within(args.minutes, settings, world, lambda: MagNet(settings.model))
        print_progress(f"seed {seed}: {steps} steps of {settings.recipe.batch} slides")
        history = RegionHistory(world, steps) if seed == args.seeds[0] else None
        model, magnet = magnet_arm(settings, world, steps, None if history is None else history.record)
        if history is not None:
            history.draw(args.out / "regions_over_epochs.png")
            draw_zooms(model, world, magnet, args.out)
        torch.save(model.state_dict(), weights)
    else:
        model, magnet = load_magnet(settings, world, weights, earlier["magnet"])
    results = {"magnet": magnet} if "magnet" in missing else {}
    if "random_tissue" in missing:
        results["random_tissue"] = random_arm(settings, world, magnet)
    if "thumbnail" in missing:
        results["thumbnail"] = thumbnail_arm(settings, world, magnet.steps)
    if "tiling" in missing:
        results["tiling"] = tiling_arm(model, world, np.mean([s[-1] for s in magnet.half_sides], axis=0).tolist(), seed)
    for name, result in results.items():
        print_progress(f"  {name} {result.report()}")
    return earlier | {
        name: result.report() | {"scores": result.scores, "labels": result.labels, "strata": result.strata}
        for name, result in results.items()
    }


def load_magnet(
    settings: TrainSettings, world: World, weights: Path, earlier: dict[str, Any]
) -> tuple[MagNet, ArmResult]:
    """Load the MagNet of an earlier run and evaluate it again: the controls need the sizes of its regions."""
    model = MagNet(settings.model, to_be_loaded=True)
    model.load_state_dict(torch.load(weights, weights_only=True))
    result = evaluate_model(model, world)
    if result.report()["auroc"] != earlier["auroc"]:
        raise SystemExit(
            f"{weights} does not give the AUROC of its earlier results: the settings or the cohort have changed; "
            f"use another --out"
        )
    result.cpu_s, result.steps = earlier["cpu_minutes"] * 60, earlier["steps"]
    return model, result


def summarise(runs: dict[int, dict[str, Any]], chance: float | None) -> dict[str, Any]:
    """Return medians over seeds, and the AUROC of each seed.

    Args:
        runs: results by seed and arm.
        chance: share of lesions and decoys in the tissue, 0 to 1; None: there are no decoys.
    """
    result: dict[str, Any] = {"seeds": sorted(runs)}
    for arm in ARMS:
        per_seed = [runs[seed][arm] for seed in sorted(runs) if arm in runs[seed]]
        if not per_seed:
            continue
        groups = per_seed[0]["auroc"]
        middle = sorted(per_seed, key=lambda run: run["auroc"]["all"])[len(per_seed) // 2]
        result[arm] = {
            "auroc": {name: round(median(run["auroc"][name] for run in per_seed), 4) for name in groups},
            "interval": middle["interval"],
            "auroc_all_by_seed": [run["auroc"]["all"] for run in per_seed],
            "patches_per_slide": round(float(np.mean([run["patches_per_slide"] for run in per_seed])), 1),
            "cpu_minutes": round(float(np.mean([run["cpu_minutes"] for run in per_seed])), 2),
            "steps": [run["steps"] for run in per_seed],
        }
        if "hit_rate" in per_seed[0]:
            strata = per_seed[0]["hit_rate"]
            result[arm]["hit_rate"] = {s: round(median(run["hit_rate"][s] for run in per_seed), 3) for s in strata}
            result[arm]["on_candidates"] = round(median(run["on_candidates"] for run in per_seed), 3)
        if "half_side_by_layer" in per_seed[0]:
            layers = zip(*(run["half_side_by_layer"] for run in per_seed), strict=True)
            result[arm]["half_side_by_layer"] = [round(median(sides), 4) for sides in layers]
    if chance is not None:
        result["candidates_share_of_tissue"] = round(chance, 3)
    both = [seed for seed in sorted(runs) if "random_tissue" in runs[seed]]
    if both:
        ours, others = ([_result(runs[seed][arm]) for seed in both] for arm in ("magnet", "random_tissue"))
        result["auroc_magnet_less_random_tissue"] = difference(ours, others)
    return result


def _result(figures: dict[str, Any]) -> ArmResult:
    """Return the scores of an arm as its results have them."""
    return ArmResult(labels=figures["labels"], strata=figures["strata"], scores=figures["scores"])


def print_progress(text: str) -> None:
    """Print a line of progress on stderr; the results go to stdout."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Train, evaluate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--cohort", type=Path, help="folder with manifest.csv and lesions.geojson (default: one is generated in build/)"
    )
    add("--preset", choices=("evidence", "paper"), default="evidence")
    add("--schedule", default="3,2", help="P_l, comma-separated (3,2)")
    add("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0], metavar="0,1,2")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=float, default=4.0, help="CPU minutes of training per seed (4)")
    budget.add_argument("--steps", type=int, help="optimizer steps instead: repeats a run exactly")
    add("--arms", type=lambda text: text.split(","), default=list(ARMS[:3]), help="magnet,random_tissue,thumbnail")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting, as for train.py")
    add("--out", type=Path, default=Path("build/learn"), help="folder for results, weights and figures (build/learn)")
    add("--json", action="store_true", help="print JSON instead of lines")
    args = parser.parse_args()
    if unknown := set(args.arms) - set(ARMS):
        parser.error(f"--arms {', '.join(sorted(unknown))}: known are {', '.join(ARMS)}")
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    folder = args.cohort or default_cohort(Path("build/learn-cohort"), num_slides=600, side_px=8192, jobs=2)
    runs: dict[int, dict[str, Any]] = {}
    with RegionReader(tile_cache_bytes=TILE_CACHE_BYTES, num_threads=2) as reader:
        world = open_world(folder, reader)
        for seed in args.seeds:
            file = args.out / f"seed{seed}.json"
            earlier = json.loads(file.read_text()) if file.exists() else {}
            runs[seed] = run_seed(args, world, seed, earlier)
            part = file.with_suffix(".part")
            part.write_text(json.dumps(runs[seed]))
            part.replace(file)
        result = summarise(runs, chance_on_candidates(world) if world.decoys else None)
    (args.out / "summary.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result) if args.json else "\n".join(f"{key:>32} {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
