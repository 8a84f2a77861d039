"""A plugin of Datasette's: a build-id, wherever it stands, leads to all that is held of that kernel."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from datasette import hookimpl
from markupsafe import Markup

FIELDS = "fields_of_a_kernel"
"""The query it leads to."""
_LONGEST = 48


@hookimpl  # type: ignore[untyped-decorator]
def render_cell(value: object, column: str, database: str, datasette: Any) -> Markup | None:
    if column != "build_id" or not isinstance(value, str):
        return None
    page = f"{datasette.urls.query(database, FIELDS)}?{urlencode({'kernel': value})}"
    short = value if len(value) <= _LONGEST else value[:_LONGEST - 1] + "…"
    return Markup('<a href="{}">{}</a>').format(page, short)
