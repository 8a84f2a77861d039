"""Where netflow's programs go: two sets of hooks, each of which is enough."""

from __future__ import annotations

from collector.datasets.hooks import Backend, Hook

TARGETS = ("cgroup__udp4_sendmsg", "cgroup__udp6_sendmsg")
"""Which tell where a datagram is sent to; where they are, nothing runs when a route is looked up, for any protocol."""
SENDERS = ("cgroup__udp4_recvmsg", "cgroup__udp6_recvmsg")
"""Which tell who sent a datagram; where they are, nothing runs at the end of every system call."""
DATAGRAMS = ("kprobe__udp_send", "kretprobe__udp_send", "kprobe__udp_recvmsg", "kretprobe__udp_recvmsg",
             "rawtp__sock_send_length", "rawtp__sock_recv_length")
"""Which count datagrams: one that they are kept from is lost. With what TCP moved the next event catches up."""
_TARGETS, _SENDERS = (tuple(Hook(program, (program.removeprefix("cgroup__"),), required=False) for program in programs)
                      for programs in (TARGETS, SENDERS))

HOOKS: dict[Backend, tuple[Hook, ...]] = {
    "kprobe": (
        Hook("kprobe__tcp_set_state", ("tcp_set_state",)),
        Hook("kretprobe__tcp_send", ("tcp_sendmsg", "tcp_sendpage"), every=True),
        Hook("kprobe__tcp_send", ("tcp_sendmsg", "tcp_sendpage"), every=True),
        Hook("kprobe__tcp_recvmsg", ("tcp_recvmsg",)),
        Hook("kprobe__tcp_cleanup_rbuf", ("tcp_cleanup_rbuf",)),
        Hook("kprobe__tcp_v4_destroy_sock", ("tcp_v4_destroy_sock",)),
        Hook("kretprobe__inet_csk_accept", ("inet_csk_accept",), required=False),
        Hook("kretprobe__tcp_retransmit_skb", ("tcp_retransmit_skb",), required=False),
        Hook("kprobe__tcp_retransmit_skb", ("tcp_retransmit_skb",), required=False),
        Hook("kretprobe__udp_send", ("udp_sendmsg", "udpv6_sendmsg"), every=True),
        Hook("kprobe__udp_send", ("udp_sendmsg", "udpv6_sendmsg"), every=True),
        Hook("kprobe__udp_route4", ("ip_make_skb", "ip_append_data"), every=True),
        Hook("kprobe__udp_route6", ("ip6_sk_dst_lookup_flow",), required=False),
        Hook("kretprobe__udp_recvmsg", ("udp_recvmsg", "udpv6_recvmsg"), every=True),
        Hook("kprobe__udp_recvmsg", ("udp_recvmsg", "udpv6_recvmsg"), every=True),
        *_SENDERS,
        Hook("kprobe__move_addr_to_user", ("move_addr_to_user",), required=False, unless=(SENDERS,)),
        Hook("rawtp__sys_exit__last", ("sys_exit",), required=False, unless=(SENDERS,)),
        Hook("kretprobe__receive", ("sys_recvfrom", "sys_recvmsg", "sys_recvmmsg", "sock_read_iter"), every=True,
             required=False, unless=(SENDERS, ("rawtp__sys_exit__last",))),
    ),
    # The end of sockets first: what is known of one is then never taken for another's.
    "rawtp": (
        Hook("rawtp__tcp_destroy_sock", ("tcp_destroy_sock",)),
        Hook("rawtp__inet_sock_set_state", ("inet_sock_set_state",)),
        Hook("rawtp__sock_send_length", ("sock_send_length",)),
        Hook("rawtp__sock_recv_length", ("sock_recv_length",)),
        Hook("rawtp__tcp_retransmit_skb", ("tcp_retransmit_skb",)),
        *_TARGETS,
        *_SENDERS,
        Hook("rawtp__fib_table_lookup", ("fib_table_lookup",), required=False, unless=(TARGETS,)),
        Hook("rawtp__fib6_table_lookup", ("fib6_table_lookup",), required=False, unless=(TARGETS,)),
        Hook("rawtp__sys_exit", ("sys_exit",), required=False, unless=(SENDERS,)),
    ),
}
