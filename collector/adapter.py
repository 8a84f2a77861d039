"""Values as their types have them: what is evidently right at once, of all else pydantic is the judge."""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING, Any

from collector.evident import Unsure, evident

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from pydantic_core import ErrorDetails


class Invalid(ValueError):
    """What pydantic says is wrong."""

    def __init__(self, errors: list[ErrorDetails]) -> None:
        self.errors = errors
        super().__init__(errors[0]["msg"])


def validated(hint: Any, value: Any) -> Any:
    """The value as the type `hint` has it. Raises Invalid."""
    try:
        return evident(hint, value)
    except Unsure:
        return judged(hint, value)


def judged(hint: Any, value: Any, *, strict: bool = False) -> Any:
    """The same by pydantic alone; if `strict`, "10" is no number and 1 is not true."""
    judge = adapter(hint)
    from pydantic import ValidationError

    try:
        return judge.validate_python(value, strict=strict)
    except ValidationError as error:
        raise Invalid(error.errors(include_url=False)) from None


@cache
def adapter(hint: Any) -> TypeAdapter[Any]:
    """pydantic's judge of a type, made once for each; the import takes 60 ms and 16 MB.

    Without plugins: for those pydantic reads what every installed package says of itself, and runs what it finds there.
    """
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    from pydantic import TypeAdapter

    return TypeAdapter(hint)
