"""Pretrain a patch encoder on the slides of a manifest, without labels.

    ray job submit -- python ray_jobs/pretrain.py --manifest s3://bucket/cohort.csv --config configs/default.yaml \\
        --out s3://bucket/encoder.safetensors

For those who have neither ImageNet's nor a pathology model's weights. Works without a cluster too; uses a GPU where
there is one. The manifest lists slide_id and uri; where it has splits or labels, only the slides that train.py would
train on are looked at. The file goes into the training's config as model.classifier.weights.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from ray_jobs.command_line import command
from ray_jobs.train import SHARES
from service import exit_status
from service.cohort.manifest import Manifest, ManifestError, check_slides, load_manifest, with_splits
from service.errors import UsageError
from service.settings.train import TrainSettings, train_settings
from service.slides.reader import RegionReader


def main(arguments: list[str]) -> int:
    """The command; its exit status."""
    parser = _parser()
    if not arguments:
        parser.print_help()
        return exit_status.USAGE
    options = parser.parse_args(arguments)
    overrides = [*options.set]
    if options.seed is not None:
        overrides.append(f"recipe.seed={options.seed}")
    settings = train_settings(options.config, overrides)
    _check(options)
    manifest = _training_slides(load_manifest(options.manifest, need_labels=False), settings.recipe.seed)
    compute = settings.compute
    with RegionReader(compute.tile_cache_mb << 20, compute.reader_threads) as reader:
        print(f"{options.manifest}: {len(manifest.slides)} slides, checking that each one opens", flush=True)
        if problems := check_slides(manifest, reader):
            raise ManifestError(problems, options.manifest)
        _pretrain(options, settings, manifest, reader)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pretrain.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--manifest", required=True, help="CSV or Parquet, a path or URI (s3://, gs://, az://, https://)")
    add("--config", help="the training's YAML file: encoder, patch size and zoom; default: the evidence preset")
    add("--out", required=True, help="file of the weights, a path or URI ending in .safetensors")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=float, default=5.0, help="wall time (default 5)")
    budget.add_argument("--steps", type=int, help="optimizer steps instead: repeats a run exactly")
    add("--batch", type=int, default=64, metavar="N", help="regions per step (default 64)")
    add("--seed", type=int, help="of everything random")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting, e.g. compute.cpus_per_worker=4")
    return parser


def _check(options: argparse.Namespace) -> None:
    """Refuse what would fail only after the work. Raises `UsageError`."""
    if not options.out.endswith(".safetensors") or options.out.startswith(("http://", "https://")):
        raise UsageError(f"--out {options.out}: must be a path, s3://, gs:// or az:// URI ending in .safetensors")
    if options.batch < 2:
        raise UsageError(f"--batch {options.batch}: must be 2 or more, regions are told from each other")
    if not options.minutes > 0 or (options.steps is not None and options.steps < 1):
        raise UsageError(f"--minutes {options.minutes}, --steps {options.steps}: must be above 0")


def _training_slides(manifest: Manifest, seed: int) -> Manifest:
    """Without what a training with this seed keeps for validation and test; all slides of a mere list."""
    if any(slide.split or slide.label is not None for slide in manifest.slides):
        manifest = with_splits(manifest, seed, SHARES)
        kept = manifest.split("train")
        return replace(manifest, slides=kept)
    return manifest


def _pretrain(options: argparse.Namespace, settings: TrainSettings, manifest: Manifest, reader: RegionReader) -> None:
    import torch  # noqa: PLC0415  (takes seconds; wrong input is told before)

    from ray_jobs.pretraining.driver import Budget, Report, pretrain, save_weights  # noqa: PLC0415  (the same)

    torch.set_num_threads(settings.compute.cpus_per_worker)
    budget, out = Budget(steps=options.steps, minutes=options.minutes), command.absolute(options.out)
    report = Report(budget, options.batch)
    encoder = pretrain(settings, manifest.slides, reader, budget, batch=options.batch, after_step=report)
    digest = save_weights(encoder, out)
    print(f"wrote {settings.model.classifier.encoder} to {out}; for the training's config:")
    print(f"model:\n  classifier:\n    weights: {out}\n    weights_sha256: {digest}", flush=True)


if __name__ == "__main__":
    command.run(main)
