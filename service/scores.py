"""The table of a scored cohort: one row per slide of its manifest, in Parquet parts, then in one file and as CSV.

Parts are written as slides are done, each in one piece and under a name that its slides determine: a rerun finds what
is finished and scores only what is missing.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from service import storage
from service.errors import MagnetError
from service.manifest import Slide

VERSION = "1"
"""Of the table's schema; in the metadata of every file."""

REGION = pa.struct(
    [
        pa.field("layer", pa.int8(), metadata={"what": "0 is the root"}),
        pa.field("x_l0", pa.float64(), metadata={"what": "left edge in level-0 pixels"}),
        pa.field("y_l0", pa.float64(), metadata={"what": "top edge in level-0 pixels"}),
        pa.field("side_l0", pa.float64(), metadata={"what": "side in level-0 pixels"}),
        pa.field("downsample", pa.float32(), metadata={"what": "level-0 pixels per pixel of the window read"}),
    ]
)


def _column(name: str, kind: pa.DataType, what: str) -> pa.Field:
    return pa.field(name, kind, metadata={"what": what})


SCHEMA = pa.schema(
    [
        _column("slide_id", pa.string(), "as in the manifest"),
        _column("uri", pa.string(), "as in the manifest, absolute"),
        _column("patient_id", pa.string(), "as in the manifest"),
        _column("label", pa.int8(), "as in the manifest; null if unknown"),
        _column("stratum", pa.string(), "as in the manifest; null if unknown"),
        _column("etag", pa.string(), "of the slide that was read"),
        _column("size_bytes", pa.int64(), "of the slide in the store"),
        _column("status", pa.string(), "scored or failed"),
        _column("reason", pa.string(), "why it failed"),
        _column("probability", pa.float64(), "that the slide is positive"),
        _column("running", pa.list_(pa.float64()), "the probability after each last patch"),
        _column("threshold", pa.float64(), "of the model, from its validation slides"),
        _column("call", pa.int8(), "1 if the probability reaches the threshold"),
        _column("model", pa.string(), "as it was named"),
        _column("model_version", pa.string(), "in the registry"),
        _column("model_sha256", pa.string(), "of the weights"),
        _column("schedule", pa.string(), "regions per parent, layer by layer"),
        _column("regions", pa.list_(REGION), "every region that was read"),
        _column("num_regions", pa.int32(), "how many"),
        _column("bytes_read", pa.int64(), "of the slide, for the score and its picture"),
        _column("requests", pa.int32(), "to the store"),
        _column("read_s", pa.float64(), "seconds waited for pixels"),
        _column("total_s", pa.float64(), "seconds from opening to row"),
        _column("picture", pa.string(), "URI of the picture"),
        _column("research_use_only", pa.bool_(), "always true: not for diagnosis"),
    ],
    metadata={"magnet_scores_version": VERSION},
)


class ScoresError(MagnetError):
    """Rows of a scoring are missing or doubled. To act: the developers."""


def empty_row(slide: Slide) -> dict[str, Any]:
    """What is known of a slide before it is read."""
    known = {name: getattr(slide, name) for name in ("slide_id", "uri", "patient_id", "label", "stratum")}
    return dict.fromkeys(SCHEMA.names) | known | {"research_use_only": True}


def write_part(out: str, rows: Sequence[dict[str, Any]]) -> str:
    """Publish finished rows in one piece; its URI."""
    name = hashlib.sha256("\n".join(row["slide_id"] for row in rows).encode()).hexdigest()[:16]
    uri = storage.join(out, f"parts/{name}.parquet")
    _write_table(uri, pa.Table.from_pylist(list(rows), schema=SCHEMA))
    return uri


def read_parts(out: str) -> pa.Table:
    """All rows that were published under `out`."""
    uris = [uri for uri in storage.list_uris(storage.join(out, "parts")) if uri.endswith(".parquet")]
    tables = [pq.read_table(io.BytesIO(storage.read_bytes(uri)), schema=SCHEMA) for uri in sorted(uris)]
    return pa.concat_tables(tables) if tables else SCHEMA.empty_table()


def finish(out: str, slides: Iterable[Slide]) -> pa.Table:
    """Join the parts in the manifest's order as `scores.parquet` and `scores.csv`.

    Returns:
        The table, one row per slide.

    Raises:
        ScoresError: if a slide has no row, or more than one.
    """
    table, wanted = read_parts(out), [slide.slide_id for slide in slides]
    count = Counter(table["slide_id"].to_pylist())
    missing = [slide_id for slide_id in wanted if count[slide_id] == 0]
    doubled = [slide_id for slide_id in wanted if count[slide_id] > 1]
    if missing or doubled:
        raise ScoresError(f"rows missing: {missing[:10]}, doubled: {doubled[:10]}; run the same command again", uri=out)
    place = {slide_id: k for k, slide_id in enumerate(table["slide_id"].to_pylist())}
    table = table.take([place[slide_id] for slide_id in wanted])
    _write_table(storage.join(out, "scores.parquet"), table)
    flat = table.drop_columns(["regions"]).to_pandas(integer_object_nulls=True)  # not 1.0 for a label of 1
    flat["running"] = [" ".join(f"{p:.6g}" for p in row) if row is not None else "" for row in flat["running"]]
    storage.write_bytes(storage.join(out, "scores.csv"), _csv(flat))
    return table


def _csv(frame: pd.DataFrame) -> bytes:
    return frame.to_csv(index=False, lineterminator="\n").encode()


def _write_table(uri: str, table: pa.Table) -> None:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    storage.write_bytes(uri, sink.getvalue())
