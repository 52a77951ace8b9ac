"""The API's documentation as a page, without anything from other servers: hospital networks often have no way out."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles

from service.api.headers import DOCS

PAGE, FILES = "/docs", "/docs/files/"
"""Path of the page, and of what it loads."""


def add_docs(app: FastAPI) -> None:
    """Serve Swagger UI from the files of package ``fastapi_swagger``."""

    @app.get(PAGE, include_in_schema=False)
    def page() -> HTMLResponse:
        answer = get_swagger_ui_html(
            openapi_url=str(app.openapi_url),
            title=app.title,
            swagger_js_url=f"{FILES}swagger-ui-bundle.js",
            swagger_css_url=f"{FILES}swagger-ui.css",
            swagger_favicon_url=f"{FILES}favicon-32x32.png",
        )
        answer.headers["Content-Security-Policy"] = DOCS
        return answer

    app.mount(FILES, StaticFiles(packages=[("fastapi_swagger", "resources")]))
