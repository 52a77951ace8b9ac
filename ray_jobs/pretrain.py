"""Pretrain a patch encoder on the slides of a manifest, without labels.

    ray job submit -- python ray_jobs/pretrain.py --manifest s3://bucket/cohort.csv --config configs/default.yaml \\
        --out s3://bucket/encoder.safetensors

This is for users who have neither ImageNet weights nor those of a pathology model. It also works without a cluster, and
uses a GPU if there is one. The manifest lists slide_id and uri. If it has splits or labels, only the slides that
train.py would train on are used. Set model.classifier.weights of the training's config to the resulting file.
"""

from __future__ import annotations

import argparse

from ray_jobs.command_line import arguments, command, manifests, paths
from service.errors import UsageError
from service.settings.train import read_train_settings


def main(argv: list[str]) -> int:
    """Run the command and return its exit status."""
    options = arguments.parse(_make_parser(), argv)
    settings = read_train_settings(options.config, arguments.to_overrides(options, "seed"))
    _require_valid(options)
    manifest = manifests.load_for_pretraining(options.manifest, settings.recipe.seed)
    # Importing torch takes seconds; wrong input is reported before.
    from ray_jobs.pretraining.job import pretrain_to_file  # noqa: PLC0415

    pretrain_to_file(
        settings,
        manifest,
        steps=options.steps,
        minutes=options.minutes,
        batch=options.batch,
        out=paths.to_absolute(options.out),
    )
    return 0


def _make_parser() -> argparse.ArgumentParser:
    parser = arguments.make_parser("pretrain.py", __doc__)
    arguments.add_shared(parser, "--manifest", required=True)
    arguments.add_shared(
        parser,
        "--config",
        help="YAML file of the training: encoder, patch size and zoom (default: the evidence preset)",
    )
    add = parser.add_argument
    add("--out", required=True, help="file for the weights, a path or URI ending in .safetensors")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=float, default=5.0, help="wall time (default: 5)")
    budget.add_argument("--steps", type=int, help="number of optimizer steps, which makes a run exactly repeatable")
    add("--batch", type=int, default=64, metavar="N", help="regions per step (default: 64)")
    arguments.add_shared(parser, "--seed")
    arguments.add_shared(
        parser, "--set", help="change any setting, for example compute.cpus_per_worker=4; can be repeated"
    )
    return parser


def _require_valid(options: argparse.Namespace) -> None:
    """Refuse options that would fail only after the training. Raises `UsageError`."""
    if not options.out.endswith(".safetensors") or options.out.startswith(("http://", "https://")):
        raise UsageError(f"--out {options.out}: must be a path, s3://, gs:// or az:// URI ending in .safetensors")
    if options.batch < 2:
        raise UsageError(f"--batch {options.batch}: must be 2 or more: each region is compared with the others")
    if not options.minutes > 0 or (options.steps is not None and options.steps < 1):
        raise UsageError(f"--minutes {options.minutes}, --steps {options.steps}: must be above 0")


if __name__ == "__main__":
    command.run(main)
