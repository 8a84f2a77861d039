/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* A socket as every dataset of connections sees it: its ends, its namespace, whose it is. */

#define AF_INET      2
#define AF_INET6     10
#define IPPROTO_TCP  6
#define IPPROTO_UDP  17
#define MSG_OOB      1 /* a byte beside the sequence */
#define MSG_PEEK     2
#define MSG_ERRQUEUE 0x2000 /* what comes back is what was sent once */

enum { UNKNOWN, INCOMING, OUTGOING };

/*
 * What a lookup gave: a map value, or a 0 that is known to be one. From 4.10 to 4.13 a lookup that failed gives any
 * number, which when it is asked about once more may be an address; before 4.10 only the very register that is compared
 * with 0 is a map value afterwards, so that the compiler must not compare a copy.
 */
#define VALUE_OR_ZERO(pointer) asm volatile("if %0 != 0 goto +1\n\t%0 = 0" : "+r"(pointer))

struct address {
	u32 word[4];
};

/* Addresses are IPv6 or v4-mapped, ports in host order. */
struct tuple {
	struct address local;
	struct address remote;
	u16 local_port;
	u16 remote_port;
	u32 netns;
};

struct owner {
	u32 pid;
	char comm[16];
};

/* Into the stack only, as every READ(): before 4.11 a helper writes nowhere else. */
static __always_inline void own(struct owner *owner)
{
	owner->pid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(&owner->comm, sizeof(owner->comm));
}

static __always_inline void map_v4(struct address *address, u32 v4)
{
	address->word[0] = 0;
	address->word[1] = 0;
	address->word[2] = 0xffff0000; /* ::ffff:a.b.c.d, on a little-endian machine */
	address->word[3] = v4;
}

/* Of a socket that is known to be IPv4's or IPv6's. */
static __always_inline u16 protocol_of(void *sk)
{
	u16 protocol = 0;

	READ(&protocol, sk, sock__sk_protocol);
	return protocol;
}

/* 0 for what is neither IPv4 nor IPv6: the send and receive tracepoints see every family. */
static __always_inline u16 inet_protocol(void *sk)
{
	u16 family = 0;

	READ(&family, sk, sock_common__skc_family);
	return family == AF_INET || family == AF_INET6 ? protocol_of(sk) : 0;
}

static __always_inline int is_protocol(void *sk, u16 wanted)
{
	return inet_protocol(sk) == wanted;
}

#if defined(HAVE_sock_common__skc_v6_daddr) && defined(HAVE_sock_common__skc_v6_rcv_saddr)
#define FIRST_ADDRESS6 LOWER(AT(sock_common__skc_v6_daddr), AT(sock_common__skc_v6_rcv_saddr))
#define END_ADDRESS6   HIGHER(END(sock_common__skc_v6_daddr), END(sock_common__skc_v6_rcv_saddr))
#else
#define FIRST_ADDRESS6 AT(sock_common__skc_family)
#define END_ADDRESS6   END(sock_common__skc_family)
#endif
#if defined(HAVE_sock_common__skc_net) && defined(HAVE_net__ns__inum)
#define FIRST_NETNS AT(sock_common__skc_net)
#define END_NETNS   END(sock_common__skc_net)
#else
#define FIRST_NETNS AT(sock_common__skc_family)
#define END_NETNS   END(sock_common__skc_family)
#endif
#define FIRST_PORT    LOWER(AT(sock_common__skc_num), AT(sock_common__skc_dport))
#define END_PORTS     HIGHER(END(sock_common__skc_num), END(sock_common__skc_dport))
#define FIRST_ADDRESS LOWER(LOWER(AT(sock_common__skc_rcv_saddr), AT(sock_common__skc_daddr)), FIRST_ADDRESS6)
#define END_ADDRESSES HIGHER(HIGHER(END(sock_common__skc_rcv_saddr), END(sock_common__skc_daddr)), END_ADDRESS6)
#define FIRST_OF_ENDS LOWER(LOWER(FIRST_PORT, FIRST_ADDRESS), LOWER(AT(sock_common__skc_family), FIRST_NETNS))
#define LARGEST_ENDS  LOWER(LARGEST_SPAN, 144) /* no struct sock_common is larger */
#define END_OF_ENDS   HIGHER(HIGHER(END_PORTS, END_ADDRESSES), HIGHER(END(sock_common__skc_family), END_NETNS))

/* The ports of a socket; that of its own is 0 when it has given it back. */
static __always_inline void read_ports(void *sk, u16 *local, u16 *remote)
{
	READ_SPAN(ports, sk, FIRST_PORT, END_PORTS, LARGEST_SPAN);

	PICK(local, ports, sock_common__skc_num);
	PICK(remote, ports, sock_common__skc_dport);
	*remote = __builtin_bswap16(*remote);
}

/* The ends of a socket; its namespace, which it never leaves, only where `netns` is still 0. */
static __always_inline void read_tuple(void *sk, struct tuple *tuple)
{
	u16 family = 0;
	u32 v4 = 0;
	READ_SPAN(ends, sk, FIRST_OF_ENDS, END_OF_ENDS, LARGEST_ENDS);

	PICK(&family, ends, sock_common__skc_family);
	PICK(&tuple->local_port, ends, sock_common__skc_num);
	PICK(&tuple->remote_port, ends, sock_common__skc_dport);
	tuple->remote_port = __builtin_bswap16(tuple->remote_port);
#if defined(HAVE_sock_common__skc_v6_daddr) && defined(HAVE_sock_common__skc_v6_rcv_saddr)
	if (family == AF_INET6) {
		PICK(&tuple->local, ends, sock_common__skc_v6_rcv_saddr);
		PICK(&tuple->remote, ends, sock_common__skc_v6_daddr);
	} else
#else
	/* What an IPv6 socket has in the place of IPv4's addresses is none of its own: they stay unknown, `::`. */
	if (family != AF_INET6)
#endif
	{
		PICK(&v4, ends, sock_common__skc_rcv_saddr);
		map_v4(&tuple->local, v4);
		PICK(&v4, ends, sock_common__skc_daddr);
		map_v4(&tuple->remote, v4);
	}
#if defined(HAVE_inet_sock__inet_sport)
	/* A socket that closes has given its port back already when the tracepoint tells so; this it keeps. */
	if (!tuple->local_port) {
		u16 port = 0;

		READ(&port, sk, inet_sock__inet_sport);
		tuple->local_port = __builtin_bswap16(port);
	}
#endif
#if defined(HAVE_sock_common__skc_net) && defined(HAVE_net__ns__inum)
	if (!tuple->netns) {
		void *net = 0;

		PICK(&net, ends, sock_common__skc_net);
		READ(&tuple->netns, net, net__ns__inum);
	}
#endif
}
