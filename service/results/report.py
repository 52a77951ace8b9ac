"""A scored cohort as one HTML file that needs nothing else: figures, gallery, refused and failed slides, costs.

Pictures are linked, seen from the folder of the scoring; the first slides' are shown, small, within the file.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from html import escape
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
from PIL import Image

from service import storage
from service.errors import NotFoundError
from service.results.froc import RATES
from service.results.localisation import Localisation
from service.results.pictures import FOOT_PX, GAP_PX, HEAD_PX
from service.results.report_style import STYLE
from service.results.scores import model_words
from service.results.summary import Findings

SHOWN, SHOWN_PX = 48, 260
"""Slides of the gallery, those with the highest probabilities, and the longer side of their thumbnails."""
LISTED = 2000
"""Rows of a table in the file; the score table has them all."""


def report(table: pa.Table, found: Findings, out: str) -> bytes:
    """The report.

    Args:
        table: complete.
        found: its figures.
        out: folder of the scoring; its overlays become the gallery.
    """
    rows = table.drop_columns(["regions"]).to_pylist()
    scored = sorted(
        (row for row in rows if row["status"] == "scored"), key=lambda row: (-row["probability"], row["slide_id"])
    )
    parts = [
        f"<h1>{found.num_slides:,} slides, scored with {escape(_model(rows))}</h1>",
        "<p class='warn'>For research use only. Not a medical device, not for diagnosis.</p>",
        _tiles(found),
        *(_quality_of_scores(found) if found.auroc else []),
        *(_localised(found.localisation) if found.localisation else []),
        _histogram(scored) if scored else "",
        _gallery(scored, out) if scored else "",
        _unscored([row for row in rows if row["status"] != "scored"]),
        *(_early(found) if found.early else []),
        _costs(found),
        _ranking(scored) if scored else "",
        _settings(rows),
    ]
    page = f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>MagNet scores</title>{STYLE}</head>"
    return f"{page}<body><main>{''.join(parts)}</main></body></html>".encode()


def _model(rows: Sequence[Mapping[str, Any]]) -> str:
    known = next((row for row in rows if row["model"]), None)
    return "no model" if known is None else model_words(known)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells are HTML."""
    cells = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<div class='wide'><table><tr>{''.join(f'<th>{name}</th>' for name in head)}</tr>{cells}</table></div>"


def _tiles(found: Findings) -> str:
    """The figures that everybody asks for first."""
    figures = [(f"{count:,}", status) for status, count in found.count.items()]
    if "all" in found.auroc:
        figures.append((f"{found.auroc['all'].auroc:.3f}", "AUROC"))
    if found.slides_per_hour is not None:
        figures.append((f"{found.slides_per_hour:,.0f}", "slides per hour"))
    if found.mean:
        figures.append((f"{found.mean['bytes_read'] / 1e6:.2f} MB", "read per slide"))
    return f"<div class='tiles'>{''.join(f'<div><b>{value}</b>{name}</div>' for value, name in figures)}</div>"


def _quality_of_scores(found: Findings) -> list[str]:
    rows = [
        (
            escape(name),
            f"{one.auroc:.3f}",
            f"{one.low:.3f} to {one.high:.3f}",
            str(one.num_positive),
            str(one.num_negative),
        )
        for name, one in found.auroc.items()
    ]
    head = ("positives", "AUROC", "95 % interval", "positive slides", "negative slides")
    return ["<h2>How well the scores tell positives from negatives</h2>", _table(head, rows)]


def _localised(found: Localisation) -> list[str]:
    layers = [
        (
            f"layer {one.layer}",
            f"{one.share:.1%}",
            "unknown" if one.um_per_px is None else f"{one.um_per_px:.2f} &micro;m",
        )
        for one in found.seen
    ]
    curve = zip(RATES, found.froc.sensitivity, strict=True)
    return [
        "<h2>Where it looked, judged by the lesions' outlines</h2>",
        f"<p>On {found.hits} of {found.num_slides} slides with a lesion a last patch shows it (is covered by it for "
        f"a tenth or more). FROC score over {found.froc.num_slides} slides and {found.froc.num_lesions} lesions: "
        f"<b>{found.froc.score:.3f}</b>, the mean sensitivity of:</p>",
        _table(("false alarms per slide", "lesions found"), [(f"{rate:g}", f"{share:.1%}") for rate, share in curve]),
        _table(("seen by", "share of the lesions' area", "pixel size read (median)"), layers),
    ]


