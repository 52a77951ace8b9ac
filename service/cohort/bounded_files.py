"""Bounds of users' files, whose size says little about the memory that they take."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

MANIFEST_BYTES = 512 << 20
"""Of a manifest's file: two million slides have some 300 MB."""
OUTLINES_BYTES = 256 << 20
"""Of a GeoJSON file of outlines; parsed, it takes up to ten times as much."""
ASAP_BYTES = 64 << 20
"""Of an XML file of outlines; CAMELYON's largest has 30 MB. Parsed, it takes up to 40 times as much."""
TABLE_ROWS = 5_000_000
"""Of a Parquet table."""
CELL_CHARACTERS = 16_384
"""Of a cell of a Parquet table."""
TABLE_CHARACTERS = 1 << 30
"""Of all cells of a Parquet table."""
CHUNK_BYTES = 512 << 20
"""Of a column in a row group of a Parquet table, decompressed."""
CHUNK_VALUES = 20_000_000
"""Of the same, those in lists included."""
DECIMAL_BYTES = 32
"""Of the longest number of fixed length."""
ROWS_AT_ONCE = 1024


def parquet_rows(data: bytes) -> tuple[list[str], Iterator[dict[str, Any]]]:
    """Columns and rows of a Parquet table.

    Repeated values are stored once in such files, so that kilobytes can hold billions of cells. Texts are decoded as
    dictionaries, whose values are checked before they are repeated.

    Args:
        data: of the file.

    Raises:
        ValueError: it holds more than a table of slides can; also while rows are taken.
        pa.ArrowException, OSError: it is damaged.
    """
    about = pq.read_metadata(pa.BufferReader(data))
    _require(about.num_rows <= TABLE_ROWS, f"holds {about.num_rows:,} rows, more than {TABLE_ROWS:,}")
    schema = about.schema.to_arrow_schema()
    texts = [field.name for field in schema if _is_text(field.type)]
    for group in range(about.num_row_groups):
        for number in range(about.num_columns):
            _check_chunk(about.row_group(group).column(number), about.schema.column(number).length, texts)
    file = pq.ParquetFile(pa.BufferReader(data), read_dictionary=texts)
    return schema.names, _rows(file, about.num_rows)


def _is_text(kind: pa.DataType) -> bool:
    """Also of categories, as pandas writes them."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind)) or (
        pa.types.is_dictionary(kind) and _is_text(kind.value_type)
    )


def _check_chunk(chunk: pq.ColumnChunkMetaData, value_bytes: int, texts: list[str]) -> None:
    name, size, count = chunk.path_in_schema, chunk.total_uncompressed_size, chunk.num_values
    _require(size <= CHUNK_BYTES, f"column {name} has {size:,} bytes, more than {CHUNK_BYTES:,}")
    _require(count <= CHUNK_VALUES, f"column {name} has {count:,} values, more than {CHUNK_VALUES:,}")
    bytes_of_any_length = chunk.physical_type == "BYTE_ARRAY" or value_bytes > DECIMAL_BYTES
    _require(name in texts or not bytes_of_any_length, f"column {name} holds bytes or lists of texts; want texts")


def _rows(file: pq.ParquetFile, num_rows: int) -> Iterator[dict[str, Any]]:
    count = characters = 0
    for batch in file.iter_batches(ROWS_AT_ONCE):
        count += batch.num_rows
        _require(count <= num_rows, f"holds more rows than the {num_rows:,} that it declares")
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            if pa.types.is_dictionary(column.type) and len(column.dictionary):
                longest = pc.max(pc.binary_length(column.dictionary)).as_py() or 0
                _require(longest <= CELL_CHARACTERS, f"column {name} has a cell of {longest:,} characters")
        for row in batch.to_pylist():
            characters += sum(len(value) for value in row.values() if isinstance(value, str))
            _require(characters <= TABLE_CHARACTERS, f"holds more than {TABLE_CHARACTERS:,} characters")
            yield row


def _require(fits: bool, reason: str) -> None:
    if not fits:
        raise ValueError(reason)
