"""Reference page of the HTTP API, from the OpenAPI schema that the service publishes."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

from docs.tools.markdown import escape, prose, table
from docs.tools.settings_pages import PAGES, groups
from service.api.app import create_app
from service.queue.tables import Database
from service.settings.field_docstrings import read_field_docstrings
from service.settings.service import ServiceSettings

Schema = Mapping[str, Any]


def http_api_page() -> str:
    """Return the page: one section for each path and method, then the types of bodies and answers."""
    schema = openapi_schema()
    lines = [
        "# HTTP API",
        "",
        schema["info"]["description"],
        "",
        "A running service shows the same as an interactive page under `/docs`, and the schema under `/openapi.json`. "
        "[Sharing a service](../how-to/service.md) explains tokens and idempotency keys.",
    ]
    statuses = sorted(
        {int(s) for methods in schema["paths"].values() for o in methods.values() for s in o["responses"]}
    )
    errors = [f"{status} {HTTPStatus(status).phrase}" for status in statuses if status >= 400]
    lines += [
        "",
        "An error is a JSON object (`application/problem+json`): `detail` says what was wrong, `to_do` what to do. "
        f"Statuses: {', '.join(errors)}.",
    ]
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            lines += ["", f"## {method.upper()} {escape(path)}", "", *_operation(operation)]
    lines += ["", "## Types"]
    settings = _settings_links()
    for name, kind in sorted(schema["components"]["schemas"].items()):
        lines += ["", f"### {name}", "", prose(kind.get("description", "")), ""]
        lines += [settings[name]] if name in settings else _properties(kind, _field_docstrings(name))
    return "\n".join(lines) + "\n"


def openapi_schema() -> dict[str, Any]:
    """Return the OpenAPI schema of a service with default settings."""
    with tempfile.TemporaryDirectory() as folder:
        database = Database(f"sqlite:///{Path(folder) / 'queue.db'}")
        try:
            return create_app(ServiceSettings(storage=folder), database).openapi()
        finally:
            database.engine.dispose()


def _operation(operation: Schema) -> list[str]:
    lines = [operation.get("description") or operation.get("summary", "")]
    parameters = [
        (
            f"`{parameter['name']}`",
            parameter["in"],
            _type(parameter["schema"]),
            "required" if parameter.get("required") else "",
            prose(parameter.get("description") or parameter["schema"].get("description", "")),
        )
        for parameter in operation.get("parameters", [])
    ]
    if parameters:
        lines += ["", *table(("parameter", "in", "type", "", "meaning"), parameters)]
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        lines += ["", f"Body: {_type(content['schema'])} as `{media}`."]
    for status, answer in operation["responses"].items():
        if int(status) < HTTPStatus.BAD_REQUEST:
            contents = answer.get("content", {}).items()
            kinds = [_type(content["schema"]) if content.get("schema") else f"`{media}`" for media, content in contents]
            meaning = prose(answer.get("description", "")).replace("Successful Response", "")
            lines += [
                "",
                f"Answer {status}: {'; '.join(part for part in (meaning, ' or '.join(kinds)) if part) or 'empty'}.",
            ]
    return lines


def _settings_links() -> dict[str, str]:
    """Return a sentence with a link for each type whose fields are on a page of settings."""
    return {
        kind.__name__: f"Its keys: [{title}]({page}.md)."
        for page, (title, root, _) in PAGES.items()
        for _, kind in groups(root)
    }


def _field_docstrings(name: str) -> dict[str, str]:
    """Return the docstrings of a type's fields: the schema has the descriptions of few."""
    modules = [module for key, module in sorted(sys.modules.items()) if key.startswith("service.")]
    for module in modules:
        kind = getattr(module, name, None)
        if isinstance(kind, type) and kind.__module__ == module.__name__:
            return read_field_docstrings(kind)
    return {}


def _properties(kind: Schema, docstrings: Mapping[str, str]) -> list[str]:
    if "enum" in kind:
        return [f"One of {', '.join(f'`{value}`' for value in kind['enum'])}."]
    required = kind.get("required", [])
    rows = [
        (
            f"`{name}`",
            _type(schema),
            "required" if name in required else _default(schema),
            prose(schema.get("description") or docstrings.get(name, "")),
        )
        for name, schema in kind.get("properties", {}).items()
    ]
    return table(("field", "type", "default", "meaning"), rows) if rows else []


def _default(schema: Schema) -> str:
    return f"`{schema['default']}`" if "default" in schema else ""


def _type(schema: Schema) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return " or ".join(_type(part) for part in schema[key])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    kind = schema.get("type", "any value")
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return escape(str(kind))
