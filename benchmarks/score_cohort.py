"""Cost of scoring a cohort, compared with the usual pipeline on the same slides, machine and encoder.

    python benchmarks/score_cohort.py [--num-slides N] [--side-px S] [--latency-ms 30] [--config C] [--json]

Generated slides are in an object store on this machine that delays each answer by `--latency-ms`. One process scores
them as an actor of `score.py` does (quality gate, zoom, several slides in flight; no pictures). One slide is scored
before the measurement, for imports and connections. Weights are random: the figures are of cost, not of quality.

The usual pipeline takes a tissue mask from a thumbnail, encodes every 256 px tile at 20x that is at least a quarter
tissue, with the same encoder, and applies attention over the tiles. It is timed on `--tiles` tiles of one slide, spread
over its tissue, which the same reader reads in batches of 64 with one batch ahead. Time and bytes are extrapolated by
the number of tiles: reading and encoding are linear in it, and the cost of the attention is negligible.

`--sizes` adds the cost per slide by slide size, `--soak N` the memory over N slides (links to the generated ones),
`--readers N` the same slides with N reader processes of a Ray cluster (`compute.readers`) instead of threads.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
import torch
from tiling import GatedAttention, tissue_tiles

from magnet.sampler import sample
from magnet.windows import WindowRequest, Windows
from magnet.zoom import MagNet
from ray_jobs.cluster.processes import free_port, run_process
from ray_jobs.cluster.reader_actors import RemoteReader, start_readers
from ray_jobs.scoring.rows import score_slides
from service.cohort.manifest import Slide
from service.settings.train import ComputeSettings, read_train_settings
from service.slides.reader import RegionReader
from service.slides.reader_protocol import Reader
from service.synthetic.cohort import make_cohort
from service.synthetic.plan import CohortSettings

TILE_PX, TILE_MPP, BATCH = 256, 0.5, 64


def main() -> None:
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    overrides = ["model.classifier.encoder=resnet18", "model.classifier.weights=null", *options.set]
    model = MagNet(read_train_settings(options.config, overrides).model, to_be_loaded=True).eval()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary)
        sizes = sorted({options.side_px, *options.sizes})
        for side in sizes:
            num = options.num_slides if side == options.side_px else options.num_per_size
            make_cohort(folder / str(side), CohortSettings(num_slides=num, side_px=side, seed=1), jobs=2)
        _link(folder, options.side_px, options.soak)
        with _store(folder, options.latency_ms):
            result = measure(model, folder, sizes, options)
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        for name, value in result.items():
            print(f"{name:<22} {value}")


def measure(model: MagNet, folder: Path, sizes: Sequence[int], options: argparse.Namespace) -> dict[str, Any]:
    """Return all figures; the object store must be running."""
    slides = {side: _slides(folder, f"{side}/slides") for side in sizes}
    _score(model, slides[options.side_px][:1])
    main_run = _score(model, slides[options.side_px])
    tiling = _tile(model, slides[options.side_px][0], options.tiles)
    result: dict[str, Any] = {
        "what": {
            "slides": len(slides[options.side_px]),
            "side_px": options.side_px,
            "latency_ms": options.latency_ms,
            "schedule": list(model.config.zoom.schedule),
            "encoder": model.config.classifier.encoder,
            "threads": options.threads,
            "load_average": round(os.getloadavg()[0], 1),
        },
        "magnet": main_run,
        "tiling": tiling,
        "ratio_to_tiling": round(tiling["seconds_per_slide"] / main_run["seconds_per_slide"], 1),
    }
    if len(sizes) > 1:
        result["by_side_px"] = {side: _score(model, slides[side]) for side in sizes}
    if options.readers:
        result["with_readers"] = _score_with_readers(model, slides[options.side_px], options.readers)
    if options.soak:
        result["memory_mb"] = _soak(model, _slides(folder, "soak"))
    return result


def _score(model: MagNet, slides: Sequence[Slide]) -> dict[str, float]:
    """Return the cost per slide with a new reader, whose caches are empty."""
    with RegionReader() as reader:
        return _score_by(reader, model, slides)


def _score_with_readers(model: MagNet, slides: Sequence[Slide], num: int) -> dict[str, float]:
    """Return the cost per slide with reader actors; the CPU time is that of this process alone."""
    ray.init(address="local", num_cpus=num, object_store_memory=1 << 30, log_to_driver=False)
    try:
        reader = RemoteReader(start_readers(ComputeSettings(readers=num), 30), patience_s=60)
        reader.info(slides[0].uri)  # waits until they have started
        return _score_by(reader, model, slides)
    finally:
        ray.shutdown()


def _score_by(reader: Reader, model: MagNet, slides: Sequence[Slide]) -> dict[str, float]:
    started_s, started_cpu_s = time.perf_counter(), time.process_time()
    rows = [scored.row for scored in score_slides(model, slides, reader)]
    wall_s, cpu_s = time.perf_counter() - started_s, time.process_time() - started_cpu_s
    bad = [row["reason"] for row in rows if row["status"] != "scored"]
    if bad:
        raise SystemExit(f"{len(bad)} slides were not scored: {bad[0]}")
    compute_s = sum(row["compute_s"] for row in rows)
    return {
        "slides_per_hour": round(len(rows) / wall_s * 3600),
        "seconds_per_slide": round(wall_s / len(rows), 3),
        "cpu_seconds_per_slide": round(cpu_s / len(rows), 3),
        "waiting_share": round(max(0.0, 1 - compute_s / wall_s), 3),
        "megabytes_per_slide": round(float(np.mean([row["bytes_read"] for row in rows])) / 1e6, 3),
        "requests_per_slide": round(float(np.mean([row["requests"] for row in rows])), 1),
        "last_patches": len(rows[0]["running"]),
    }


@torch.inference_mode()
def _tile(model: MagNet, slide: Slide, num_tiles: int) -> dict[str, Any]:
    """Return the cost of tiling a slide, extrapolated from a sample of its tiles."""
    with RegionReader(tile_cache_bytes=0) as reader, ThreadPoolExecutor(1) as ahead:
        started_s = time.perf_counter()
        info = reader.info(slide.uri)
        assert info.mpp_xy is not None
        region = tissue_tiles(reader, slide.uri, TILE_PX * TILE_MPP / info.mpp_xy[0] / max(info.size_px))
        mask_s = time.perf_counter() - started_s
        # A tiler reads neighbouring tiles together, which share requests: whole batches of neighbours are sampled.
        starts = np.linspace(0, max(0, len(region) - BATCH), max(1, num_tiles // BATCH)).astype(int)
        batch, started_s = reader.batch([slide.uri]), time.perf_counter()

        def read(start: int) -> tuple[np.ndarray, Windows]:
            part = region[start : start + BATCH]
            return part, batch.fetch(WindowRequest(0, np.zeros(len(part), dtype=np.int64), part, TILE_PX, 0))

        features, pending = [], ahead.submit(read, int(starts[0]))
        for following in [*starts[1:].tolist(), None]:
            part, windows = pending.result()
            if following is not None:
                pending = ahead.submit(read, following)
            pixels = torch.from_numpy(windows.pixels).permute(0, 3, 1, 2).float() / 255
            view = sample(pixels, torch.from_numpy(windows.place), torch.from_numpy(part), TILE_PX, method="bilinear")
            features.append(model.encoder(view))
        feature_TD = torch.cat(features)
        GatedAttention(feature_TD.shape[1]).eval()(feature_TD)
        per_tile_s = (time.perf_counter() - started_s) / len(feature_TD)
    seconds = mask_s + per_tile_s * len(region)
    return {
        "tiles_per_slide": len(region),
        "tiles_timed": len(feature_TD),
        "extrapolated": True,
        "seconds_per_tile": round(per_tile_s, 4),
        "seconds_per_slide": round(seconds, 1),
        "slides_per_hour": round(3600 / seconds, 2),
        "megabytes_per_slide": round(batch.counters[0].bytes / len(feature_TD) * len(region) / 1e6, 1),
    }


def _soak(model: MagNet, slides: Sequence[Slide]) -> dict[str, float]:
    """Return the resident memory in MB after each quarter of a long scoring."""
    memory_mb, quarter = {}, max(1, len(slides) // 4)
    with RegionReader() as reader:
        for number, _ in enumerate(score_slides(model, slides, reader), start=1):
            if number % quarter == 0:
                memory_mb[f"after_{number}"] = round(psutil.Process().memory_info().rss / 1e6, 1)
    return memory_mb


def _slides(folder: Path, below: str) -> list[Slide]:
    names = sorted(path.name for path in (folder / below).iterdir())
    return [
        Slide(row=row, slide_id=name.partition(".")[0], uri=f"s3://bucket/{below}/{name}", patient_id=name)
        for row, name in enumerate(names, start=1)
    ]


def _link(folder: Path, side_px: int, num: int) -> None:
    """Create many links to the generated slides: a long scoring needs many slides, but little disk space."""
    slides = sorted((folder / str(side_px) / "slides").iterdir())
    (folder / "soak").mkdir(exist_ok=True)
    for number in range(num):
        link = folder / "soak" / f"s{number:05d}.tif"
        if not link.exists():
            os.link(slides[number % len(slides)], link)


@contextmanager
def _store(folder: Path, latency_ms: float) -> Iterator[None]:
    """Serve a folder as `s3://bucket/` from a separate process, with a delay, while the context lasts."""
    port = free_port()
    argv = [sys.executable, "-m", "service.testing.fake_store", str(folder), "--latency-ms", str(latency_ms)]
    with run_process([*argv, "--port", str(port)], log=None, cwd=Path(__file__).parents[1]) as process:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if process.poll() is not None:
                    raise SystemExit("the object store did not start") from None
                time.sleep(0.1)
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}
        os.environ |= keys | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
        yield


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-slides", type=int, default=8)
    parser.add_argument(
        "--side-px", type=int, default=65_536, help="side of the slides in pixels (default: 65536, 4 gigapixels)"
    )
    parser.add_argument("--latency-ms", type=float, default=30)
    parser.add_argument("--config", help="config of a training (default: the evidence preset)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change any setting of the training"
    )
    parser.add_argument("--tiles", type=int, default=256, help="number of tiles to time in the usual pipeline")
    parser.add_argument("--sizes", type=int, nargs="*", default=[], help="more sides in pixels")
    parser.add_argument("--num-per-size", type=int, default=8)
    parser.add_argument("--soak", type=int, default=0, help="number of slides over which memory is measured")
    parser.add_argument("--readers", type=int, default=0, help="number of reader processes to compare with")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", help="folder in which the slides are created and kept")
    parser.add_argument("--json", action="store_true")
    return parser


if __name__ == "__main__":
    main()
