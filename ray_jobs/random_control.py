"""Did looking help? A scored cohort against the same classifier on as many boxes of the same sizes, anywhere on tissue.

    python -m ray_jobs.random_control --scores OUT --outlines lesions.geojson [--seed S]

OUT is a folder that `score.py` wrote, from slides with labels; the outlines are GeoJSON in level-0 pixels with the
property slide_id. The classifier was trained on what the MagNet chose to look at: `benchmarks/learn.py` compares with
one that was trained on random boxes.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from magnet.controls import RandomTissue
from magnet.metrics import auroc_by_stratum
from magnet.regions import to_level0
from magnet.zoom import MagNet
from ray_jobs.command_line import command
from ray_jobs.models import checkpoints
from ray_jobs.training.evaluate import zooms_of
from service import storage
from service.cohort.manifest import Slide
from service.cohort.outlines import HIT, Outlines, covered, read_outlines
from service.errors import UsageError
from service.results import scores
from service.slides.reader import RegionReader


def main(arguments: list[str]) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scores", required=True, metavar="OUT", help="folder that score.py wrote, a path or URI")
    parser.add_argument("--outlines", required=True, help="GeoJSON of the lesions, a path or URI")
    parser.add_argument("--seed", type=int, default=0, help="of the boxes' places")
    options = parser.parse_args(arguments)
    out = command.absolute(options.scores)
    rows = [row for row in scores.read_parts(out).to_pylist() if row["status"] == "scored" and row["label"] is not None]
    if len({row["label"] for row in rows}) < 2:
        raise UsageError(
            "no scored slides with both labels; name a folder that score.py wrote from labelled slides", uri=out
        )
    lesions = read_outlines(options.outlines)
    trained = checkpoints.NamedModel(storage.join(out, "model"), "", "", "", 0.5).load()
    for line in compared(rows, trained, lesions, options.seed):
        print(line, flush=True)
    return 0


def compared(rows: Sequence[Mapping[str, Any]], trained: MagNet, lesions: Outlines, seed: int) -> list[str]:
    """The comparison in lines of text.

    Args:
        rows: scored, of the score table.
        trained: the model that scored them.
        lesions: outlines by slide_id.
        seed: of the boxes' places.
    """
    torch.set_num_threads(1)
    boxes = [_last_boxes(row) for row in rows]
    with RegionReader() as reader:
        side = [max(reader.info(row["uri"]).size_px) for row in rows]
        sizes = np.mean([box[:, 2] / length for box, length in zip(boxes, side, strict=True)], axis=0)
        control = RandomTissue(trained.config, sizes.tolist(), to_be_loaded=True)
        control.load_state_dict({**trained.state_dict(), "half_side_N": control.half_side_N})
        slides = [Slide(row=0, **{n: row[n] for n in ("slide_id", "uri", "patient_id", "label")}) for row in rows]
        random_boxes, random_score = [], []
        places = torch.Generator().manual_seed(seed)
        for _, batch, zoomed in zooms_of(control, slides, reader, "fp32", generator=places):
            random_boxes.append(to_level0(zoomed.trace.regions[-1][0], batch.info[0].size_px))
            random_score.append(float(zoomed.logit_B[0]))
    label, strata = [row["label"] for row in rows], [row["stratum"] or "" for row in rows]
    chosen = auroc_by_stratum(label, [row["probability"] for row in rows], strata)
    random = auroc_by_stratum(label, random_score, strata)
    lines = [_line("", "MagNet", "random tissue boxes")]
    for name in chosen:
        ours, other = (f"{a.auroc:.3f} [{a.low:.3f}, {a.high:.3f}]" for a in (chosen[name], random[name]))
        lines.append(_line(f"AUROC {name}", ours, other))
    outlined = [n for n, row in enumerate(rows) if row["label"] == 1 and row["slide_id"] in lesions]
    hits = [sum(_hit(found[n], lesions[rows[n]["slide_id"]]) for n in outlined) for found in (boxes, random_boxes)]
    ours, other = (f"{number} of {len(outlined)}" for number in hits)
    lines.append(_line("lesion found", ours, other))
    lines.append(f"(found: a last patch is covered by it to {100 * HIT:.0f} % at least; both see as many patches)")
    return lines


def _line(name: str, ours: str, other: str) -> str:
    return f"{name:<18}{ours:>24}{other:>26}"


def _last_boxes(row: Mapping[str, Any]) -> NDArray[np.float64]:
    last = max(region["layer"] for region in row["regions"])
    found = [r for r in row["regions"] if r["layer"] == last]
    return np.array([[r["x_l0"], r["y_l0"], r["side_l0"]] for r in found])


def _hit(boxes: NDArray[np.float64], lesion: Any) -> bool:
    return bool((covered(boxes, lesion) >= HIT).any())


if __name__ == "__main__":
    command.run(main)
