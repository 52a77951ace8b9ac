"""Measures how well the features of an encoder separate tumour: a linear probe on labelled tiles of other slides.

    python benchmarks/pretrain_probe.py TILES --weights pretrained=encoder.safetensors

TILES contains tiles.csv (file, label: normal or tumor, slide, x, y) and 256 px tiles. Each tile is cut into crops, the
encoder (frozen, in evaluation mode) computes their features, a logistic regression learns to separate tumour from
normal tissue, and the score of a tile is the mean over its crops. Compared are encoders with random weights, with the
given weights files, and encoders trained with the labels of the training tiles. In slides with only one label, the
stain of a tile reveals its label: with `--colours matched` (default) all tiles have the same mean and standard
deviation of optical density per channel.

Folds: each of two groups of slides against the other one (`--groups`), and five folds in which overlapping tiles stay
together but slides do not, which favours features that identify slides. A cell contains: AUROC by tile, median over the
seeds of the encoder, (95 % interval of the middle seed), [range over the seeds].
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import Linear, functional

from magnet.encoder import Encoder, make_encoder
from magnet.metrics import auroc, auroc_interval
from magnet.pretraining import blur, restain, turn

TILE_PX = 256
FOLDS = 5
LEARNING_RATE, BATCH = 1e-3, 32

Floats = NDArray[np.float32]
Fold = tuple[NDArray[np.int64], NDArray[np.int64]]


class Tiles:
    """Labelled tiles, cut into crops."""

    def __init__(self, folder: Path, *, patch_px: int, px_per_px: int, matched: bool) -> None:
        with open(folder / "tiles.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        self.label = np.array([int(row["label"] == "tumor") for row in rows])
        self.slide = np.array([row["slide"] for row in rows])
        self.corner = np.array([[int(row["x"]), int(row["y"])] for row in rows])
        images = [np.asarray(Image.open(folder / row["file"]).convert("RGB"), np.float32) for row in rows]
        rgb: Floats = np.stack(images) / np.float32(255)
        image = torch.from_numpy(_match_colours(rgb) if matched else rgb).permute(0, 3, 1, 2)
        small = functional.avg_pool2d(image, px_per_px)
        crops = small.unfold(2, patch_px, patch_px).unfold(3, patch_px, patch_px)  # (T, C, rows, columns, H, W)
        self.crop_TNCHW = crops.flatten(2, 3).transpose(1, 2).contiguous()

    def components(self) -> NDArray[np.int64]:
        """Return a number for each tile; tiles that overlap, directly or through others, have the same one."""
        apart = np.abs(self.corner[:, None] - self.corner[None]).max(axis=-1)
        touching = (apart < TILE_PX) & (self.slide[:, None] == self.slide[None])
        reach = np.linalg.matrix_power(touching.astype(float), len(touching)) > 0
        return reach.argmax(axis=1)

    def folds(self, group: set[str]) -> dict[str, list[Fold]]:
        """Return the training and test tiles of each comparison, by its name."""
        inside = np.isin(self.slide, sorted(group))
        within, beyond = np.flatnonzero(inside), np.flatnonzero(~inside)
        components = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
        return {
            "others -> group": [(beyond, within)],
            "group -> others": [(within, beyond)],
            "components": list(components.split(self.label, self.label, self.components())),
        }


def _match_colours(rgb: Floats) -> Floats:
    """Give all tiles the mean and standard deviation of the average tile, per channel of optical density."""
    density = -np.log(np.clip(rgb, 1 / 256, 1))
    mean, spread = density.mean((1, 2), keepdims=True), density.std((1, 2), keepdims=True)
    return np.exp(-np.clip((density - mean) / spread * spread.mean(0) + mean.mean(0), 0, None)).astype(np.float32)


def probe(feature_TND: Floats, tiles: Tiles, folds: list[Fold]) -> tuple[list[int], list[float]]:
    """Train the probe on each fold; return labels and scores of the test tiles of all folds."""
    labels: list[int] = []
    scores: list[float] = []
    num_crops = feature_TND.shape[1]
    for train, test in folds:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000))
        model.fit(np.concatenate(feature_TND[train]), np.repeat(tiles.label[train], num_crops))
        margins = model.decision_function(np.concatenate(feature_TND[test])).reshape(-1, num_crops)
        labels += tiles.label[test].tolist()
        scores += margins.mean(axis=1).tolist()
    return labels, scores


@torch.inference_mode()
def compute_features(encoder: Encoder, crop_TNCHW: Tensor) -> Floats:
    """Return the features (T tiles, N crops, D) of an encoder in evaluation mode."""
    encoder.eval()
    return np.stack([encoder(crop_NCHW).numpy() for crop_NCHW in crop_TNCHW])


def train_supervised(encoder: Encoder, tiles: Tiles, train: NDArray[np.int64], steps: int, seed: int) -> Encoder:
    """Train an encoder with labels on crops of the training tiles, augmented as in pretraining; return it."""
    generator = torch.Generator().manual_seed(seed)
    head = Linear(encoder.num_features, 1)
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=LEARNING_RATE)
    label = torch.from_numpy(tiles.label).float()
    weight = torch.tensor([(label[train] == value).float().mean() for value in (1, 0)])  # the rarer label counts more
    encoder.train()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / steps)
        tile = torch.from_numpy(train)[torch.randint(len(train), (BATCH,), generator=generator)]
        which = torch.randint(tiles.crop_TNCHW.shape[1], (BATCH,), generator=generator)
        view = blur(restain(turn(tiles.crop_TNCHW[tile, which], generator), generator), generator)
        logit = head(encoder(view)).squeeze(-1)
        loss = functional.binary_cross_entropy_with_logits(logit, label[tile], weight=weight[label[tile].long()])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return encoder


def main() -> None:
    """Probe each encoder, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("tiles", type=Path, metavar="TILES", help="folder of labelled tiles")
    add(
        "--weights",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="weights of pretrained encoders; files of one name are pooled",
    )
    add("--encoder", default="test_resnet", help="any timm model (test_resnet)")
    add("--patch-px", type=int, default=64, help="side of a crop as the encoder sees it (64)")
    add("--px-per-px", type=int, default=2, help="tile pixels averaged along each side to one (2)")
    add("--colours", choices=("matched", "found"), default="matched")
    add("--groups", default="tumor_064", metavar="SLIDES", help="slides on one side of the split, comma-separated")
    add("--seeds", type=int, default=3, help="encoders of random weights, and supervised ones (3)")
    add("--supervised-steps", type=int, default=0, help="steps of training with labels for each fold (0: leave out)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    matched = args.colours == "matched"
    tiles = Tiles(args.tiles, patch_px=args.patch_px, px_per_px=args.px_per_px, matched=matched)
    comparisons = tiles.folds(set(args.groups.split(",")))
    print(f"{len(tiles.label)} tiles, {tiles.label.sum()} tumour; {len(np.unique(tiles.components()))} components")
    print(f"| {'encoder':24} | " + " | ".join(f"{name:26}" for name in comparisons) + " |")
    for name, results in _probe_all(args, tiles, comparisons):
        cells = [_format_cell([result[comparison] for result in results]) for comparison in comparisons]
        print(f"| {name:24} | " + " | ".join(f"{cell:26}" for cell in cells) + " |", flush=True)


ProbeResult = dict[str, tuple[list[int], list[float]]]
"""Labels and scores by comparison."""


def _probe_all(
    args: argparse.Namespace, tiles: Tiles, comparisons: dict[str, list[Fold]]
) -> Iterator[tuple[str, list[ProbeResult]]]:
    """Yield the name of each encoder, and its results by seed."""

    def probe_encoder(encoder: Encoder) -> ProbeResult:
        feature_TND = compute_features(encoder, tiles.crop_TNCHW)
        return {name: probe(feature_TND, tiles, folds) for name, folds in comparisons.items()}

    def make_random(seed: int) -> Encoder:
        torch.manual_seed(seed)
        return make_encoder(args.encoder, in_px=args.patch_px)

    yield "random weights", [probe_encoder(make_random(seed)) for seed in range(args.seeds)]
    files: dict[str, list[str]] = {}
    for argument in args.weights:
        name, _, file = argument.partition("=")
        files.setdefault(name, []).append(file)
    for name, paths in files.items():
        yield name, [probe_encoder(make_encoder(args.encoder, path, in_px=args.patch_px)) for path in paths]
    if args.supervised_steps:
        yield (
            "trained with labels",
            [_probe_supervised(make_random, args, tiles, comparisons, seed) for seed in range(args.seeds)],
        )


def _probe_supervised(
    make_random: Callable[[int], Encoder],
    args: argparse.Namespace,
    tiles: Tiles,
    comparisons: dict[str, list[Fold]],
    seed: int,
) -> ProbeResult:
    """Train a new encoder on the training tiles of each fold, and probe it; return labels and scores by comparison."""
    result: ProbeResult = {}
    for name, folds in comparisons.items():
        labels: list[int] = []
        scores: list[float] = []
        for train, test in folds:
            encoder = train_supervised(make_random(seed), tiles, train, args.supervised_steps, seed)
            fold_labels, fold_scores = probe(compute_features(encoder, tiles.crop_TNCHW), tiles, [(train, test)])
            labels, scores = labels + fold_labels, scores + fold_scores
        result[name] = labels, scores
    return result


def _format_cell(results: list[tuple[list[int], list[float]]]) -> str:
    """Return the median AUROC over seeds with the interval of that seed, and the range of the seeds."""
    values = [auroc(*result) for result in results]
    middle = results[int(np.argsort(values)[(len(values) - 1) // 2])]
    low, high = auroc_interval(*middle)
    return f"{median(values):.2f} ({low:.2f}-{high:.2f}) [{min(values):.2f}-{max(values):.2f}]"


if __name__ == "__main__":
    main()
