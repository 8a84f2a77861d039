"""Where httpflow's programs go: two sets of hooks, each of which is enough."""

from __future__ import annotations

from collector.datasets.hooks import Backend, Hook

# Hooked nowhere: what the slots of the program array lead to, in the order of the C's enum.
STAGES = ("kprobe__pair", "kprobe__follow")
# The smallest program first: where its hook is not, it was loaded for nothing.
HOOKS: dict[Backend, tuple[Hook, ...]] = {
    "kprobe": (
        Hook("kprobe__tcp_v4_destroy_sock", ("tcp_v4_destroy_sock",)),
        Hook("kretprobe__tcp_sendmsg", ("tcp_sendmsg", "tcp_sendpage"), every=True),
        Hook("kprobe__tcp_sendmsg", ("tcp_sendmsg",)),
        Hook("kprobe__tcp_sendpage", ("tcp_sendpage",), required=False),
        Hook("kretprobe__tcp_recvmsg", ("tcp_recvmsg",)),
        Hook("kprobe__tcp_recvmsg", ("tcp_recvmsg",)),
    ),
    "rawtp": (
        Hook("rawtp__tcp_destroy_sock", ("tcp_destroy_sock",)),
        Hook("rawtp__sock_send_length", ("sock_send_length",)),
        Hook("rawtp__sock_recv_length", ("sock_recv_length",)),
        Hook("rawtp__sock_send_length__again", ("sock_send_length",), required=False, where_preempted=True),
        Hook("rawtp__sock_recv_length__again", ("sock_recv_length",), required=False, where_preempted=True),
        Hook("rawtp__tcp_destroy_sock__again", ("tcp_destroy_sock",), required=False, where_preempted=True),
    ),
}
