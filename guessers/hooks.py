"""Where kernel pointers come from: every hook of the guess, its backend and the kernel symbols that can serve it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Backend = Literal["kprobe", "rawtp"]
Object = Literal["sk", "socket", "flowi4", "flowi6", "trigger"]

BACKENDS: tuple[Backend, ...] = ("kprobe", "rawtp")


@dataclass(frozen=True, slots=True)
class Hook:
    """A program of memory.bpf.c and where to put it.

    `argument` counts from 0. Objects on a stack (flowi) are copied, of others the pointer is kept.
    With `every`, all symbols are hooked (they see different sockets), else the first that exists.
    """

    name: str
    backend: Backend
    object: Object
    argument: int
    symbols: tuple[str, ...]
    every: bool = False

    @property
    def program(self) -> str:
        return f"{self.backend}__{self.name}"

    @property
    def number(self) -> int:
        return HOOKS.index(self)

    def instance(self) -> str:
        """The line that makes this hook's program from the macros of memory.bpf.c; none for the triggers."""
        if self.object == "trigger":
            return ""
        kind = "COPY" if self.object.startswith("flowi") else "CALL"
        where = {"kprobe": f", PT_REGS_PARM{self.argument + 1}", "rawtp": f", {self.argument}"}[self.backend]
        return f"{self.backend.upper()}_{kind}({self.name}, {self.number}{where if kind == 'COPY' else ''})\n"


_TRIGGER = "sys_sched_get_priority_max"

HOOKS: tuple[Hook, ...] = (
    Hook("read", "kprobe", "trigger", 0,
         (f"__x64_{_TRIGGER}", f"__arm64_{_TRIGGER}", f"__se_{_TRIGGER}", "SyS_sched_get_priority_max", _TRIGGER)),
    # struct proto.getsockopt of each protocol: (struct sock *sk, int level, ...); our own getsockopt(2) hits it.
    Hook("getsockopt", "kprobe", "sk", 0,
         ("tcp_getsockopt", "udp_getsockopt", "udpv6_getsockopt", "raw_getsockopt", "rawv6_getsockopt"), every=True),
    # (struct socket *sock, ...): the same call, one step earlier.
    Hook("socket", "kprobe", "socket", 0, ("sock_common_getsockopt",)),
    # (struct sock *sk) of any family: an unfiltered socket's setsockopt(SO_DETACH_FILTER) hits it and changes nothing.
    Hook("detach_filter", "kprobe", "sk", 0, ("sk_detach_filter",)),
    # (struct net *net, struct flowi4 *fl4, ...).
    Hook("route4", "kprobe", "flowi4", 1, ("ip_route_output_flow",)),
    # (struct net *net, const struct sock *sk, struct flowi6 *fl6, ...); the longer name since 4.5.
    Hook("route6", "kprobe", "flowi6", 2, ("ip6_route_output_flags", "ip6_route_output")),
    Hook("read", "rawtp", "trigger", 0, ("sys_enter",)),
    # (struct sock *sk, int ret, int flags), 6.3 on (kernel commit 6e6eda44b939): even a refused send(2) hits it.
    Hook("send_length", "rawtp", "sk", 0, ("sock_send_length",)),
    # (const struct sock *sk, int oldstate, int newstate), 4.16 on (kernel commit 563e0bb0dc74).
    Hook("set_state", "rawtp", "sk", 0, ("inet_sock_set_state",)),
    # (u32 tb_id, const struct flowi4 *flp, ...).
    Hook("route4", "rawtp", "flowi4", 1, ("fib_table_lookup",)),
    # (const struct net *net, ..., struct fib6_table *table, const struct flowi6 *flp).
    Hook("route6", "rawtp", "flowi6", 3, ("fib6_table_lookup",)),
)
