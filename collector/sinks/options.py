"""What a user may set of each kind of sink: from `KIND://HOST?KEY=VALUE` on a command line, or a table of the file.

Secrets are never values here: `_file` and `_env` name where they stand, so that no process list and no log shows them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Interval, MinLen

from collector.config import FORBID, Duration
from collector.sinks.spec import bare, split
from kcompat.errors import KcompatError

if TYPE_CHECKING:
    from pydantic_core.core_schema import CoreSchema

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Checked:
    """Text that `check` returns, or says what is wrong with it by a ValueError."""

    check: Callable[[str], str]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def evident(self, value: Any, made: Callable[[Any], Any]) -> str:
        return self.check(made(value))


def _with_hosts(url: str) -> str:
    """With a host, or several with commas between them, and ports that can be."""
    for host in split(url).netloc.rpartition("@")[2].split(","):
        one = split(f"//{host}")
        if not one.hostname:
            raise ValueError("the URL names no host")
        try:
            port = one.port
        except ValueError:  # which quotes it: it may be the beginning of a password
            port = 0
        if port == 0:
            raise ValueError("the port is no number from 1 to 65535; in a password write %2F for / and so on")
    return url


def _header_name(name: str) -> str:
    if not re.fullmatch(r"[\w!#$%&'*+.^`|~-]+", name, re.ASCII):
        raise ValueError("is no name of a header")
    return name


def header_value(value: str) -> str:
    if not (value.isascii() and value.isprintable()):
        raise ValueError("has a character that no header can carry")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """A file or standard output. With `max_bytes` or `max_age_s` the file is rotated, and `keep` old ones are kept."""

    __pydantic_config__ = FORBID

    path: Annotated[str, MinLen(1)] = "-"
    max_bytes: Annotated[int, Interval(ge=0)] = 0
    max_age_s: Annotated[float, Duration(), Interval(ge=0)] = 0.0
    keep: Annotated[int, Interval(ge=1, le=10_000)] = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Of every sink that sends: how long it waits for an answer, and where and how much of what waits is kept."""

    __pydantic_config__ = FORBID

    url: Annotated[str, Checked(_with_hosts)]
    timeout_s: Annotated[float, Duration(), Interval(gt=0, le=600)] = 10.0
    backoff_s: Annotated[float, Duration(), Interval(gt=0, le=600)] = 0.5
    longest_backoff_s: Annotated[float, Duration(), Interval(gt=0, le=3600)] = 30.0
    spool: Literal["disk", "memory"] = "disk"
    spool_dir: Path | None = None
    spool_bytes: Annotated[int, Interval(ge=4096)] = 256 * MIB

    @property
    def name(self) -> str:
        """Where to, without secrets."""
        return bare(self.url)


@dataclass(frozen=True, slots=True, kw_only=True)
class Authenticated(Network):
    """`ca_file` is trusted instead of the system's authorities; `token` or `username` and `password`."""

    ca_file: Path | None = None
    token_file: Path | None = None
    token_env: str | None = None
    username: str | None = None
    password_file: Path | None = None
    password_env: str | None = None

    @property
    def token(self) -> str | None:
        return secret("token", self.token_file, self.token_env)

    @property
    def password(self) -> str | None:
        return secret("password", self.password_file, self.password_env)


@dataclass(frozen=True, slots=True, kw_only=True)
class Http(Authenticated):
    """By HTTP."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Influx(Http):
    """InfluxDB 1 and VictoriaMetrics: `database`, and InfluxDB's `retention_policy`."""

    database: Annotated[str, MinLen(1)] = "kcompat"
    retention_policy: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Influx2(Http):
    """InfluxDB 2: `org` and `bucket`."""

    org: Annotated[str, MinLen(1)]
    bucket: Annotated[str, MinLen(1)] = "kcompat"


@dataclass(frozen=True, slots=True, kw_only=True)
class Otlp(Http):
    """OpenTelemetry logs by HTTP; `headers` for what a backend asks of its clients."""

    headers: Mapping[Annotated[str, Checked(_header_name)], Annotated[str, Checked(header_value)]] = field(
        default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Nats(Authenticated):
    """NATS JetStream: `stream` is made if there is none; subjects are `subject` and the measurement."""

    stream: Annotated[str, MinLen(1)] = "KCOMPAT"
    subject: Annotated[str, MinLen(1)] = "kcompat"
    credentials_file: Path | None = None

    @property
    def name(self) -> str:
        return f"{bare(self.url)}/{self.stream}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kafka(Network):
    """Kafka: one `topic`, records of a host in order; `properties` are librdkafka's own."""

    topic: Annotated[str, MinLen(1)] = "kcompat"
    ca_file: Path | None = None
    username: str | None = None
    password_file: Path | None = None
    password_env: str | None = None
    properties: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"kafka://{split(bare(self.url)).netloc}/{self.topic}"

    @property
    def password(self) -> str | None:
        return secret("password", self.password_file, self.password_env)


def secret(what: str, file: Path | None, variable: str | None) -> str | None:
    """What stands in the file, or in the environment."""
    if file is not None:
        try:
            return file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise KcompatError(f"{what}: {file} cannot be read: {error}") from None
    if variable is not None:
        if variable not in os.environ:
            raise KcompatError(f"{what}: there is no {variable} in the environment")
        return os.environ[variable]
    return None
