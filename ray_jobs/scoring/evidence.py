"""The evidence of a score, drawn from the pass that scored: zoom tree, overlay, GeoJSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from magnet.trace import Trace
from ray_jobs.scoring.rows import Scored
from service import storage
from service.errors import MagnetError
from service.results.geojson import to_geojson
from service.results.pictures import overlay_picture
from service.results.scores import model_words
from service.results.zoom_tree import Layer, zoom_tree_picture
from service.slides.quality import THUMBNAIL_PX
from service.slides.reader_protocol import Reader
from service.slides.slide import SlideInfo


def publish(scored: Scored, reader: Reader, out: str) -> dict[str, Any]:
    """Draw a scored slide and write what was drawn.

    Args:
        scored: with a trace that kept its views.
        reader: of the thumbnail, where the quality gate did not read it.
        out: folder of the scoring.

    Returns:
        Columns of the row.
    """
    assert scored.zoomed is not None
    assert scored.batch is not None
    row, trace, info = scored.row, scored.zoomed.trace, scored.batch.info[0]
    mpp = None if info.mpp_xy is None else float(np.mean(info.mpp_xy))
    verdict = f"{'positive' if row['call'] else 'negative'}, threshold {row['threshold']:.3f}"
    title = f"{row['slide_id']}: probability {row['probability']:.3f} ({verdict})"
    tree = zoom_tree_picture(
        layers_of(trace, info, mpp),
        row["running"],
        [int(word) for word in row["schedule"].split(",")],
        title=title,
        note=_note(row),
    )
    files = {"picture": ("pictures", "jpg", tree), "geojson": ("geojson", "geojson", to_geojson(row))}
    found: dict[str, Any] = {}
    try:
        if scored.quality is not None:
            thumbnail = scored.quality.thumbnail
        else:
            thumbnail = reader.thumbnail(row["uri"], THUMBNAIL_PX, scored.batch.counters[0])
    except MagnetError:  # the score stands without it
        found["flags"] = [*row["flags"], "no_overlay"]
    else:
        regions = [region_BN3[0] for region_BN3 in trace.regions]
        overlay = overlay_picture(thumbnail, info.size_px, regions, title=f"{title}; research use only", mpp=mpp)
        files["overlay"] = ("overlays", "jpg", overlay)
    for column, (folder, suffix, data) in files.items():
        found[column] = storage.join(out, f"{folder}/{row['slide_id']}.{suffix}")
        storage.write_bytes(found[column], data)
    return found


def _note(row: Mapping[str, Any]) -> str:
    """Which model it was; an untrained one has neither version nor published weights."""
    weights = f", weights {row['model_sha256'][:12]}" if row["model_sha256"] else ""
    return f"{model_words(row)}{weights}; research use only"


def layers_of(trace: Trace, info: SlideInfo, mpp: float | None) -> list[Layer]:
    """What a zoom that kept its views was shown, as its picture takes it; um per pixel from the slide's `mpp`."""
    half_px = max(info.size_px) / 2
    return [
        Layer(
            views=layer.view_BNHWC[0],
            regions=layer.region_BN3[0],
            um_per_px=None
            if mpp is None
            else float(np.mean(layer.region_BN3[0, :, 0])) * 2 * half_px / layer.view_BNHWC.shape[2] * mpp,
        )
        for layer in trace.layers
        if layer.view_BNHWC is not None
    ]
