"""The database as web pages: Datasette with what the columns mean, and the questions people ask, ready to click."""

from __future__ import annotations

import socket
from pathlib import Path
from textwrap import dedent
from typing import Any

from kcompat.errors import Missing, Usage

_PLACE = ("CASE WHEN state != 'known' THEN state WHEN bit_offset IS NULL THEN value "
          "ELSE value || ' bit ' || bit_offset END")
_STANDING = "quarantined_at IS NULL AND state != 'unknown'"

# name -> title, what it is good for and what to type, SQL.
_QUERIES: dict[str, tuple[str, str, str]] = {
    "kernels": ("Kernels, and how many fields are known of each", "Part of a release, like 4.15 or oe1; none: all.", """
        SELECT release, machine, build_id, (SELECT count(DISTINCT field) FROM "offset"
            WHERE kernel_id = kernel.id AND state = 'known' AND quarantined_at IS NULL) AS known, last_seen
        FROM kernel WHERE release GLOB '*' || :release || '*' ORDER BY release"""),
    "fields_of_a_kernel": ("All that is held of one kernel", "A build-id, or a release like 6.1.0-56-cloud-amd64.", f"""
        SELECT field, {_PLACE} AS place, width AS bytes, source, verdict, confidence,
            CASE WHEN quarantined_at IS NULL THEN reason ELSE 'refuted: ' || quarantine_reason END AS reason,
            verified_at
        FROM kernel JOIN "offset" ON kernel_id = kernel.id WHERE build_id = :kernel OR release = :kernel
        ORDER BY field, source"""),
    "where_a_field_lies": ("Where a field lies in every kernel", "A field like sock_common.skc_dport.", f"""
        SELECT release, machine, {_PLACE} AS place, source, build_id
        FROM kernel CROSS JOIN "offset" ON kernel_id = kernel.id AND field = :field
        WHERE {_STANDING} ORDER BY release"""),
    "places_of_a_field": ("Every place a field has had", "A field like tcp_sock.srtt_us.", f"""
        SELECT machine, {_PLACE} AS place, count(DISTINCT kernel_id) AS kernels, min(release) AS one,
            max(release) AS other
        FROM kernel CROSS JOIN "offset" ON kernel_id = kernel.id AND field = :field
        WHERE {_STANDING} GROUP BY machine, place ORDER BY kernels DESC"""),
    "disagreements": ("Fields that two sources place differently", "Nothing is loaded on them.", f"""
        SELECT release, field, group_concat(source || ': ' || {_PLACE}, ', ') AS who_says_what, build_id
        FROM "offset" JOIN kernel ON kernel.id = kernel_id WHERE {_STANDING}
        GROUP BY kernel_id, field, module_build_id HAVING count(DISTINCT {_PLACE}) > 1 ORDER BY release, field"""),
    "refuted": ("Answers that an event has refuted", "They are kept to be looked at, and answer no more.", f"""
        SELECT release, field, {_PLACE} AS place, source, quarantined_at, quarantine_reason
        FROM "offset" JOIN kernel ON kernel.id = kernel_id WHERE quarantined_at IS NOT NULL"""),
}


def metadata(database: str) -> dict[str, Any]:
    """Datasette's metadata. Windows hold raw kernel memory, so neither they nor SQL that could read them are shown."""
    queries = {name: {"title": title, "description": description, "sql": dedent(sql).strip(), "hide_sql": True}
               for name, (title, description, sql) in _QUERIES.items()}
    tables = {
        "kernel": {"description": "One row a kernel build. build_id is its key: a GNU build-id, release-... where only "
                                  "the name of the kernel is known, btf-... where only its BTF is.",
                   "label_column": "release", "sort": "release"},
        "offset": {"description": "One row a kernel, field and source. value is the offset in bytes from the start of "
                                  "the struct, where the state is known; absent: the struct has no such member; "
                                  "unknown: cannot tell.", "facets": ["source", "state"]},
        "window": {"allow": False},
        # Paths on the machine that harvested, and our own bookkeeping: of no use to who asks about kernels.
        "harvested": {"allow": False},
        "_sqlite_migrations": {"hidden": True},
    }
    shown = {"description": "Begin with a question.", "allow_sql": False, "queries": queries, "tables": tables}
    return {"title": "kcompat", "description": "Where kernel struct fields lie, by kernel build and source.",
            "databases": {database: shown}}


def application(path: Path) -> Any:
    """The ASGI application. Raises Missing without Datasette, the optional part of kcompat called `serve`."""
    try:
        from datasette.app import Datasette
        from datasette.plugins import pm

        from offset_db import exchange_serve_links
    except ImportError as error:
        raise Missing("Datasette is not installed; pip install 'kcompat[serve]'") from error
    if not pm.is_registered(exchange_serve_links):
        pm.register(exchange_serve_links)
    settings = {"allow_download": False, "sql_time_limit_ms": 5000, "max_returned_rows": 20_000}
    return Datasette([str(path)], metadata=metadata(path.stem), settings=settings).app()


def listening(host: str, port: int) -> socket.socket:
    """A socket that takes connections there. Raises Usage for an address that is none, or not to be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM,
                                                                flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen()
        except BaseException:
            listener.close()
            raise
    except (OSError, UnicodeError) as error:
        raise Usage(f"cannot listen at {host} port {port}: {getattr(error, 'strerror', None) or error}") from error
    return listener


def run(served: Any, listener: socket.socket) -> None:
    """Serve until interrupted."""
    import uvicorn

    uvicorn.Server(uvicorn.Config(served, log_level="warning")).run([listener])
