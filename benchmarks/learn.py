"""Does a MagNet learn where to look from slide labels alone? Trained and judged beside its controls.

    python benchmarks/learn.py [--cohort DIR] [--preset evidence|paper] [--schedule 3,2] [--seeds 0,1,2]
                               [--minutes M | --steps N] [--arms magnet,random_tissue,thumbnail,tiling]
                               [--set KEY=VALUE] [--out DIR] [--json]

DIR holds `manifest.csv` and `lesions.geojson` (and `decoys.geojson`), as `python -m service.synthetic` and other cohort
tools write them; without one a cohort of 600 slides of 8,192 px with decoys and no hint is made in build/. A minute is
one of CPU time of this process, which computes in one thread: what one core takes, whatever else the machine does.

The arms, all with the same encoder and head, judged on the slides of split test:

- magnet: zooms.
- random_tissue: as many boxes of the MagNet's mean sizes, their centres uniform on tissue; trained for as much time.
- thumbnail: the view that the MagNet begins with and nothing else; as many steps as the MagNet.
- tiling: every tissue tile of the size of the last boxes through the MagNet's encoder, attention over the tiles.

`hit_rate`: share of the positive slides with a last box that is covered at least 10 % by the lesion. `on_candidates`:
share of the last boxes' area on lesions and decoys, which look alike from afar. Of the first seed there are pictures:
its regions over the epochs, and zooms through held-out slides, one of them gone wrong. Every seed's figures are kept in
--out as they come; the same command again goes on with the seeds and arms that are missing.
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
    Judged,
    World,
    chance_on_candidates,
    default_cohort,
    difference,
    judge,
    magnet_arm,
    open_world,
    random_arm,
    steps_within,
    thumbnail_arm,
)
from regions_over_epochs import Diary
from tiling import tiling_arm
from zoom_pictures import draw_zooms

from magnet.zoom import MagNet
from service.settings.train import TrainSettings, train_settings
from service.slides.reader import RegionReader

ARMS = ("magnet", "random_tissue", "thumbnail", "tiling")
SMALL = ("model.zoom.patch_px=64", "model.classifier.encoder=test_resnet", "recipe.batch=16", "recipe.micro_batch=8")
"""What makes a network for one core of the presets' networks."""
TILE_CACHE_BYTES = 256 << 20


def settings_of(args: argparse.Namespace, seed: int) -> TrainSettings:
    """The preset, made small, changed by --schedule and --set."""
    words = [*SMALL, f"preset={args.preset}", f"model.zoom.schedule=[{args.schedule}]", f"recipe.seed={seed}"]
    return train_settings(None, [*words, *args.set])


def run_seed(args: argparse.Namespace, world: World, seed: int, kept: dict[str, Any]) -> dict[str, Any]:
    """The figures of all arms of one seed, those that are kept already among them."""
    settings, weights = settings_of(args, seed), args.out / f"magnet_seed{seed}.pt"
    missing = {"magnet", *args.arms} - kept.keys()
    if not missing:
        return kept
    if "magnet" in missing:
        steps = args.steps or steps_within(args.minutes, settings, world, lambda: MagNet(settings.model))
        say(f"seed {seed}: {steps} steps of {settings.recipe.batch} slides")
        diary = Diary(world, steps) if seed == args.seeds[0] else None
        model, magnet = magnet_arm(settings, world, steps, None if diary is None else diary.note)
        if diary is not None:
            diary.draw(args.out / "regions_over_epochs.png")
            draw_zooms(model, world, magnet, args.out)
        torch.save(model.state_dict(), weights)
    else:
        model, magnet = trained_magnet(settings, world, weights, kept["magnet"])
    found = {"magnet": magnet} if "magnet" in missing else {}
    if "random_tissue" in missing:
        found["random_tissue"] = random_arm(settings, world, magnet)
    if "thumbnail" in missing:
        found["thumbnail"] = thumbnail_arm(settings, world, magnet.steps)
    if "tiling" in missing:
        found["tiling"] = tiling_arm(model, world, np.mean([s[-1] for s in magnet.half_sides], axis=0).tolist(), seed)
    for name, one in found.items():
        say(f"  {name} {one.report()}")
    return kept | {
        name: one.report() | {"scores": one.scores, "labels": one.labels, "strata": one.strata}
        for name, one in found.items()
    }


