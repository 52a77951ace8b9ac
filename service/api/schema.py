"""Descriptions in the OpenAPI schema, taken from the docstrings below the fields in the code.

Pydantic's `use_attribute_docstrings` does the same when a class is created. That would slow down every command of
`magnet`, which loads the response bodies too; here it costs time only when the schema is first requested.
"""

from __future__ import annotations

import inspect
from typing import Any

from fastapi import FastAPI

from magnet import config
from service.api import request_bodies, response_bodies
from service.queue import arrivals, requests
from service.settings import score, train, tune
from service.settings.field_docstrings import read_field_docstrings

MODULES = (request_bodies, response_bodies, requests, arrivals, train, score, tune, config)
"""Modules whose classes, and imported classes, are described."""


def describe_schema(app: FastAPI) -> None:
    """Add descriptions to the application's OpenAPI schema."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        is_new = app.openapi_schema is None
        schema = generate()
        if is_new:
            _add_descriptions(schema["components"]["schemas"])
        return schema

    # FastAPI documents this assignment as the way to change the schema.
    app.openapi = openapi  # type: ignore[method-assign]


def _add_descriptions(schemas: dict[str, Any]) -> None:
    classes = {value.__name__: value for module in MODULES for value in vars(module).values() if inspect.isclass(value)}
    for name, schema in schemas.items():
        if name not in classes:
            continue
        for field, text in read_field_docstrings(classes[name]).items():
            if field in schema.get("properties", {}):
                schema["properties"][field].setdefault("description", text)
