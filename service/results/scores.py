"""The table of a scored cohort: one row per slide of its manifest, in Parquet parts, then in one file and as CSV.

Parts are written as slides are done, each in one piece and under a name that its slides determine: a rerun finds what
is finished and scores only what is missing. `python -m service.results.scores` tells what each column means.
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
from service.results.spreadsheet import safe_cell

VERSION = "2"
"""Of the table's schema; in the metadata of every file. 2: refused slides, micrometres, levels, patches."""

STATUSES = ("scored", "refused", "failed")
"""What can become of a slide."""


def _column(name: str, kind: pa.DataType, what: str) -> pa.Field:
    return pa.field(name, kind, metadata={"what": what})


REGION = pa.struct(
    [
        _column("layer", pa.int8(), "0 is the root"),
        _column("parent", pa.int32(), "place of its parent in this list; null for the root"),
        _column("x_l0", pa.float64(), "left edge in level-0 pixels"),
        _column("y_l0", pa.float64(), "top edge in level-0 pixels"),
        _column("side_l0", pa.float64(), "side in level-0 pixels"),
        _column("x_um", pa.float64(), "left edge in micrometres; null where the slide tells no pixel size, as below"),
        _column("y_um", pa.float64(), "top edge in micrometres"),
        _column("width_um", pa.float64(), "width in micrometres"),
        _column("height_um", pa.float64(), "height in micrometres"),
        _column("level", pa.int8(), "level of the pyramid that was read, 0 the finest"),
        _column("downsample", pa.float32(), "level-0 pixels per pixel of the window read"),
        _column("tissue", pa.float32(), "share of what was seen that is tissue"),
        _column("value", pa.float32(), "of the map that chose it; null for the root"),
        _column("patch_probability", pa.float64(), "of a last patch by itself; null where the model has none"),
        _column("running_probability", pa.float64(), "of the slide after this last patch; null above"),
    ]
)

SCHEMA = pa.schema(
    [
        _column("slide_id", pa.string(), "as in the manifest"),
        _column("uri", pa.string(), "as in the manifest, absolute"),
        _column("patient_id", pa.string(), "as in the manifest"),
        _column("label", pa.int8(), "as in the manifest; null if unknown"),
        _column("stratum", pa.string(), "as in the manifest; null if unknown"),
        _column("etag", pa.string(), "of the slide that was read"),
        _column("size_bytes", pa.int64(), "of the slide in the store"),
        _column("width_l0", pa.int32(), "of the slide in level-0 pixels"),
        _column("height_l0", pa.int32(), "of the slide in level-0 pixels"),
        _column("mpp_x", pa.float64(), "micrometres per level-0 pixel in x; null where the slide does not tell"),
        _column("mpp_y", pa.float64(), "the same in y"),
        _column("status", pa.string(), "scored; refused: read, but not fit to be scored; failed: not readable"),
        _column("reason", pa.string(), "why it was refused or failed"),
        _column("flags", pa.list_(pa.string()), "what of a scored slide is out of scope, such as no_pixel_size"),
        _column("tissue", pa.float32(), "share of the slide that is tissue, seen by the quality gate, as are the next"),
        _column("stain", pa.float32(), "share of the tissue that has the colours of H&E"),
        _column("pen", pa.float32(), "share of pen marks in what is neither glass nor black"),
        _column("sharpness", pa.float32(), "of the tissue; 0.9 and more where it is in focus"),
        _column("probability", pa.float64(), "that the slide is positive"),
        _column("running", pa.list_(pa.float64()), "the probability after each last patch"),
        _column("ended", pa.string(), "complete; settled or bytes: ended early, last patches were left unread"),
        _column("threshold", pa.float64(), "of the model, from its validation slides"),
        _column("call", pa.int8(), "1 if the probability reaches the threshold"),
        _column("model", pa.string(), "as it was named"),
        _column("model_version", pa.string(), "in the registry"),
        _column("model_sha256", pa.string(), "of the weights"),
        _column("schedule", pa.string(), "regions per parent, layer by layer"),
        _column("frames", pa.int8(), "mirrored and rotated views of the slide whose probabilities were averaged"),
        _column("regions", pa.list_(REGION), "every region that was read, in the slide's own frame"),
        _column("num_regions", pa.int32(), "how many"),
        _column("levels", pa.list_(pa.int8()), "levels of the pyramid that the zoom read, 0 the finest"),
        _column("windows", pa.int32(), "windows read, in all frames and for the quality gate"),
        _column("bytes_read", pa.int64(), "of the slide, for quality, score and pictures"),
        _column("requests", pa.int32(), "to the store"),
        _column("read_s", pa.float64(), "seconds waited for the store, summed over threads"),
        _column("tiles", pa.int32(), "decoded"),
        _column("decode_s", pa.float64(), "seconds that took, summed over threads"),
        _column("cache_hits", pa.int32(), "tiles that were at hand, decoded"),
        _column("disk_hits", pa.int32(), "tiles and parts of headers that lay on the node's disk"),
        _column("compute_s", pa.float64(), "seconds the model computed"),
        _column("total_s", pa.float64(), "seconds from opening to row, shared with the slides in flight beside it"),
        _column("picture", pa.string(), "URI of the zoom tree"),
        _column("overlay", pa.string(), "URI of the regions on the thumbnail"),
        _column("geojson", pa.string(), "URI of the regions for QuPath"),
        _column("software", pa.string(), "versions that made the row"),
        _column("research_use_only", pa.bool_(), "always true: not for diagnosis"),
    ],
    metadata={"magnet_scores_version": VERSION},
)