def _histogram(scored: Sequence[Mapping[str, Any]]) -> str:
    """Probabilities in 20 bins, an SVG; positives on top where labels are known."""
    edges = np.linspace(0, 1, 21)
    kinds = [("known positive", "pos", 1), ("known negative", "neg", 0), ("no label", "un", None)]
    counts = {
        css: np.histogram([row["probability"] for row in scored if row["label"] == label], edges)[0]
        for _, css, label in kinds
    }
    highest = max(1, int(sum(counts.values()).max()))  # type: ignore[union-attr]  # of arrays, an array
    bars = []
    for k in range(20):
        base = 150.0
        for _, css, _ in kinds:
            height = 130 * counts[css][k] / highest
            base -= height
            if height:
                bars.append(
                    f"<rect class='{css}' x='{40 + 32 * k}' y='{base:.1f}' width='30' height='{height:.1f}'>"
                    f"<title>{edges[k]:.2f} to {edges[k + 1]:.2f}: {counts[css][k]}</title></rect>"
                )
    threshold = scored[0]["threshold"]
    ticks = "".join(f"<text x='{40 + 640 * p:.0f}' y='168' class='mid'>{p:g}</text>" for p in (0, 0.25, 0.5, 0.75, 1))
    line = 40 + 640 * threshold
    legend = "".join(
        f"<span><i class='{css}'></i>{name}: {int(counts[css].sum())}</span>"
        for name, css, _ in kinds
        if counts[css].any()
    )
    return (
        f"<h2>Probabilities</h2><svg viewBox='0 0 700 176' role='img' aria-label='histogram of probabilities'>"
        f"<text x='34' y='28' class='end'>{highest}</text><text x='34' y='152' class='end'>0</text>{''.join(bars)}"
        "<line x1='40' x2='680' y1='150' y2='150'/>"
        f"<line class='thr' x1='{line:.0f}' x2='{line:.0f}' y1='14' y2='150'/>"
        f"<text x='{line:.0f}' y='11' class='mid'>threshold {threshold:.3f}</text>{ticks}</svg>"
        f"<p class='legend'>{legend}</p>"
    )


def _gallery(scored: Sequence[Mapping[str, Any]], out: str) -> str:
    shown = [row for row in scored[:SHOWN] if row["overlay"]]
    if not shown:
        return ""
    with ThreadPoolExecutor(8) as pool:
        thumbnails = list(pool.map(lambda row: _thumbnail(row["overlay"]), shown))
    cards = "".join(
        f"<figure><a href='{_link(row, 'picture')}'><img alt='{escape(row['slide_id'])}' src='{image}'></a>"
        f"<figcaption><b>{row['probability']:.3f}</b> {escape(row['slide_id'])}{_known(row)}<br>{_links(row)}"
        "</figcaption></figure>"
        for row, image in zip(shown, thumbnails, strict=True)
    )
    return f"<h2>The {len(shown)} highest, with the regions looked at</h2><div class='gallery'>{cards}</div>"


