"""Httpflow for the pipeline: proved by requests of its own when it starts, its exchanges made into records."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Mapping, Sequence

from collector import nf_conn
from collector.canary import Refuted
from collector.config import Options
from collector.dataset import Dataset, Setup
from collector.datasets import httpflow
from collector.datasets.ipv6 import reads_ipv6
from collector.enrich.domains import Said
from collector.enrich.processes import Processes
from collector.http_canary import prove
from collector.http_exchanges import Ends, Seen
from collector.http_flows import HttpFlows, name_of_host
from collector.packed_flows import Target
from collector.record import Record
from kcompat import probe_sites
from kcompat.fields import Field
from kcompat.hook_status import HookStatus
from kcompat.load import Loaded

log = logging.getLogger(__name__)

_PROOFS = 2
# The own port of clients whose exchanges the programs merge (httpflow_pairs.h).
_MERGED_PORT = 65535


class HttpflowRunning:
    """Attached and proved; what others did during the proof is in the first flush."""

    def __init__(self, setup: Setup) -> None:
        """Raises UnknownField, Missing or Unsupported before anything is attached, else Refuted."""
        self._setup = setup
        self._has_ipv6 = reads_ipv6(httpflow.NAME, setup.offsets)
        self._processes = Processes()
        self._translations = setup.translations.borrow(setup.means())
        # A tracker speaks of a connection before anything is sent over it: what it said is heard when it is asked for.
        self._flows = HttpFlows(lambda: setup.options, self._process, self._target)
        self._lock = threading.Lock()
        # While it is being proved; then what is seen goes to the flows at once.
        self._held: list[Seen] | None = []
        try:
            self._dataset = httpflow.Httpflow(setup.offsets, setup.options, setup.version_code, self._saw,
                                              setup.backends, self._greeted)
        except BaseException:
            setup.translations.give_back()
            raise
        log.info("httpflow attached: %s", ", ".join(a.name for a in self._dataset.loaded.attachments))
        try:
            others = self._proved()
        except BaseException:
            self.close()
            raise
        with self._lock:
            others += self._held
            self._held = None
            for seen in others:
                self._flows.add(seen)

    @property
    def how(self) -> str:
        return f"{self._dataset.backend} hooks"

    @property
    def hooks(self) -> Sequence[HookStatus]:
        return self._dataset.loaded.hooks

    @property
    def loaded(self) -> Loaded:
        return self._dataset.loaded

    @property
    def losses(self) -> Mapping[str, int]:
        return self._dataset.losses | {"http paths, counted as *": self._flows.starred}

    @property
    def left_out(self) -> Counter[str]:
        return self._flows.left_out

    def flush(self, time_ns: int) -> list[Record]:
        self._dataset.flush()
        with self._lock:
            return self._flows.take(time_ns, self._setup.domains.name)

    def sample(self, one_of: int) -> bool:
        self._dataset.sample(one_of)
        return True

    def close(self) -> None:
        self._dataset.close()
        self._setup.translations.give_back()

    def _greeted(self, ends: Ends, name: str) -> None:
        self._setup.domains.say(ends.netns, ends.remote, name, Said.SNI)

    def _saw(self, seen: Seen) -> None:
        if seen.ends.asks and (host := name_of_host(seen.exchange.host)):
            self._setup.domains.say(seen.ends.netns, seen.ends.remote, host, Said.HOST)
        with self._lock:
            if self._held is None:
                self._flows.add(seen)
            else:
                self._held.append(seen)

    def _process(self, pid: int, comm: str) -> tuple[str, Mapping[str, str]]:
        return self._processes.tagged(pid, comm, self._setup.options.containers)

    def _target(self, netns: int, transport: str, local: bytes, local_port: int, remote: bytes,
                remote_port: int) -> Target | None:
        """Of connections merged only where all went the same way."""
        return self._translations.find(netns, transport, local, local_port, remote, remote_port,
                                       any_port=local_port == _MERGED_PORT, fresh=True)

    def _flushed(self) -> list[Seen]:
        self._dataset.flush()
        with self._lock:
            held, self._held = self._held or [], []
        return held

    def _proved(self) -> list[Seen]:
        """What others did meanwhile: once more if need be, for a full map or a slow machine."""
        others: list[Seen] = []
        for _ in range(_PROOFS):
            faults, meanwhile = prove(self._flushed, self._has_ipv6, self._dataset.backend)
            others += meanwhile
            if not faults:
                return others
        raise Refuted(httpflow.NAME, faults)


def wanted() -> tuple[Field, ...]:
    """What its own programs use, and what those that tell where connections really go can use."""
    return httpflow.wanted() + nf_conn.wanted()


def prepare(options: Options) -> None:
    """To read TLS libraries takes what takes long to import."""
    if options.http_tls:
        threading.Thread(target=probe_sites.prepare, name=f"{httpflow.NAME} prepare", daemon=True).start()


DATASET = Dataset(httpflow.NAME, HttpflowRunning, wanted, httpflow.render, prepare)
