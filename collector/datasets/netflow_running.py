"""Netflow for the pipeline: proved by a canary when it starts, its deltas made into records."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

from collector import nf_conn
from collector.canary import Refuted, prove
from collector.dataset import Dataset, Setup
from collector.datasets import netflow
from collector.datasets.ipv6 import reads_ipv6
from collector.enrich.processes import Processes
from collector.enrich.translations import Translations
from collector.flows import FlowDelta, aggregate
from collector.packed_flows import Target
from collector.record import Record
from collector.sampling import is_kept
from kcompat.fields import Field
from kcompat.hook_status import HookStatus
from kcompat.load import Loaded

log = logging.getLogger(__name__)

_PROOFS = 2


class NetflowRunning:
    """Attached and proved; what others did during the proof is in the first flush."""

    def __init__(self, setup: Setup) -> None:
        """Raises UnknownField, Missing or Unsupported before anything is attached, else Refuted."""
        self.left_out: Counter[str] = Counter()
        self._setup = setup
        self._has_ipv6 = reads_ipv6(netflow.NAME, setup.offsets)
        self._dataset = netflow.Netflow(setup.offsets, setup.options, setup.version_code, setup.backends)
        log.info("netflow attached: %s", ", ".join(self._dataset.hooks))
        self._processes = Processes()
        self._translations: Translations | None = None
        self._lost_before: Counter[str] = Counter()
        self._one_of = 1
        try:
            self._waiting = self._proved()
            self._translations = setup.translations.borrow(setup.means())
            # Another dataset may have had it for long.
            self._lost_before = Counter(self._translations.losses)
            self._translations.call(self._dataset.mark_translated)
        except BaseException:
            self.close()
            raise

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
        nat = self._translations.losses if self._translations else {}
        return {**self._dataset.losses, **{what: count - self._lost_before[what] for what, count in nat.items()}}

    def flush(self, time_ns: int) -> Sequence[Record]:
        waiting, self._waiting = self._waiting, []
        deltas = self._sampled(chain(waiting, self._dataset.stream()))
        # Afterwards: what a connection that is told of was translated to is known by then.
        if self._translations:
            self._translations.settle()
        return aggregate(deltas, self._setup.options, time_ns, self.left_out, self._setup.domains.names(),
                         self._target if self._translations and self._translations.has_any else None, self._process)

    def sample(self, one_of: int) -> bool:
        self._one_of = one_of
        return True

    def _sampled(self, deltas: Iterable[FlowDelta]) -> Iterable[FlowDelta]:
        if self._one_of == 1:
            return deltas
        return (d for d in deltas if is_kept(self._one_of, d.local, d.local_port, d.remote, d.remote_port))

    def close(self) -> None:
        if self._translations:
            self._translations.call_no_more(self._dataset.mark_translated)
            self._setup.translations.give_back()
        self._dataset.close()

    def _target(self, netns: int, transport: str, local: bytes, local_port: int, remote: bytes,
                remote_port: int) -> Target | None:
        assert self._translations
        return self._translations.find(netns, transport, local, local_port, remote, remote_port,
                                       any_port=transport == "tcp" and local_port == netflow.MERGED_PORT)

    def _process(self, pid: int, comm: str) -> tuple[str, Mapping[str, str]]:
        return self._processes.tagged(pid, comm, self._setup.options.containers)

    def _proved(self) -> list[FlowDelta]:
        """What others did meanwhile: once more if need be, for a full map or a slow machine."""
        others: list[FlowDelta] = []
        for _ in range(_PROOFS):
            proof = prove(self._dataset.flush, self._has_ipv6)
            others += proof.others
            if not proof.faults:
                return others
        raise Refuted(netflow.NAME, proof.faults)


def wanted() -> tuple[Field, ...]:
    """What its own programs use, and what those that tell where connections really go can use."""
    return netflow.wanted() + nf_conn.wanted()


DATASET = Dataset(netflow.NAME, NetflowRunning, wanted, netflow.render)
