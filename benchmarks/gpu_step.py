"""Measures a training step on a GPU: slides/s, peak memory compared with the prediction, and the time of each part.

    python benchmarks/gpu_step.py [--config C] [--batch 8] [--steps 10] [--compile both] [--json]

Runs on torch, timm and numpy alone. Windows are generated in memory, so that reading is not measured. A case is a
schedule in fp32 or bf16, with the encoder compiled or not; weights are random. A step is zoom, losses, backward pass
and Adam on one micro-batch of `--batch` slides; the result is the fastest of `--steps`, after two that are not counted.
A case that runs out of memory has a row that says so.

Without a GPU it runs a tiny network, to show that it works; the JSON then contains `"tiny": true`, and the values mean
nothing for a GPU.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from model_cost import Clock, Parts, Step, settings_of

from magnet.config import ModelConfig, RecipeConfig
from magnet.memory import predict_step_memory
from magnet.zoom import MagNet

SCHEDULES = ((3, 2, 3), (3, 2, 3, 2), (3, 2, 3, 3))
WARM_UP = 2


def make_tiny(config: ModelConfig) -> ModelConfig:
    """Return the configuration with few pixels and a small encoder."""
    zoom = replace(config.zoom, map_px=14, view_px=28, patch_px=32)
    classifier = replace(config.classifier, encoder="test_resnet")
    auxiliary = replace(config.auxiliary, encoder=config.auxiliary.encoder and "test_resnet")
    return replace(config, zoom=zoom, classifier=classifier, auxiliary=auxiliary)


def measure_s(device: torch.device, run: Callable[[], object]) -> float:
    """Return the seconds of a call, including the work that it started on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def measure_case(
    config: ModelConfig, recipe: RecipeConfig, args: argparse.Namespace, device: torch.device
) -> dict[str, Any]:
    """Measure a case; return its values by name."""
    torch.manual_seed(0)
    model = MagNet(config).to(device).train()
    step = Step(model, recipe, args.batch)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])

    def take_step() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=recipe.precision == "bf16"):
            loss = step.whole()[0]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for _ in range(WARM_UP):
        take_step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    fastest = min(measure_s(device, take_step) for _ in range(args.steps))
    result = {"slides_per_s": round(args.batch / fastest, 3), "step_s": round(fastest, 4)}
    predicted = predict_step_memory(config, recipe, args.batch, in_flight=1, accumulated=False).peak_bytes / 1e9
    result |= {"peak_gb": None, "predicted_gb": round(predicted, 3), "predicted_to_peak": None}
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 1e9
        result |= {"peak_gb": round(peak, 3), "predicted_to_peak": round(predicted / peak, 3)}
    clock = Clock(device, recipe.precision, repeats=3)
    costs = {name: clock.cost(*part) for name, part in Parts(step).all().items()}
    return result | {
        "parts": {name: {"forward_s": round(f, 5), "backward_s": round(b, 5)} for name, (f, b) in costs.items()}
    }


def run_case(
    schedule: tuple[int, ...], precision: str, compiled: bool, args: argparse.Namespace, device: torch.device
) -> dict[str, Any]:
    """Measure a case; running out of memory is a result too."""
    config, recipe = settings_of(args.config)
    config = replace(
        config,
        zoom=replace(config.zoom, schedule=schedule),
        classifier=replace(config.classifier, compile=compiled),
    )
    recipe = replace(recipe, precision=precision, batch=args.batch, micro_batch=args.batch)
    about = {"schedule": list(schedule), "precision": precision, "compiled": compiled, "batch": args.batch}
    try:
        return about | measure_case(make_tiny(config) if args.tiny else config, recipe, args, device)
    except torch.OutOfMemoryError:
        return about | {"out_of_memory": True}


def format_row(row: dict[str, Any]) -> str:
    """Return the values of a case as a line of text."""
    name = (
        f"{','.join(map(str, row['schedule'])):>9} {row['precision']} {'compiled' if row['compiled'] else 'eager':>8}"
    )
    if row.get("out_of_memory"):
        return f"{name}  out of memory"
    parts = ", ".join(f"{part} {1e3 * (t['forward_s'] + t['backward_s']):.1f}" for part, t in row["parts"].items())
    peak = "" if row["peak_gb"] is None else f"  peak {row['peak_gb']:.2f} GB"
    return f"{name}  {row['slides_per_s']:.2f} slides/s{peak}  predicted {row['predicted_gb']:.2f} GB  ms: {parts}"


def main() -> None:
    """Measure and print."""
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="YAML file; without one the evidence preset")
    parser.add_argument("--batch", type=int, default=8 if on_gpu else 2, help="slides of a step")
    parser.add_argument("--steps", type=int, default=10 if on_gpu else 2, help="steps timed")
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu")
    parser.add_argument("--compile", choices=("on", "off", "both"), default="both" if on_gpu else "off")
    parser.add_argument("--tiny", action=argparse.BooleanOptionalAction, default=not on_gpu, help="a tiny network")
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    args = parser.parse_args()
    logging.getLogger("magnet").setLevel(logging.ERROR)  # it warns of random weights, which are meant here
    device = torch.device(args.device)
    compiled = {"on": (True,), "off": (False,), "both": (False, True)}[args.compile]
    rows = []
    for case in product(SCHEDULES, ("fp32", "bf16"), compiled):
        rows.append(run_case(*case, args, device))
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if not args.json:
            print(format_row(rows[-1]), flush=True)
    if args.json:
        name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
        about = {
            "device": name,
            "tiny": args.tiny,
            "torch": torch.__version__,
            "config": str(args.config or "evidence"),
        }
        print(json.dumps(about | {"cases": rows}))


if __name__ == "__main__":
    main()