class ScoresError(MagnetError):
    """Rows of a scoring are missing, doubled or of another version. To act: the message says."""


def model_words(row: Mapping[str, Any]) -> str:
    """A row's model as a reader of a report or picture wants it named."""
    return f"{row['model']}, version {row['model_version']}" if row["model_version"] else str(row["model"])


def empty_row(slide: Slide) -> dict[str, Any]:
    """What is known of a slide before it is read."""
    known = {name: getattr(slide, name) for name in ("slide_id", "uri", "patient_id", "label", "stratum")}
    return dict.fromkeys(SCHEMA.names) | known | {"research_use_only": True}


def write_part(out: str, rows: Sequence[dict[str, Any]]) -> str:
    """Publish finished rows in one piece; its URI."""
    uri = _part_uri(out, [row["slide_id"] for row in rows])
    write_table(uri, pa.Table.from_pylist(list(rows), schema=SCHEMA))
    return uri


def read_part(out: str, slide_ids: Iterable[str]) -> pa.Table | None:
    """The rows that were published of just these slides together; None if there are none."""
    uri = _part_uri(out, slide_ids)
    return _read_part(uri) if storage.exists(uri) else None


def read_parts(out: str) -> pa.Table:
    """All rows that were published under `out`.

    Raises:
        ScoresError: they are of another version.
    """
    uris = [uri for uri in storage.list_uris(storage.join(out, "parts")) if uri.endswith(".parquet")]
    tables = [_read_part(uri) for uri in sorted(uris)]
    return pa.concat_tables(tables) if tables else SCHEMA.empty_table()


def finish(out: str, slides: Iterable[Slide]) -> pa.Table:
    """Join the parts in the manifest's order as `scores.parquet` and `scores.csv`.

    Returns:
        The table, one row per slide.

    Raises:
        ScoresError: if a slide has no row or more than one, or one that is neither scored, refused nor failed.
    """
    table, wanted = read_parts(out), [slide.slide_id for slide in slides]
    count = Counter(table["slide_id"].to_pylist())
    missing = [slide_id for slide_id in wanted if count[slide_id] == 0]
    doubled = [slide_id for slide_id in wanted if count[slide_id] > 1]
    if missing or doubled:
        raise ScoresError(f"rows missing: {missing[:10]}, doubled: {doubled[:10]}; run the same command again", uri=out)
    place = {slide_id: k for k, slide_id in enumerate(table["slide_id"].to_pylist())}
    table = table.take([place[slide_id] for slide_id in wanted])
    count = status_counts(table)
    if sum(count.values()) != len(wanted):
        raise ScoresError(f"{len(wanted)} slides, but {count}: a row has another status", uri=out)
    write_table(storage.join(out, "scores.parquet"), table)
    write_csv(storage.join(out, "scores.csv"), table.drop_columns(["regions"]))
    return table


def status_counts(table: pa.Table) -> Counter[str]:
    """How many slides were scored, refused and failed."""
    found = Counter(table["status"].to_pylist())
    return Counter({status: found[status] for status in STATUSES})


def write_table(uri: str, table: pa.Table) -> None:
    """As Parquet, whole or not at all."""
    sink = io.BytesIO()
    pq.write_table(table, sink)
    storage.write_bytes(uri, sink.getvalue())


def write_csv(uri: str, table: pa.Table) -> None:
    """As CSV; lists with spaces between their items, texts that a spreadsheet would take for formulas as texts."""
    flat = table.to_pandas(integer_object_nulls=True)  # not 1.0 for a label of 1
    for field in table.schema:
        if pa.types.is_list(field.type):
            flat[field.name] = ["" if row is None else " ".join(map(_item, row)) for row in flat[field.name]]
        if pa.types.is_string(field.type):
            flat[field.name] = flat[field.name].map(safe_cell)
    storage.write_bytes(uri, flat.to_csv(index=False, lineterminator="\n").encode())


def documentation() -> str:
    """The table's columns in Markdown, made from the schema."""
    lines = [f"Version {VERSION} (`magnet_scores_version` in the file's metadata).", "", "| column | type | what |"]
    lines += ["| --- | --- | --- |", *map(_described, SCHEMA), "", "Each of `regions`:", "", "| field | type | what |"]
    return "\n".join([*lines, "| --- | --- | --- |", *map(_described, REGION)])


def _described(field: pa.Field) -> str:
    kind = "list of regions" if field.name == "regions" else str(field.type).replace("element: ", "")
    return f"| `{field.name}` | {kind} | {field.metadata[b'what'].decode()} |"


def _item(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _part_uri(out: str, slide_ids: Iterable[str]) -> str:
    name = hashlib.sha256("\n".join(slide_ids).encode()).hexdigest()[:16]
    return storage.join(out, f"parts/{name}.parquet")


def _read_part(uri: str) -> pa.Table:
    file = pq.ParquetFile(io.BytesIO(storage.read_bytes(uri)))
    version = (file.schema_arrow.metadata or {}).get(b"magnet_scores_version", b"none").decode()
    if version != VERSION:
        raise ScoresError(f"scores of version {version}, this is version {VERSION}; take a new folder", uri=uri)
    return file.read()


if __name__ == "__main__":
    print(documentation())
