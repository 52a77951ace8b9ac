"""Page of the API documentation. It loads no file from other servers: hospital networks are often closed."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles

from service.api.gate.headers import DOCS_POLICY

PAGE, FILES = "/docs", "/docs/files/"
"""Paths of the page, and of the files that it loads."""


def add_docs(app: FastAPI) -> None:
    """Serve Swagger UI from the files of the package ``fastapi_swagger``."""

    @app.get(PAGE, include_in_schema=False)
    def show_page() -> HTMLResponse:
        response = get_swagger_ui_html(
            openapi_url=str(app.openapi_url),
            title=app.title,
            swagger_js_url=f"{FILES}swagger-ui-bundle.js",
            swagger_css_url=f"{FILES}swagger-ui.css",
            swagger_favicon_url=f"{FILES}favicon-32x32.png",
        )
        # The default policy forbids scripts, which this page needs.
        response.headers["Content-Security-Policy"] = DOCS_POLICY
        return response

    app.mount(FILES, StaticFiles(packages=[("fastapi_swagger", "resources")]))
