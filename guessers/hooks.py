"""Where kernel pointers come from: every hook of the guess, its backend and the kernel symbols that can serve it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Backend = Literal["kprobe", "rawtp"]
Object = Literal["sk", "socket", "flowi4", "flowi6", "sk_buff", "nf_conn", "task", "msghdr", "iov_iter", "trigger"]

BACKENDS: tuple[Backend, ...] = ("kprobe", "rawtp")
# Objects that are gone, or changed, when the call has returned: of these the hook copies so many bytes.
COPIED: dict[str, int] = {"flowi4": 128, "flowi6": 128, "sk_buff": 256}


@dataclass(frozen=True, slots=True)
class Hook:
    """A program of memory.bpf.c and where to put it.

    `argument` counts from 0. What is COPIED is copied, of others the pointer is kept.
    With `every`, all symbols are hooked (they see different sockets), else the first that exists.
    A program that reads more arguments than a raw tracepoint has is refused: `arguments` of them are kept.
    """

    name: str
    backend: Backend
    object: Object
    argument: int
    symbols: tuple[str, ...]
    every: bool = False
    arguments: int = 3

    @property
    def program(self) -> str:
        return f"{self.backend}__{self.name}"

    @property
    def number(self) -> int:
        return HOOKS.index(self)

    @property
    def size(self) -> int:
        """How many bytes of its object the hook copies; 0 when it keeps the pointer."""
        return COPIED.get(self.object, 0)

    def instance(self) -> str:
        """The line that makes this hook's program from the macros of memory.bpf.c; none for the triggers."""
        if self.object == "trigger":
            return ""
        kind = "MESSAGE" if self.object == "msghdr" else "COPY" if self.size else "CALL"
        if self.backend == "kprobe":
            which = "" if kind == "CALL" else f", PT_REGS_PARM{self.argument + 1}"
        else:
            which = f", {self.arguments if kind == 'CALL' else self.argument}"
        return f"{self.backend.upper()}_{kind}({self.name}, {self.number}{which})\n"


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
    # (struct sk_buff *first, struct net_device *dev, ...), and the loopback's own function, which is never inlined.
    Hook("transmit", "kprobe", "sk_buff", 0, ("dev_hard_start_xmit", "loopback_xmit"), every=True),
    # (struct nf_conn *ct): an entry that ctnetlink is told to make.
    Hook("track", "kprobe", "nf_conn", 0, ("nf_conntrack_hash_check_insert",)),
    Hook("read", "rawtp", "trigger", 0, ("sys_enter",)),
    # (struct sock *sk, int ret, int flags), 6.3 on (kernel commit 6e6eda44b939): even a refused send(2) hits it.
    Hook("send_length", "rawtp", "sk", 0, ("sock_send_length",)),
    # (const struct sock *sk, int oldstate, int newstate), 4.16 on (kernel commit 563e0bb0dc74).
    Hook("set_state", "rawtp", "sk", 0, ("inet_sock_set_state",)),
    # (u32 tb_id, const struct flowi4 *flp, ...).
    Hook("route4", "rawtp", "flowi4", 1, ("fib_table_lookup",)),
    # (const struct net *net, ..., struct fib6_table *table, const struct flowi6 *flp).
    Hook("route6", "rawtp", "flowi6", 3, ("fib6_table_lookup",)),
    # (const struct sk_buff *skb, const struct net_device *dev).
    Hook("transmit", "rawtp", "sk_buff", 0, ("net_dev_start_xmit",)),
    # (struct task_struct *tsk, const char *buf, ...): prctl(PR_SET_NAME) hits it with the caller's own.
    Hook("task", "kprobe", "task", 0, ("__set_task_comm", "proc_comm_connector")),
    # (struct task_struct *task, const char *comm).
    Hook("task", "rawtp", "task", 0, ("task_rename",), arguments=2),
    # (struct socket *sock, struct msghdr *msg, size_t size), 4.1 on (kernel commit 1b784140474e).
    Hook("message", "kprobe", "msghdr", 1, ("inet_sendmsg", "tcp_sendmsg")),
    # (const struct sock *sk, const struct msghdr *msg, ...), 6.16 on.
    Hook("message", "rawtp", "msghdr", 1, ("tcp_sendmsg_locked",)),
    # (struct socket *sock, struct msghdr *msg, size_t size, int flags).
    Hook("receive", "kprobe", "msghdr", 1, ("inet_recvmsg", "tcp_recvmsg")),
    # (const struct sk_buff *skb, int offset, struct iov_iter *to, int len): how a received message is filled. No
    # tracepoint hands one over, and what copies from one is in lib/, which is not traced.
    Hook("fill", "kprobe", "iov_iter", 2, ("skb_copy_datagram_iter",)),
)
