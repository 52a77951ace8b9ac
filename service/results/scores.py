"""The table of a scored cohort: one row per slide of its manifest, in Parquet parts, then in one file and as CSV.

A scoring publishes parts while it runs. Each part is written in one piece, under a name that follows from its slides,
so that a rerun finds the finished slides and scores only the missing ones. `python -m service.results.scores` prints
what each column means.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from service import storage
from service.cohort.manifest import Slide
from service.errors import MagnetError
from service.results.spreadsheet import escape_cell

VERSION = "2"
"""Version of the table's schema, in the metadata of every file. Version 2 added refused slides, micrometres, levels and
patches."""

STATUSES = ("scored", "refused", "failed")
"""Possible results of a slide."""


def _column(name: str, kind: pa.DataType, description: str) -> pa.Field:
    return pa.field(name, kind, metadata={"what": description})


REGION = pa.struct(
    [
        _column("layer", pa.int8(), "0 is the root"),
        _column("parent", pa.int32(), "position of its parent in this list, from 0; null for the root"),
        _column("x_l0", pa.float64(), "left edge in level-0 pixels"),
        _column("y_l0", pa.float64(), "top edge in level-0 pixels"),
        _column("side_l0", pa.float64(), "side in level-0 pixels"),
        _column("x_um", pa.float64(), "left edge in micrometres; null if the slide states no pixel size, as below"),
        _column("y_um", pa.float64(), "top edge in micrometres"),
        _column("width_um", pa.float64(), "width in micrometres"),
        _column("height_um", pa.float64(), "height in micrometres"),
        _column("level", pa.int8(), "level of the pyramid that was read; 0 is the finest"),
        _column("downsample", pa.float32(), "level-0 pixels per pixel of the window read"),
        _column("tissue", pa.float32(), "share of the view that is tissue, 0 to 1"),
        _column("value", pa.float32(), "value of the map that selected the region; null for the root"),
        _column("patch_probability", pa.float64(), "probability of a last patch alone; null if the model gives none"),
        _column(
            "running_probability", pa.float64(), "probability of the slide after this last patch; null for other layers"
        ),
    ]
)
"""Fields of a region in the column `regions`."""

SCHEMA = pa.schema(
    [
        _column("slide_id", pa.string(), "as in the manifest"),
        _column("uri", pa.string(), "as in the manifest, absolute"),
        _column("patient_id", pa.string(), "as in the manifest"),
        _column("label", pa.int8(), "as in the manifest; null if unknown"),
        _column("stratum", pa.string(), "as in the manifest; null if unknown"),
        _column("etag", pa.string(), "ETag of the slide that was read"),
        _column("size_bytes", pa.int64(), "size of the slide in the store, in bytes"),
        _column("width_l0", pa.int32(), "width of the slide in level-0 pixels"),
        _column("height_l0", pa.int32(), "height of the slide in level-0 pixels"),
        _column("mpp_x", pa.float64(), "micrometres per level-0 pixel in x; null if the slide does not state it"),
        _column("mpp_y", pa.float64(), "micrometres per level-0 pixel in y; null if the slide does not state it"),
        _column("status", pa.string(), "scored; refused: read, but rejected by the quality gate; failed: not readable"),
        _column("reason", pa.string(), "why the slide was refused or failed"),
        _column(
            "flags", pa.list_(pa.string()), "properties of a scored slide that are out of scope, such as no_pixel_size"
        ),
        _column("tissue", pa.float32(), "share of the slide that is tissue, measured by the quality gate"),
        _column("stain", pa.float32(), "share of the tissue that has the colours of H&E, measured by the quality gate"),
        _column(
            "pen",
            pa.float32(),
            "share of pen marks in the area that is neither glass nor black, measured by the quality gate",
        ),
        _column(
            "sharpness", pa.float32(), "sharpness of the tissue, 0.9 and more in focus, measured by the quality gate"
        ),
        _column("probability", pa.float64(), "probability that the slide is positive"),
        _column("running", pa.list_(pa.float64()), "probability after each last patch"),
        _column("ended", pa.string(), "complete; settled or bytes: the zoom ended early and left last patches unread"),
        _column(
            "threshold", pa.float64(), "probability from which the call is positive, from the model's validation slides"
        ),
        _column("call", pa.int8(), "1 if the probability reaches the threshold"),
        _column("model", pa.string(), "name by which the model was requested"),
        _column("model_version", pa.string(), "version of the model in the registry"),
        _column("model_sha256", pa.string(), "SHA-256 of the weights"),
        _column("schedule", pa.string(), "regions per parent in each layer"),
        _column(
            "frames", pa.int8(), "number of mirrored and rotated views of the slide whose probabilities were averaged"
        ),
        _column("regions", pa.list_(REGION), "all regions that were read, in the unrotated frame of the slide"),
        _column("num_regions", pa.int32(), "number of regions"),
        _column("levels", pa.list_(pa.int8()), "levels of the pyramid that the zoom read; 0 is the finest"),
        _column("windows", pa.int32(), "number of windows read, in all frames and for the quality gate"),
        _column("bytes_read", pa.int64(), "bytes of the slide that were read for quality gate, score and pictures"),
        _column("requests", pa.int32(), "number of requests to the store"),
        _column("read_s", pa.float64(), "seconds of waiting for the store, summed over threads"),
        _column("tiles", pa.int32(), "number of tiles decoded"),
        _column("decode_s", pa.float64(), "seconds of decoding, summed over threads"),
        _column("cache_hits", pa.int32(), "number of tiles found decoded in memory"),
        _column("disk_hits", pa.int32(), "number of tiles and parts of headers found in the node's disk cache"),
        _column("compute_s", pa.float64(), "seconds of computing by the model"),
        _column("total_s", pa.float64(), "seconds from opening the slide to its row, while other slides are in flight"),
        _column("picture", pa.string(), "URI of the picture of the zoom tree"),
        _column("overlay", pa.string(), "URI of the picture of the regions on the thumbnail"),
        _column("geojson", pa.string(), "URI of the regions as GeoJSON for QuPath"),
        _column("software", pa.string(), "versions of the software that made the row"),
        _column("research_use_only", pa.bool_(), "always true: not for diagnosis"),
    ],
    metadata={"magnet_scores_version": VERSION},
)
"""Columns of the score table."""


class ScoresError(MagnetError):
    """Rows of a scoring are missing, duplicated or of another version; the message says what to do."""


def describe_model(row: Mapping[str, Any]) -> str:
    """Return the name and version of a row's model for reports and pictures."""
    return f"{row['model']}, version {row['model_version']}" if row["model_version"] else str(row["model"])


