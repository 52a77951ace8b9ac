"""Reference pages of the manifest, the score table, exit statuses and environment variables."""

from __future__ import annotations

import importlib
import inspect
import re

import pyarrow as pa

from docs.tools.markdown import prose, table
from service.cohort.manifest_table import COLUMNS, STRATA
from service.cohort.splits import SPLITS
from service.results import scores

_VARIABLES = re.compile(r"^\| ([A-Z][A-Z0-9_*]{3,}(?:, [A-Z0-9_*.]+)*) \|", re.MULTILINE)

MANIFEST_USES = {
    "slide_id": ("all", "Name of the slide's row and pictures. Unique in the manifest."),
    "uri": (
        "all",
        "`s3://`, `gs://`, `az://`, `https://`, `file://` or a path. Relative ones start at the manifest's folder.",
    ),
    "patient_id": ("", "The slides of a patient stay in one split. Default: the slide is a patient by itself."),
    "center": ("", "Where the slide comes from. Kept in the tables."),
    "label": ("training", "1 positive, 0 negative."),
    "stratum": ("", "Metrics are also reported for each stratum."),
    "split": ("", "Where the column is missing, splits are made by patient: 60 % train, 20 % val, 20 % test, seeded."),
}
"""Who needs a column and what it means: the only table of the reference that no docstring of the code holds."""


ENVIRONMENT_OF_LIBRARIES = """## Variables of the commands and of the libraries

| variable | meaning |
| --- | --- |
| MLFLOW_TRACKING_URI | the MLflow tracking server; without it, an SQLite file in the storage folder |
| MLFLOW_TRACKING_TOKEN | the token of a tracking server that requires one |
| MAGNET_STORAGE | the storage folder if `--storage` is not given (default `~/magnet-runs`) |
| MAGNET_GIT_COMMIT | the commit that a run records if git cannot tell it, as in an image |
| RAY_ADDRESS | the Ray cluster of a script that is started without `ray job submit` |
| RAY_API_SERVER_ADDRESS | the cluster to which `ray job submit` sends a job |
| RAY_AUTH_MODE | `token` or `disabled`; set it explicitly, to the same value on all machines |
"""
"""Variables that `service.environment` does not read."""


def manifest_page() -> str:
    """Return the page of the manifest's columns."""
    values = {"stratum": STRATA, "split": SPLITS, "label": ("0", "1")}
    rows = []
    for column in COLUMNS:
        needed, meaning = MANIFEST_USES[column]
        rows.append((f"`{column}`", needed, meaning, ", ".join(f"`{value}`" for value in values.get(column, ()))))
    lines = [
        "# Manifest",
        "",
        "A CSV file (UTF-8, separated by commas) or a Parquet file, on disk or in an object store, with one row for "
        "each slide. Other columns are allowed and kept. [Your own slides](../how-to/slides.md) shows how to write and "
        "check one.",
        "",
        *table(("column", "needed for", "meaning", "values"), rows),
    ]
    return "\n".join(lines) + "\n"


def scores_page() -> str:
    """Return the page of the score table, from its schema."""
    schema: pa.Schema = scores.SCHEMA
    regions: pa.StructType = schema.field("regions").type.value_type
    lines = [
        "# Score table",
        "",
        "`scores.parquet` holds one row for each slide of the manifest. `scores.csv` holds the same without `regions`. "
        f"This is version {scores.VERSION} of the schema (`magnet_scores_version` in the file's metadata).",
        "",
        *table(("column", "type", "meaning"), [_column(field) for field in schema]),
        "",
        "## Each of `regions`",
        "",
        *table(("field", "type", "meaning"), [_column(field) for field in regions]),
    ]
    return "\n".join(lines) + "\n"


def environment_page() -> str:
    """Return the page of the environment variables."""
    return module_docstring_page("Environment variables", "service.environment", ENVIRONMENT_OF_LIBRARIES)


def module_docstring_page(title: str, module: str, more: str = "") -> str:
    """Return a page that is a module's docstring.

    Args:
        title: Heading of the page.
        module: Dotted name of the module.
        more: Markdown after the docstring.
    """
    text = inspect.getdoc(importlib.import_module(module)) or ""
    # Names of variables become code: an asterisk or underscore in one is no emphasis.
    page = _VARIABLES.sub(r"| `\1` |", f"{text}\n\n{more}").replace("``", "`")
    return f"# {title}\n\n{page}\n"


def _column(field: pa.Field) -> tuple[str, str, str]:
    (meaning,) = [value.decode() for value in field.metadata.values()]
    kind = "list of regions" if field.name == "regions" else str(field.type).replace("element: ", "")
    return f"`{field.name}`", kind.replace("<", "&lt;"), prose(meaning)
