"""Show what a schedule costs before anything is trained. Needs no GPU and no slides.

    python -m ray_jobs.plan --config configs/default.yaml --gpu-memory 24GB

Prints nodes, patches, expected reads, parameters, the predicted peak memory of a training step for each micro-batch,
and the micro-batch that a GPU of this size would train with.
"""

from __future__ import annotations

import argparse

from ray_jobs.command_line import arguments, command
from ray_jobs.training.memory.fit import get_first_gpu_bytes
from ray_jobs.training.memory.plan_report import print_plan
from service.errors import UsageError
from service.settings.train import read_train_settings


def main(argv: list[str]) -> int:
    """Run the command and return its exit status."""
    options = arguments.parse(_make_parser(), argv)
    settings = read_train_settings(options.config, arguments.to_overrides(options, "schedule"))
    if options.slides_per_second is not None and not options.slides_per_second > 0:
        raise UsageError(f"--slides-per-second {options.slides_per_second}: must be above 0")
    given = options.gpu_memory
    gpu_gb = settings.compute.gpu_memory_gb if given is None else arguments.parse_gigabytes(given)
    gpu_bytes = gpu_gb * 1e9 if gpu_gb else get_first_gpu_bytes()
    print_plan(settings, options.config or "the evidence preset", gpu_bytes, options.slides_per_second)
    return 0


def _make_parser() -> argparse.ArgumentParser:
    parser = arguments.make_parser("plan.py", __doc__)
    arguments.add_shared(parser, "--config")
    arguments.add_shared(parser, "--schedule")
    arguments.add_shared(
        parser, "--gpu-memory", help="memory of the GPU to plan for (default: that of this machine's GPU, if any)"
    )
    parser.add_argument(
        "--slides-per-second", type=float, metavar="R", help="a measured rate, to estimate the time of an epoch"
    )
    arguments.add_shared(parser, "--set", help="change any setting, for example recipe.precision=bf16; can be repeated")
    return parser


if __name__ == "__main__":
    command.run(main)
