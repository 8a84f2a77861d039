// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* A CO-RE program as anybody would write it: which BTF it is relocated against is the loader's affair. */
#include <linux/bpf.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#define TCP_ESTABLISHED 1

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct in6_addr {
	union {
		__u8 u6_addr8[16];
		__be32 u6_addr32[4];
	} in6_u;
};
struct ns_common {
	unsigned int inum;
};
struct net {
	struct ns_common ns;
};
typedef struct {
	struct net *net;
} possible_net_t;
typedef struct {
	long long counter;
} atomic64_t;
struct sock_common {
	union {
		struct {
			__be32 skc_daddr;
			__be32 skc_rcv_saddr;
		};
	};
	union {
		struct {
			__be16 skc_dport;
			__u16 skc_num;
		};
	};
	unsigned short skc_family;
	volatile unsigned char skc_state;
	int skc_bound_dev_if;
	possible_net_t skc_net;
	struct in6_addr skc_v6_rcv_saddr;
	atomic64_t skc_cookie;
};
struct sock {
	struct sock_common __sk_common;
	__u32 sk_mark;
	int sk_rcvbuf;
	int sk_sndbuf;
	__u16 sk_type;
	__u16 sk_protocol;
};
struct inet_sock {
	struct sock sk;
	__be32 inet_saddr;
	__be16 inet_sport;
};
struct inet_connection_sock {
	struct inet_sock icsk_inet;
};
struct tcp_sock {
	struct inet_connection_sock inet_conn;
	__u32 srtt_us;
	__u32 mdev_us;
	__u32 snd_nxt;
	__u32 rcv_nxt;
	__u64 bytes_received;
};
#pragma clang attribute pop

/* The loader inserts the local port of interest, the program reads it: one entry. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} wanted SEC(".maps");

/* The program inserts the first matching socket, the loader reads it: one entry of named values, in this order. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64[19]);
} seen SEC(".maps");

SEC("raw_tp/inet_sock_set_state")
int set_state(struct bpf_raw_tracepoint_args *ctx)
{
	struct sock *sk = (struct sock *)ctx->args[0];
	struct tcp_sock *tp = (struct tcp_sock *)sk;
	struct net *net = 0;
	__u32 zero = 0, *port = bpf_map_lookup_elem(&wanted, &zero);
	__u64 *out = bpf_map_lookup_elem(&seen, &zero);

	if (!port || !out || out[0] || ctx->args[1] != TCP_ESTABLISHED)
		return 0;
	if (BPF_CORE_READ(sk, __sk_common.skc_num) != *port)
		return 0;
	out[0] = BPF_CORE_READ(sk, __sk_common.skc_num);
	out[1] = BPF_CORE_READ(sk, __sk_common.skc_daddr);
	out[2] = BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr);
	out[3] = BPF_CORE_READ(sk, __sk_common.skc_dport);
	out[4] = BPF_CORE_READ(sk, __sk_common.skc_family);
	out[5] = BPF_CORE_READ(sk, __sk_common.skc_state);
	out[6] = BPF_CORE_READ(sk, __sk_common.skc_bound_dev_if);
	out[7] = BPF_CORE_READ(sk, __sk_common.skc_cookie.counter);
	if (bpf_core_field_exists(sk->__sk_common.skc_net.net)) /* CONFIG_NET_NS */
		net = BPF_CORE_READ(sk, __sk_common.skc_net.net);
	if (bpf_core_field_exists(net->ns.inum))
		out[8] = BPF_CORE_READ(net, ns.inum);
	out[9] = BPF_CORE_READ(sk, sk_mark);
	out[10] = BPF_CORE_READ(sk, sk_rcvbuf);
	out[11] = BPF_CORE_READ_BITFIELD_PROBED(sk, sk_type); /* one before 5.6 (kernel commit bf9765145b85) */
	out[12] = BPF_CORE_READ((struct inet_sock *)sk, inet_saddr);
	out[13] = BPF_CORE_READ((struct inet_sock *)sk, inet_sport);
	out[14] = BPF_CORE_READ(tp, srtt_us);
	out[15] = BPF_CORE_READ(tp, mdev_us);
	out[16] = BPF_CORE_READ(tp, snd_nxt);
	out[17] = BPF_CORE_READ(tp, bytes_received);
	if (bpf_core_field_exists(sk->__sk_common.skc_v6_rcv_saddr)) /* CONFIG_IPV6 */
		out[18] = BPF_CORE_READ(sk, __sk_common.skc_v6_rcv_saddr.in6_u.u6_addr32[3]);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
