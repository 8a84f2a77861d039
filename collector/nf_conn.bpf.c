// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * nf_conn: the connections of every network namespace whose destination the tracker translates, as it takes them up and
 * as it lets go of them. A connection that is not translated costs a look at one word.
 */
#include <uapi/linux/ptrace.h>
#include <kcompat/read.h>

#define IPPROTO_TCP   6
#define IPPROTO_UDP   17
#define IPS_CONFIRMED (1 << 3)
#define IPS_DST_NAT   (1 << 5)
#define NFCT_PTRMASK  ~7ULL

/* Addresses are as in union nf_inet_addr: of IPv4 the first four bytes say something. Ports are in host order. */
struct told {
	u64 time_ns; /* CLOCK_MONOTONIC */
	char source[16];
	char destination[16];
	char real[16]; /* whom the reply comes from */
	u32 netns;
	u16 source_port;
	u16 destination_port;
	u16 real_port;
	u16 family;
	u8 protocol;
	u8 ended;
	u16 unused;
};

/* Translated connections, a ring a CPU: what finds it full is counted by the kernel and told to user space. */
BPF_PERF_OUTPUT(translated);

static __always_inline void tell(struct pt_regs *ctx, const void *ct, u64 wanted, u8 ended)
{
	const void *original = ct + AT(nf_conn__tuplehash0__tuple);
	const void *reply = ct + AT(nf_conn__tuplehash1__tuple);
	struct told told = {};
	u64 status = 0;

	READ(&status, ct, nf_conn__status);
	if ((status & wanted) != wanted)
		return;
	READ(&told.protocol, original, nf_conntrack_tuple__dst__protonum);
	if (told.protocol != IPPROTO_TCP && told.protocol != IPPROTO_UDP)
		return;
	told.time_ns = bpf_ktime_get_ns();
	told.ended = ended;
	READ(&told.family, original, nf_conntrack_tuple__src__l3num);
	READ(&told.source, original, nf_conntrack_tuple__src__u3);
	READ(&told.source_port, original, nf_conntrack_tuple__src__u);
	READ(&told.destination, original, nf_conntrack_tuple__dst__u3);
	READ(&told.destination_port, original, nf_conntrack_tuple__dst__u);
	READ(&told.real, reply, nf_conntrack_tuple__src__u3);
	READ(&told.real_port, reply, nf_conntrack_tuple__src__u);
	told.source_port = __builtin_bswap16(told.source_port);
	told.destination_port = __builtin_bswap16(told.destination_port);
	told.real_port = __builtin_bswap16(told.real_port);
	/* A kernel without namespaces has neither: then the only one is 0. */
#if defined(HAVE_nf_conn__ct_net) && defined(HAVE_net__ns__inum)
	{
		const void *net = 0;

		READ(&net, ct, nf_conn__ct_net);
		READ(&told.netns, net, net__ns__inum);
	}
#endif
	translated.perf_submit(ctx, &told, sizeof(told));
}

/* (struct nf_conn *ct, ...), of packets and of ctnetlink alike. */
int kprobe__insert(struct pt_regs *ctx)
{
	tell(ctx, (const void *)PT_REGS_PARM1(ctx), IPS_DST_NAT, 0);
	return 0;
}

#if defined(HAVE_sk_buff___nfct)
/* (struct sk_buff *skb), where the function above has become a part of its callers. */
int kprobe__confirm(struct pt_regs *ctx)
{
	u64 nfct = 0;

	READ(&nfct, (const void *)PT_REGS_PARM1(ctx), sk_buff___nfct);
	tell(ctx, (const void *)(nfct & NFCT_PTRMASK), IPS_DST_NAT, 0);
	return 0;
}
#endif

/* (struct nf_conntrack *nfct), the first member of struct nf_conn. What was never inserted has no end either. */
int kprobe__destroy(struct pt_regs *ctx)
{
	tell(ctx, (const void *)PT_REGS_PARM1(ctx), IPS_CONFIRMED | IPS_DST_NAT, 1);
	return 0;
}
