"""pydantic's judge of a type, made once for each; the library is imported where there is something to judge."""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import TypeAdapter


@cache
def adapter(hint: Any) -> TypeAdapter[Any]:
    """The import takes 60 ms and 16 MB.

    Without plugins: for those pydantic reads what every installed package says of itself, and runs what it finds there.
    """
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    from pydantic import TypeAdapter

    return TypeAdapter(hint)
