"""The report of the planner: what a training's schedule costs, as lines of text."""

from __future__ import annotations

from magnet.memory import PARTS, count_parameters
from magnet.plan import TileAssumptions, estimate_reads, list_schedule_warnings
from ray_jobs.training.memory.fit import DoesNotFitError, fits, list_batch_cuts, predict_memory, select_micro_batch
from service.settings.train import TrainSettings

SLIDES_PER_EPOCH = 1000
"""Number of slides for which the time of an epoch is given."""


def print_plan(
    settings: TrainSettings, source: str, gpu_bytes: float | None, slides_per_second: float | None = None
) -> None:
    """Print reads, parameters, memory and the micro-batch of a training.

    Args:
        settings: settings of the training.
        source: where the settings come from.
        gpu_bytes: memory of the GPU to plan for; None: the micro-batch is not chosen.
        slides_per_second: measured rate, above 0; None: no time is printed.
    """
    _print_reads(settings, source)
    if slides_per_second:
        hours = SLIDES_PER_EPOCH / slides_per_second / 3600
        print(f"time: {hours:.2f} h per epoch of {SLIDES_PER_EPOCH:,} slides at {slides_per_second:g} slides/s")
    _print_memory(settings, gpu_bytes)
    for sentence in list_schedule_warnings(settings.model.zoom):
        print(f"warning: {sentence}")
    if gpu_bytes is None:
        print("this machine has no GPU: add --gpu-memory 24GB to see which micro-batch such a GPU would train with")
        return
    _print_choice(settings, gpu_bytes)


def _print_reads(settings: TrainSettings, source: str) -> None:
    zoom, guess = settings.model.zoom, TileAssumptions()
    reads = estimate_reads(zoom, guess)
    print(f"{source}: schedule {','.join(map(str, zoom.schedule))}")
    print(
        f"nodes per layer: {', '.join(map(str, zoom.num_nodes))}; {zoom.num_patches} last patches of {zoom.patch_px} px"
    )
    print(
        f"per slide: {reads.windows} windows ({reads.window_bytes / 1e6:.1f} MB of pixels for the device); expected "
        f"{reads.requests:.0f} requests and {reads.size_bytes / 1e6:.1f} MB, if windows share none of the "
        f"{guess.side_px} px tiles and a pixel takes {guess.bytes_per_pixel:g} bytes"
    )
    count = count_parameters(settings.model)
    parts = ", ".join(f"{name} {number:,}" for name, number in count.items() if number)
    print(f"parameters: {sum(count.values()):,} ({parts})")


def _print_memory(settings: TrainSettings, gpu_bytes: float | None) -> None:
    """Print the table of micro-batches, each row as soon as it is measured."""
    recipe, workers = settings.recipe, settings.compute.num_workers
    print(
        f"predicted peak memory of a step on each worker, in GB ({recipe.precision}, batch {recipe.batch}, "
        f"{workers} worker{'s' * (workers > 1)}):"
    )
    head = " ".join(f"{name:>{_column_width(name)}}" for name in PARTS)
    print(f"{'micro-batch':>11} {'a step':>6} {head} {'peak':>7}")
    for cut in list_batch_cuts(settings):
        memory = predict_memory(settings, cut)
        numbers = " ".join(f"{memory.parts[name] / 1e9:>{_column_width(name)}.2f}" for name in PARTS)
        verdict = "" if gpu_bytes is None else "  fits" if fits(memory.peak_bytes, gpu_bytes) else "  too large"
        print(
            f"{cut.micro_batch:>11} {cut.per_worker:>6} {numbers} {memory.peak_bytes / 1e9:>7.2f}{verdict}", flush=True
        )


def _print_choice(settings: TrainSettings, gpu_bytes: float) -> None:
    recipe = settings.recipe
    try:
        memory = select_micro_batch(settings, gpu_bytes)
    except DoesNotFitError as error:
        print(f"GPU of {gpu_bytes / 1e9:.1f} GB: {error}")
        return
    print(
        f"GPU of {gpu_bytes / 1e9:.1f} GB: micro-batch {memory.micro_batch}, {recipe.batch // memory.micro_batch} of "
        f"them accumulated for the batch of {recipe.batch}; {memory.peak_bytes / 1e9:.2f} GB predicted"
    )


def _column_width(name: str) -> int:
    return max(len(name), 6)
