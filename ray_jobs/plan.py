"""What a schedule costs, before anything is trained: no GPU and no slides are needed.

    python -m ray_jobs.plan --config configs/default.yaml --gpu-memory 24GB

Prints nodes, patches, expected reads, parameters, the predicted peak memory of a training step for each micro-batch,
and which of them a card of this size would train with.
"""

from __future__ import annotations

import argparse

from magnet.memory import PARTS, Memory, num_parameters
from magnet.plan import TileGuess, expected_reads, warnings
from ray_jobs.command_line import command
from ray_jobs.training.fit import (
    DoesNotFitError,
    fits,
    get_first_gpu_bytes,
    list_batch_cuts,
    predict_memory,
    select_micro_batch,
)
from service import exit_status
from service.errors import UsageError
from service.settings.train import TrainSettings, train_settings


def main(arguments: list[str]) -> int:
    """The command; its exit status."""
    parser = _parser()
    if not arguments:
        parser.print_help()
        return exit_status.USAGE
    options = parser.parse_args(arguments)
    settings = train_settings(options.config, [*options.set, *schedule_override(options.schedule)])
    if options.slides_per_second is not None and not options.slides_per_second > 0:
        raise UsageError(f"--slides-per-second {options.slides_per_second}: must be above 0")
    card_gb = settings.compute.gpu_memory_gb if options.gpu_memory is None else command.gigabytes(options.gpu_memory)
    card_bytes = card_gb * 1e9 if card_gb else get_first_gpu_bytes()
    _tell_tree(settings, options.config)
    if options.slides_per_second:
        hours = 1000 / options.slides_per_second / 3600
        print(f"time: {hours:.2f} h per epoch of 1,000 slides at {options.slides_per_second:g} slides/s")
    _tell_memory(settings, card_bytes)
    for sentence in warnings(settings.model.zoom):
        print(f"warning: {sentence}")
    if card_bytes is None:
        print("no card here and none named: add --gpu-memory 24GB to see which micro-batch it would take")
        return 0
    _tell_choice(settings, card_bytes)
    return 0


def schedule_override(schedule: str | None) -> list[str]:
    """``--schedule 3,2,3`` as an override."""
    return [f"model.zoom.schedule=[{schedule}]"] if schedule else []


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="plan.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config", help="the training's YAML file; default: the evidence preset")
    add("--schedule", metavar="P1,P2,...", help="regions per parent, layer by layer, for example 3,2,3")
    add("--gpu-memory", metavar="24GB", help="of the card to plan for (default: this machine's own, if it has one)")
    add("--slides-per-second", type=float, metavar="R", help="a measured rate, for the time of an epoch")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting, e.g. recipe.precision=bf16")
    return parser


def _tell_tree(settings: TrainSettings, config: str | None) -> None:
    zoom, guess = settings.model.zoom, TileGuess()
    reads = expected_reads(zoom, guess)
    print(f"{config or 'the evidence preset'}: schedule {','.join(map(str, zoom.schedule))}")
    print(
        f"nodes per layer: {', '.join(map(str, zoom.num_nodes))}; {zoom.num_patches} last patches of {zoom.patch_px} px"
    )
    print(
        f"per slide: {reads.windows} windows ({reads.window_bytes / 1e6:.1f} MB of pixels for the device); expected "
        f"{reads.requests:.0f} requests and {reads.size_bytes / 1e6:.1f} MB, if none of the {guess.side_px} px tiles "
        f"are shared and a pixel takes {guess.bytes_per_pixel:g} bytes"
    )
    count = num_parameters(settings.model)
    parts = ", ".join(f"{name} {number:,}" for name, number in count.items() if number)
    print(f"parameters: {sum(count.values()):,} ({parts})")


def _tell_memory(settings: TrainSettings, card_bytes: float | None) -> None:
    """The table of micro-batches, row by row as they are measured."""
    recipe, workers = settings.recipe, settings.compute.num_workers
    print(
        f"predicted peak memory of a step on each worker, in GB ({recipe.precision}, batch {recipe.batch}, "
        f"{workers} worker{'s' * (workers > 1)}):"
    )
    print(
        f"{'micro-batch':>11} {'a step':>6} " + " ".join(f"{name:>{_width(name)}}" for name in PARTS) + f" {'peak':>7}"
    )
    for cut in list_batch_cuts(settings):
        memory = predict_memory(settings, cut)
        numbers = " ".join(f"{memory.parts[name] / 1e9:>{_width(name)}.2f}" for name in PARTS)
        verdict = "" if card_bytes is None else "  fits" if fits(memory.peak_bytes, card_bytes) else "  too large"
        print(
            f"{cut.micro_batch:>11} {cut.per_worker:>6} {numbers} {memory.peak_bytes / 1e9:>7.2f}{verdict}", flush=True
        )


def _tell_choice(settings: TrainSettings, card_bytes: float) -> None:
    recipe = settings.recipe
    try:
        memory: Memory = select_micro_batch(settings, card_bytes)
    except DoesNotFitError as error:
        print(f"card of {card_bytes / 1e9:.1f} GB: {error}")
        return
    print(
        f"card of {card_bytes / 1e9:.1f} GB: micro-batch {memory.micro_batch}, {recipe.batch // memory.micro_batch} of "
        f"them accumulated for the batch of {recipe.batch}; {memory.peak_bytes / 1e9:.2f} GB predicted"
    )


def _width(name: str) -> int:
    return max(len(name), 6)


if __name__ == "__main__":
    command.run(main)
