"""The database as web pages: Datasette with what the columns mean, and the questions people ask, ready to click."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kcompat.errors import Missing

_PLACE = ("CASE WHEN state != 'known' THEN state WHEN bit_offset IS NULL THEN value "
          "ELSE value || ' bit ' || bit_offset END")
_STANDING = "quarantined_at IS NULL AND state != 'unknown'"

_QUERIES: dict[str, tuple[str, str]] = {
    "kernels": ("Kernels, and how many fields are known of each", """
        SELECT release, machine, build_id, last_seen, (SELECT count(DISTINCT field) FROM "offset"
            WHERE kernel_id = kernel.id AND state = 'known' AND quarantined_at IS NULL) AS known
        FROM kernel WHERE release GLOB '*' || :release || '*' ORDER BY release"""),
    "where_a_field_lies": ("Where a field lies in every kernel", f"""
        SELECT release, machine, source, {_PLACE} AS place, build_id
        FROM kernel CROSS JOIN "offset" ON kernel_id = kernel.id AND field = :field
        WHERE {_STANDING} ORDER BY release"""),
    "places_of_a_field": ("Every place a field has had", f"""
        SELECT machine, {_PLACE} AS place, count(DISTINCT kernel_id) AS kernels, min(release) AS one,
            max(release) AS other
        FROM kernel CROSS JOIN "offset" ON kernel_id = kernel.id AND field = :field
        WHERE {_STANDING} GROUP BY machine, place ORDER BY kernels DESC"""),
    "disagreements": ("Fields that two sources place differently", f"""
        SELECT release, build_id, field, group_concat(source || ': ' || {_PLACE}, ', ') AS who_says_what
        FROM "offset" JOIN kernel ON kernel.id = kernel_id WHERE {_STANDING}
        GROUP BY kernel_id, field, module_build_id HAVING count(DISTINCT {_PLACE}) > 1 ORDER BY release, field"""),
    "refuted": ("Answers that an event has refuted", f"""
        SELECT release, field, source, {_PLACE} AS place, quarantined_at, quarantine_reason
        FROM "offset" JOIN kernel ON kernel.id = kernel_id WHERE quarantined_at IS NOT NULL"""),
}


def metadata(database: str) -> dict[str, Any]:
    """Datasette's metadata. Windows hold raw kernel memory, so neither they nor SQL that could read them are shown."""
    queries = {name: {"title": title, "sql": sql.strip()} for name, (title, sql) in _QUERIES.items()}
    tables = {
        "kernel": {"description": "One row a kernel build. build_id is its key: a GNU build-id, release-... where only "
                                  "the name of the kernel is known, btf-... where only its BTF is.",
                   "label_column": "release", "sort": "release"},
        "offset": {"description": "One row a kernel, field and source. value is the offset in bytes from the start of "
                                  "the struct.", "facets": ["source", "state"]},
        "window": {"allow": False},
        # Paths on the machine that harvested, and our own bookkeeping: of no use to who asks about kernels.
        "harvested": {"allow": False},
        "_sqlite_migrations": {"hidden": True},
    }
    return {"title": "kcompat", "description": "Where kernel struct fields lie, by kernel build and source.",
            "databases": {database: {"allow_sql": False, "queries": queries, "tables": tables}}}


def application(path: Path) -> Any:
    """The ASGI application. Raises Missing without Datasette, the optional part of kcompat called `serve`."""
    try:
        from datasette.app import Datasette
    except ImportError as error:
        raise Missing("Datasette is not installed; pip install 'kcompat[serve]'") from error
    settings = {"allow_download": False, "sql_time_limit_ms": 5000}
    return Datasette([str(path)], metadata=metadata(path.stem), settings=settings).app()


def run(served: Any, host: str, port: int) -> None:
    """Serve until interrupted."""
    import uvicorn

    uvicorn.run(served, host=host, port=port, log_level="warning")
