"""The database for one command: what it remembers is asked, and what is learnt remembered, where there is one."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from kcompat.errors import KcompatError
from kcompat.fields import Field
from kcompat.kernel import Kernel, is_module
from kcompat.offsets import Offset, Offsets

if TYPE_CHECKING:
    from kcompat.cli_sources import Request
    from offset_db.db import Database

log = logging.getLogger(__name__)


class Memory:
    """Without a database there is nothing to ask and nothing is remembered, which is said."""

    def __init__(self, request: Request) -> None:
        from offset_db.files import default_path

        self.path = request.db or default_path()
        self.db: Database | None = None
        # What the database itself says is not recorded there again.
        self._records = request.record and request.source != "db"
        if request.source in ("auto", "db"):
            self._open(needed=request.source == "db")

    def _open(self, *, needed: bool) -> None:
        from kcompat.cli_database import is_there, opened
        from offset_db.db import Database

        try:
            if self._records:
                self.db = Database.open(self.path)
            elif needed or is_there(self.path):
                self.db = opened(self.path)
        except KcompatError as error:
            if needed:
                raise
            log.warning("nothing is remembered: %s", error)

    def near(self, kernel: Kernel) -> Mapping[Field, tuple[str, int]]:
        """What the nearest kernels it holds have, where there is a database to ask."""
        from offset_db.neighbours import nearest

        if self.db is None and self._records and self.path.exists():
            self._open(needed=False)
        try:
            return nearest(self.db, kernel) if self.db else {}
        except KcompatError as error:
            log.warning("no neighbours are known: %s", error)
            return {}

    def record(self, kernel: Kernel, offsets: Offsets) -> bool:
        """Whether something was learnt and written down."""
        learnt = [o for o in offsets.values() if o.source not in ("db", "none") and not _is_of_no_build(kernel, o)]
        if not learnt:
            return False
        if self.db is None:
            self._open(needed=False)
        if self.db is None:
            return False
        from offset_db.trust import disagreements

        try:
            self.db.record(kernel, learnt)
            clashes = disagreements(kernel, self.db.offsets(kernel))
        except KcompatError as error:
            log.warning("not remembered: %s", error)
            return False
        if clashes:
            log.warning("sources disagree on %s: see `kcompat db disagreements`",
                        ", ".join(d.field.name for d in clashes))
        return True

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, *_: object) -> None:
        if self.db:
            self.db.close()


def quarantine(request: Request, kernel: Kernel, fields: Collection[Field], reason: str) -> None:
    """Keeps what is remembered of these fields from being answered again; it stays to be looked at, with the reason."""
    from offset_db.db import Database
    from offset_db.files import default_path

    try:
        with Database.open(request.db or default_path()) as db:
            held = [(s.offset.field, s.offset.source) for s in db.offsets(kernel) if s.quarantined_at is None]
            for field, source in held:
                if field in fields:
                    log.warning("%s from %s is quarantined: %s", field, source, reason)
                    db.quarantine(kernel, field, source, reason)
    except KcompatError as error:
        log.warning("not remembered: %s", error)


def _is_of_no_build(kernel: Kernel, offset: Offset) -> bool:
    """A guess of what a module owns that does not show its build: remembered, it would hold for every build of it."""
    owner = offset.field.module
    return offset.source == "guess" and owner is not None and owner not in kernel.modules and is_module(owner)
