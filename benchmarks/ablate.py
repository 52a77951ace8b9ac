"""Which parts of the evidence recipe matter? Each taken away once, all else equal.

    python benchmarks/ablate.py [--cohort DIR] [--seeds 0,1,2,3,4] [--steps 150] [--only NAME,NAME] [--out DIR]

Trains a MagNet for each variant and seed as `learn.py` does and prints a table in Markdown: medians over seeds, the
worst seed's AUROC in brackets. Every run's figures are kept in --out; the same command again goes on with what is
missing.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from statistics import median
from typing import Any

import torch
from learn import TILE_CACHE_BYTES, say, settings_of
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


def table(runs: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown."""
    lines = ["| recipe | seeds | AUROC all (worst) | macro | micro | hit macro | hit micro | on candidates |"]
    lines.append("| --- " * 8 + "|")
    for name, found in runs.items():
        if not found:
            continue
        auroc = {group: [one["auroc"][group] for one in found] for group in ("all", "macro", "micro")}
        hits = {group: [one["hit_rate"][group] for one in found] for group in ("macro", "micro")}
        cells = [name, str(len(found)), f"{median(auroc['all']):.3f} ({min(auroc['all']):.3f})"]
        cells += [f"{median(auroc[group]):.3f}" for group in ("macro", "micro")]
        cells += [f"{median(hits[group]):.2f}" for group in ("macro", "micro")]
        cells.append(f"{median(one['on_candidates'] for one in found):.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Train what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--cohort", type=Path, help="as of learn.py")
    add("--seeds", type=lambda text: [int(word) for word in text.split(",")], default=[0, 1, 2, 3, 4])
    add("--steps", type=int, default=150, help="optimizer steps of each training (150)")
    add("--schedule", default="3,2", help="P_l, comma-separated (3,2)")
    add("--only", type=lambda text: text.split(","), default=list(VARIANTS), help="variants, by their names")
    add("--out", type=Path, default=Path("build/ablate"), help="where figures go (build/ablate)")
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
                kept = args.out / f"{re.sub(r'[^a-z]+', '-', name.lower()).strip('-')}_seed{seed}.json"
                if name in args.only and not kept.exists():
                    args.set = list(changes)
                    _, judged = magnet_arm(settings_of(args, seed), world, args.steps)
                    say(f"{name}, seed {seed}: {judged.report()}")
                    kept.write_text(json.dumps({"name": name, **judged.report()}))
                if kept.exists():
                    runs[name].append(json.loads(kept.read_text()))
    print(table(runs))


if __name__ == "__main__":
    main()
