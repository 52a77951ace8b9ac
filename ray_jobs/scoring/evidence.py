"""The evidence of a score, drawn from the zoom that made it: zoom tree, overlay and GeoJSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from magnet.trace import Trace
from ray_jobs.scoring.rows import ScoredSlide
from service import storage
from service.errors import MagnetError
from service.results.geojson import to_geojson
from service.results.pictures import draw_overlay
from service.results.scores import describe_model
from service.results.zoom_tree import LayerViews, draw_zoom_tree
from service.slides.quality import THUMBNAIL_PX
from service.slides.reader_protocol import Reader
from service.slides.slide import SlideInfo


def publish(scored: ScoredSlide, row: Mapping[str, Any], reader: Reader, out: str) -> dict[str, Any]:
    """Draw the pictures of a scored slide and write them to storage.

    Args:
        scored: the slide, with a trace that kept its views.
        row: its row, with model and call.
        reader: reads the thumbnail if the quality gate did not.
        out: folder of the scoring.

    Returns:
        Columns of the row: the URIs of the files, and flags.
    """
    assert scored.zoomed is not None
    assert scored.opened.batch is not None
    trace, info = scored.zoomed.trace, scored.opened.batch.info[0]
    mpp = None if info.mpp_xy is None else float(np.mean(info.mpp_xy))
    verdict = f"{'positive' if row['call'] else 'negative'}, threshold {row['threshold']:.3f}"
    title = f"{row['slide_id']}: probability {row['probability']:.3f} ({verdict})"
    tree = draw_zoom_tree(
        to_layers(trace, info, mpp),
        row["running"],
        [int(number) for number in row["schedule"].split(",")],
        title=title,
        note=_format_note(row),
    )
    files = {"picture": ("pictures", "jpg", tree), "geojson": ("geojson", "geojson", to_geojson(row))}
    columns: dict[str, Any] = {}
    try:
        if scored.opened.quality is not None:  # the gate has read the same thumbnail already
            thumbnail = scored.opened.quality.thumbnail
        else:
            thumbnail = reader.thumbnail(row["uri"], THUMBNAIL_PX, scored.opened.batch.counters[0])
    except MagnetError:  # the score is valid without an overlay
        columns["flags"] = [*row["flags"], "no_overlay"]
    else:
        regions = [region_BN3[0] for region_BN3 in trace.regions]
        overlay = draw_overlay(thumbnail, info.size_px, regions, title=f"{title}; research use only", mpp=mpp)
        files["overlay"] = ("overlays", "jpg", overlay)
    for column, (folder, suffix, data) in files.items():
        columns[column] = storage.join(out, f"{folder}/{row['slide_id']}.{suffix}")
        storage.write_bytes(columns[column], data)
    return columns


def _format_note(row: Mapping[str, Any]) -> str:
    """Return which model drew the picture. An untrained network has no digest of its weights."""
    weights = f", weights {row['model_sha256'][:12]}" if row["model_sha256"] else ""
    return f"{describe_model(row)}{weights}; research use only"


def to_layers(trace: Trace, info: SlideInfo, mpp: float | None) -> list[LayerViews]:
    """Return what a zoom saw, layer by layer, for its picture.

    Args:
        trace: trace that kept its views.
        info: the slide's size.
        mpp: the slide's pixel size in um per pixel; None if unknown.
    """
    half_px = max(info.size_px) / 2
    return [
        LayerViews(
            views=layer.view_BNHWC[0],
            regions=layer.region_BN3[0],
            um_per_px=None
            if mpp is None
            else float(np.mean(layer.region_BN3[0, :, 0])) * 2 * half_px / layer.view_BNHWC.shape[2] * mpp,
        )
        for layer in trace.layers
        if layer.view_BNHWC is not None
    ]