def trained_magnet(settings: TrainSettings, world: World, weights: Path, kept: dict[str, Any]) -> tuple[MagNet, Judged]:
    """A MagNet of an earlier run, judged anew: the controls want its regions' sizes and its training's time."""
    model = MagNet(settings.model, to_be_loaded=True)
    model.load_state_dict(torch.load(weights, weights_only=True))
    judged = judge(model, world)
    if judged.report()["auroc"] != kept["auroc"]:
        raise SystemExit(f"{weights} is not what its figures were made with: other settings, or another cohort")
    judged.cpu_s, judged.steps = kept["cpu_minutes"] * 60, kept["steps"]
    return model, judged


def summary(runs: dict[int, dict[str, Any]], chance: float | None) -> dict[str, Any]:
    """Medians over seeds, and each seed's figures."""
    result: dict[str, Any] = {"seeds": sorted(runs)}
    for arm in ARMS:
        per_seed = [runs[seed][arm] for seed in sorted(runs) if arm in runs[seed]]
        if not per_seed:
            continue
        groups = per_seed[0]["auroc"]
        middle = sorted(per_seed, key=lambda one: one["auroc"]["all"])[len(per_seed) // 2]
        result[arm] = {
            "auroc": {name: round(median(one["auroc"][name] for one in per_seed), 4) for name in groups},
            "interval": middle["interval"],
            "auroc_all_by_seed": [one["auroc"]["all"] for one in per_seed],
            "patches_per_slide": round(float(np.mean([one["patches_per_slide"] for one in per_seed])), 1),
            "cpu_minutes": round(float(np.mean([one["cpu_minutes"] for one in per_seed])), 2),
            "steps": [one["steps"] for one in per_seed],
        }
        if "hit_rate" in per_seed[0]:
            strata = per_seed[0]["hit_rate"]
            result[arm]["hit_rate"] = {s: round(median(one["hit_rate"][s] for one in per_seed), 3) for s in strata}
            result[arm]["on_candidates"] = round(median(one["on_candidates"] for one in per_seed), 3)
        if "half_side_by_layer" in per_seed[0]:
            layers = zip(*(one["half_side_by_layer"] for one in per_seed), strict=True)
            result[arm]["half_side_by_layer"] = [round(median(sides), 4) for sides in layers]
    if chance is not None:
        result["candidates_share_of_tissue"] = round(chance, 3)
    both = [seed for seed in sorted(runs) if "random_tissue" in runs[seed]]
    if both:
        ours, others = ([_judged(runs[seed][arm]) for seed in both] for arm in ("magnet", "random_tissue"))
        result["auroc_magnet_less_random_tissue"] = difference(ours, others)
    return result


def _judged(figures: dict[str, Any]) -> Judged:
    return Judged(labels=figures["labels"], strata=figures["strata"], scores=figures["scores"])


def say(text: str) -> None:
    """A line of progress, apart from the result."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Train, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--cohort", type=Path, help="folder with manifest.csv and lesions.geojson (default: one is made in build/)")
    add("--preset", choices=("evidence", "paper"), default="evidence")
    add("--schedule", default="3,2", help="P_l, comma-separated (3,2)")
    add("--seeds", type=lambda text: [int(word) for word in text.split(",")], default=[0], metavar="0,1,2")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=float, default=4.0, help="CPU minutes of training per seed (4)")
    budget.add_argument("--steps", type=int, help="optimizer steps instead: repeats a run exactly")
    add("--arms", type=lambda text: text.split(","), default=list(ARMS[:3]), help="magnet,random_tissue,thumbnail")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="as of train.py")
    add("--out", type=Path, default=Path("build/learn"), help="where figures, weights and pictures go (build/learn)")
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
            kept = json.loads(file.read_text()) if file.exists() else {}
            runs[seed] = run_seed(args, world, seed, kept)
            part = file.with_suffix(".part")
            part.write_text(json.dumps(runs[seed]))
            part.replace(file)
        result = summary(runs, chance_on_candidates(world) if world.decoys else None)
    (args.out / "summary.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result) if args.json else "\n".join(f"{key:>32} {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