def empty_row(slide: Slide) -> dict[str, Any]:
    """Return a row that holds the slide's columns of the manifest; the others are None."""
    known = {name: getattr(slide, name) for name in ("slide_id", "uri", "patient_id", "label", "stratum")}
    return dict.fromkeys(SCHEMA.names) | known | {"research_use_only": True}


def write_part(out: str, rows: Sequence[dict[str, Any]]) -> str:
    """Write finished rows as one part, whole or not at all.

    Returns:
        URI of the part.
    """
    uri = _part_uri(out, [row["slide_id"] for row in rows])
    write_table(uri, pa.Table.from_pylist(list(rows), schema=SCHEMA))
    return uri


def read_part(out: str, slide_ids: Iterable[str]) -> pa.Table | None:
    """Return the part that holds exactly these slides in this order; None if it does not exist."""
    uri = _part_uri(out, slide_ids)
    return _read_part(uri) if storage.exists(uri) else None


def read_parts(out: str) -> pa.Table:
    """Return the rows of all parts under `out`.

    Raises:
        ScoresError: if a part has another version.
    """
    uris = [uri for uri in storage.list_uris(storage.join(out, "parts")) if uri.endswith(".parquet")]
    tables = [_read_part(uri) for uri in sorted(uris)]
    return pa.concat_tables(tables) if tables else SCHEMA.empty_table()


