"""Limits for users' tables and outlines, so that a small file cannot exhaust the memory.

The size of a file says little about the memory that it takes: compressed and repeated values expand, and parsed text
takes many times its bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

MANIFEST_BYTES = 512 << 20
"""Largest manifest, in bytes; two million slides take about 300 MB."""
OUTLINES_BYTES = 256 << 20
"""Largest GeoJSON file of outlines, in bytes; parsed, it takes up to ten times as much memory."""
ASAP_BYTES = 64 << 20
"""Largest ASAP XML file, in bytes; CAMELYON's largest has 30 MB. Parsed, it takes up to 40 times as much memory."""
TABLE_ROWS = 5_000_000
"""Most rows of a Parquet table."""
CELL_CHARACTERS = 16_384
"""Most characters in a cell of a Parquet table."""
TABLE_CHARACTERS = 1 << 30
"""Most characters in all cells of a Parquet table."""
CHUNK_BYTES = 512 << 20
"""Largest decompressed size of a column in a row group of a Parquet table, in bytes."""
CHUNK_VALUES = 20_000_000
"""Most values of a column in a row group, items of lists included."""
DECIMAL_BYTES = 32
"""Size of the longest number that Parquet stores with a fixed length."""
BATCH_ROWS = 1024
"""Rows that are decoded at once."""


def read_parquet_rows(data: bytes) -> tuple[list[str], Iterator[dict[str, Any]]]:
    """Read a Parquet table within limits.

    Parquet stores a repeated value once, so that a file of kilobytes can hold billions of cells. Texts are therefore
    decoded as dictionaries, whose values are checked before they are repeated.

    Args:
        data: content of the file.

    Returns:
        Names of the columns, and an iterator over the rows.

    Raises:
        ValueError: if the table exceeds a limit; also while rows are read.
        pa.ArrowException, OSError: if the file is damaged.
    """
    metadata = pq.read_metadata(pa.BufferReader(data))
    _require(metadata.num_rows <= TABLE_ROWS, f"has {metadata.num_rows:,} rows, more than {TABLE_ROWS:,}")
    schema = metadata.schema.to_arrow_schema()
    texts = [field.name for field in schema if _is_text(field.type)]
    for group in range(metadata.num_row_groups):
        for k in range(metadata.num_columns):
            _check_chunk(metadata.row_group(group).column(k), metadata.schema.column(k).length, texts)
    file = pq.ParquetFile(pa.BufferReader(data), read_dictionary=texts)
    return schema.names, _iterate_rows(file, metadata.num_rows)


def _is_text(kind: pa.DataType) -> bool:
    """Return whether a column holds texts, possibly as a dictionary, as pandas writes categories."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind)) or (
        pa.types.is_dictionary(kind) and _is_text(kind.value_type)
    )


def _check_chunk(chunk: pq.ColumnChunkMetaData, value_bytes: int, texts: list[str]) -> None:
    name, size, count = chunk.path_in_schema, chunk.total_uncompressed_size, chunk.num_values
    _require(size <= CHUNK_BYTES, f"column {name} has {size:,} bytes, more than {CHUNK_BYTES:,}")
    _require(count <= CHUNK_VALUES, f"column {name} has {count:,} values, more than {CHUNK_VALUES:,}")
    # Bytes and lists of texts are not decoded as dictionaries, so that their cells could not be checked.
    bytes_of_any_length = chunk.physical_type == "BYTE_ARRAY" or value_bytes > DECIMAL_BYTES
    _require(
        name in texts or not bytes_of_any_length, f"column {name} holds bytes or lists of texts; store texts instead"
    )


def _iterate_rows(file: pq.ParquetFile, num_rows: int) -> Iterator[dict[str, Any]]:
    count = characters = 0
    for batch in file.iter_batches(BATCH_ROWS):
        count += batch.num_rows
        # The metadata of a hostile file may contradict its data.
        _require(count <= num_rows, f"has more rows than the {num_rows:,} that it declares")
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            if pa.types.is_dictionary(column.type) and len(column.dictionary):
                longest = pc.max(pc.binary_length(column.dictionary)).as_py() or 0
                _require(
                    longest <= CELL_CHARACTERS,
                    f"column {name} has a cell of {longest:,} characters, more than {CELL_CHARACTERS:,}",
                )
        for row in batch.to_pylist():
            characters += sum(len(value) for value in row.values() if isinstance(value, str))
            _require(characters <= TABLE_CHARACTERS, f"holds more than {TABLE_CHARACTERS:,} characters")
            yield row


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise ValueError(reason)
