"""Ablation of the evidence recipe: each part is removed once, with everything else unchanged.

    python benchmarks/ablate.py [--cohort DIR] [--seeds 0,1,2,3,4] [--steps 150] [--only NAME,NAME] [--out DIR]

Trains a MagNet for each variant and seed as `learn.py` does, and prints a table in Markdown: medians over seeds, and
the AUROC of the worst seed in brackets. The results of each run are written to --out; the same command continues with
the runs that are missing.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from statistics import median
from typing import Any

import torch
from learn import TILE_CACHE_BYTES, make_settings, print_progress
from learning import default_cohort, magnet_arm, open_world

from service.slides.reader import RegionReader

VARIANTS: dict[str, tuple[str, ...]] = {
    "full recipe": (),
    "conv stacks padded with zeros": ("model.locator.padding=zeros",),
    "maps as they are (no normalisation)": ("model.locator.normalise_maps=false",),
    "no tissue mask": ("model.locator.tissue_mask=false",),
    "no peak window": ("model.locator.peak_radius=null",),
    "no inhibition between siblings": ("model.locator.inhibit_siblings=false",),
    "inhibition within the regions alone": ("model.locator.inhibit_radius=0",),
    "t = tanh (not bounded)": ("model.locator.centre=tanh",),
    "hard clamp of s": ("model.locator.scale_clamp=hard",),
    "a stack per node": ("model.locator.share_stacks=node",),
    "no exploration": ("recipe.explore_until=0", "recipe.explore_end=0"),
    "values learnt at the regions' centres": ("recipe.value_at=regions",),
    "threshold at the negatives' median": ("recipe.value_quantile=0.5",),
    "locators at the classifier's rate": ("recipe.locator_learning_rate=null",),
    "theta gradient on": ("recipe.theta_gradient=on",),
    "theta gradient late": ("recipe.theta_gradient=late",),
    "theta gradient on by linearized multi-sampling": ("recipe.theta_gradient=on", "model.locator.sampler=lms"),
    "theta gradient alone by bilinear sampling": ("recipe.theta_gradient=on", "recipe.value_weight=0"),
    "theta gradient alone by linearized multi-sampling": (
        "recipe.theta_gradient=on",
        "recipe.value_weight=0",
        "model.locator.sampler=lms",
    ),
}


def make_table(runs: dict[str, list[dict[str, Any]]]) -> str:
    """Return the results as a table in Markdown."""
    lines = ["| recipe | seeds | AUROC all (worst) | macro | micro | hit macro | hit micro | on candidates |"]
    lines.append("| --- " * 8 + "|")
    for name, results in runs.items():
        if not results:
            continue
        auroc = {group: [result["auroc"][group] for result in results] for group in ("all", "macro", "micro")}
        hits = {group: [result["hit_rate"][group] for result in results] for group in ("macro", "micro")}
        cells = [name, str(len(results)), f"{median(auroc['all']):.3f} ({min(auroc['all']):.3f})"]
        cells += [f"{median(auroc[group]):.3f}" for group in ("macro", "micro")]
        cells += [f"{median(hits[group]):.2f}" for group in ("macro", "micro")]
        cells.append(f"{median(result['on_candidates'] for result in results):.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Train the variants that are missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--cohort", type=Path, help="folder of the cohort, as for learn.py")
    add("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2, 3, 4])
    add("--steps", type=int, default=150, help="optimizer steps of each training (150)")
    add("--schedule", default="3,2", help="P_l, comma-separated (3,2)")
    add("--only", type=lambda text: text.split(","), default=list(VARIANTS), help="names of variants, comma-separated")
    add("--out", type=Path, default=Path("build/ablate"), help="folder for results (build/ablate)")
    args = parser.parse_args()
    if unknown := set(args.only) - set(VARIANTS):
        parser.error(f"--only {', '.join(sorted(unknown))}: known are {', '.join(VARIANTS)}")
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    args.preset = "evidence"
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in VARIANTS}
    folder = args.cohort or default_cohort(Path("build/learn-cohort"), num_slides=600, side_px=8192, jobs=2)
    with RegionReader(tile_cache_bytes=TILE_CACHE_BYTES, num_threads=2) as reader:
        world = open_world(folder, reader)
        for seed in args.seeds:
            for name, changes in VARIANTS.items():
                file = args.out / f"{re.sub(r'[^a-z]+', '-', name.lower()).strip('-')}_seed{seed}.json"
                if name in args.only and not file.exists():
                    args.set = list(changes)
                    _, result = magnet_arm(make_settings(args, seed), world, args.steps)
                    print_progress(f"{name}, seed {seed}: {result.report()}")
                    file.write_text(json.dumps({"name": name, **result.report()}))
                if file.exists():
                    runs[name].append(json.loads(file.read_text()))
    print(make_table(runs))


if __name__ == "__main__":
    main()