def join_parts(out: str, slides: Iterable[Slide]) -> pa.Table:
    """Join the parts in the manifest's order and write `scores.parquet` and `scores.csv`.

    Returns:
        The score table, one row per slide.

    Raises:
        ScoresError: if a slide has no row or several, or if a row has an unknown status.
    """
    table, slide_ids = read_parts(out), [slide.slide_id for slide in slides]
    num_rows = Counter(table["slide_id"].to_pylist())
    missing = [slide_id for slide_id in slide_ids if num_rows[slide_id] == 0]
    duplicated = [slide_id for slide_id in slide_ids if num_rows[slide_id] > 1]
    if missing or duplicated:
        problems = [f"slides without a row: {_join_ids(missing)}"] if missing else []
        problems += [f"slides with several rows: {_join_ids(duplicated)}"] if duplicated else []
        raise ScoresError(f"{'; '.join(problems)}; run the same command again", uri=out)
    row_of_slide = {slide_id: k for k, slide_id in enumerate(table["slide_id"].to_pylist())}
    table = table.take([row_of_slide[slide_id] for slide_id in slide_ids])
    status_counts = count_statuses(table)
    if sum(status_counts.values()) != len(slide_ids):
        unknown = sorted({str(status) for status in table["status"].to_pylist()} - set(STATUSES))
        raise ScoresError(f"unknown status {', '.join(unknown)}; known are {', '.join(STATUSES)}", uri=out)
    # `regions` is nested, which CSV cannot hold; Parquet and GeoJSON have it.
    write_table(storage.join(out, "scores.parquet"), table)
    write_csv(storage.join(out, "scores.csv"), table.drop_columns(["regions"]))
    return table


def _join_ids(slide_ids: Sequence[str]) -> str:
    """Return slide ids as one text, shortened after ten."""
    more = f" and {len(slide_ids) - 10} more" if len(slide_ids) > 10 else ""
    return ", ".join(slide_ids[:10]) + more


def count_statuses(table: pa.Table) -> Counter[str]:
    """Return the number of slides that were scored, refused and failed, in this order, zeros included."""
    num_by_status = Counter(table["status"].to_pylist())
    return Counter({status: num_by_status[status] for status in STATUSES})


def write_table(uri: str, table: pa.Table) -> None:
    """Write a table as Parquet, whole or not at all."""
    sink = io.BytesIO()
    pq.write_table(table, sink)
    storage.write_bytes(uri, sink.getvalue())


def write_csv(uri: str, table: pa.Table) -> None:
    """Write a table as CSV: items of lists separated by spaces, texts safe to open in a spreadsheet program."""
    # Without this option a column with nulls becomes floating point, and a label 1 is written as 1.0.
    flat = table.to_pandas(integer_object_nulls=True)
    for field in table.schema:
        if pa.types.is_list(field.type):
            flat[field.name] = ["" if row is None else " ".join(map(_format_item, row)) for row in flat[field.name]]
        if pa.types.is_string(field.type):
            flat[field.name] = flat[field.name].map(escape_cell)
    storage.write_bytes(uri, flat.to_csv(index=False, lineterminator="\n").encode())


def describe_columns() -> str:
    """Return the description of all columns in Markdown, made from the schema."""
    lines = [
        f"Version {VERSION} (`magnet_scores_version` in the file's metadata).",
        "",
        "| column | type | description |",
    ]
    lines += [
        "| --- | --- | --- |",
        *map(_describe_column, SCHEMA),
        "",
        "Each of `regions`:",
        "",
        "| field | type | description |",
    ]
    return "\n".join([*lines, "| --- | --- | --- |", *map(_describe_column, REGION)])


def _describe_column(field: pa.Field) -> str:
    kind = "list of regions" if field.name == "regions" else str(field.type).replace("element: ", "")
    return f"| `{field.name}` | {kind} | {field.metadata[b'what'].decode()} |"


def _format_item(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _part_uri(out: str, slide_ids: Iterable[str]) -> str:
    # A rerun derives the same name from the same slides, and so replaces a part instead of duplicating its rows.
    name = hashlib.sha256("\n".join(slide_ids).encode()).hexdigest()[:16]
    return storage.join(out, f"parts/{name}.parquet")


def _read_part(uri: str) -> pa.Table:
    file = pq.ParquetFile(io.BytesIO(storage.read_bytes(uri)))
    version = (file.schema_arrow.metadata or {}).get(b"magnet_scores_version", b"none").decode()
    # Columns differ between versions, so that rows of two versions cannot be joined.
    if version != VERSION:
        raise ScoresError(
            f"holds scores of version {version}, this program writes version {VERSION}; use a new folder", uri=uri
        )
    return file.read()


if __name__ == "__main__":
    print(describe_columns())