def _thumbnail(uri: str) -> str:
    """An overlay without its text, small, as a data URI; empty where it is gone."""
    try:
        data = storage.read_bytes(uri)
    except NotFoundError:
        return ""
    with Image.open(io.BytesIO(data)) as image:
        small = image.crop((0, HEAD_PX - GAP_PX, image.width, image.height - FOOT_PX + GAP_PX))  # the slide alone
        small.thumbnail((SHOWN_PX, SHOWN_PX), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=72, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _known(row: Mapping[str, Any]) -> str:
    if row["label"] is None:
        return ""
    return f" <small>({escape(row['stratum'] or ('positive' if row['label'] else 'negative'))})</small>"


def _link(row: Mapping[str, Any], column: str) -> str:
    """To a file of the scoring, as seen from the report."""
    folder, _, name = row[column].rpartition("/")
    return escape(quote(f"{folder.rpartition('/')[2]}/{name}"), quote=True)


def _links(row: Mapping[str, Any]) -> str:
    names = (("picture", "zoom tree"), ("overlay", "overlay"), ("geojson", "GeoJSON"))
    return " ".join(f"<a href='{_link(row, column)}'>{name}</a>" for column, name in names if row[column])


def _unscored(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "<h2>Refused and failed</h2><p>None.</p>"
    listed = sorted(rows, key=lambda row: (row["status"], row["slide_id"]))[:LISTED]
    cells = [(row["status"], escape(row["slide_id"]), escape(row["reason"])) for row in listed]
    note = "Refused: read, but not fit to be scored. Failed: could not be read."
    return f"<h2>Refused and failed: {len(rows):,}</h2><p>{note}</p>{_table(('status', 'slide', 'reason'), cells)}"


def _early(found: Findings) -> list[str]:
    rows = [
        (
            f"{one.eps:g}",
            f"{1 - one.patches:.0%}",
            str(one.changed_calls),
            "" if one.auroc is None else f"{one.auroc:.3f}",
        )
        for one in found.early
    ]
    whole = f"{found.auroc['all'].auroc:.3f}" if "all" in found.auroc else ""
    rows.insert(0, ("read whole", "0%", "0", whole))
    return [
        "<h2>What stopping early would have done</h2>",
        "<p>Had each slide ended once its probability moved no more than EPS (<code>--stop-when-settled</code>):</p>",
        _table(("EPS", "last patches saved", "calls changed", "AUROC"), rows),
    ]


def _costs(found: Findings) -> str:
    rows = [
        ("slides read by this run", f"{found.num_new:,} in {found.seconds:,.0f} s"),
        ("read in all", f"{found.total_bytes / 1e9:,.3f} GB in {found.total_requests:,} requests"),
    ]
    if found.mean:
        mean = found.mean
        share = mean["bytes_read"] / mean["size_bytes"]
        rows += [
            (
                "read per slide",
                f"{mean['bytes_read'] / 1e6:.2f} MB of {mean['size_bytes'] / 1e6:,.1f} MB ({share:.1%})",
            ),
            ("requests per slide", f"{mean['requests']:.0f}"),
            ("windows per slide", f"{mean['windows']:.0f}"),
            ("seconds per slide", f"{mean['compute_s']:.2f} computing, {mean['read_s']:.2f} waiting in all threads"),
            ("last patches read", f"{found.patches:.0%} of those planned"),
        ]
    return f"<h2>Costs</h2>{_table(('what', 'how much'), rows)}"


def _ranking(scored: Sequence[Mapping[str, Any]]) -> str:
    head = ("slide", "patient", "probability", "call", "label", "flags", "files")
    cells = [
        (
            escape(row["slide_id"]),
            escape(row["patient_id"]),
            f"{row['probability']:.4f}",
            "positive" if row["call"] else "negative",
            "" if row["label"] is None else str(row["label"]),
            escape(" ".join(row["flags"])),
            _links(row),
        )
        for row in scored[:LISTED]
    ]
    more = f"<p>The first {LISTED:,}; all are in scores.csv.</p>" if len(scored) > LISTED else ""
    return f"<h2>All scored slides, by probability</h2>{more}{_table(head, cells)}"


def _settings(rows: Sequence[Mapping[str, Any]]) -> str:
    known = next((row for row in rows if row["model_sha256"]), None)
    if known is None:
        return ""
    text = f"Weights {known['model_sha256']}, schedule {known['schedule']}; {known['software']}."
    columns = "python -m service.results.scores"
    return f"<footer>{escape(text)} Settings: settings.json; what the columns mean: {columns}</footer>"
