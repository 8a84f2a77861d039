/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The root of all cgroups is told where a datagram is sent to, unless it is clear that its socket's peer is meant; and
 * who sent one, of readers who ask, right before the receive is over. Both in the thread that calls: kernels
 * before 6.10 do not say which thread that is and refuse these.
 */

/* With control messages a connected socket's are told of too, but not of the address. */
#define HAS_TARGET(ctx) ((ctx)->user_port)

int cgroup__udp4_sendmsg(struct bpf_sock_addr *ctx)
{
	struct route route = {};

	if (!HAS_TARGET(ctx))
		return 1;
	route.sk = (u64)ctx->sk;
	map_v4(&route.local, ctx->msg_src_ip4);
	map_v4(&route.remote, ctx->user_ip4);
	route.remote_port = ctx->user_port;
	remember_route(&route);
	return 1;
}

int cgroup__udp6_sendmsg(struct bpf_sock_addr *ctx)
{
	struct route route = {};

	if (!HAS_TARGET(ctx))
		return 1;
	route.sk = (u64)ctx->sk;
	route.local.word[0] = ctx->msg_src_ip6[0];
	route.local.word[1] = ctx->msg_src_ip6[1];
	route.local.word[2] = ctx->msg_src_ip6[2];
	route.local.word[3] = ctx->msg_src_ip6[3];
	route.remote.word[0] = ctx->user_ip6[0];
	route.remote.word[1] = ctx->user_ip6[1];
	route.remote.word[2] = ctx->user_ip6[2];
	route.remote.word[3] = ctx->user_ip6[3];
	route.remote_port = ctx->user_port;
	remember_route(&route);
	return 1;
}

int cgroup__udp4_recvmsg(struct bpf_sock_addr *ctx)
{
	struct sender sender = {};

	map_v4(&sender.remote, ctx->user_ip4);
	remember_sender(&sender, ctx->user_port);
	return 1;
}

int cgroup__udp6_recvmsg(struct bpf_sock_addr *ctx)
{
	struct sender sender = {};

	sender.remote.word[0] = ctx->user_ip6[0];
	sender.remote.word[1] = ctx->user_ip6[1];
	sender.remote.word[2] = ctx->user_ip6[2];
	sender.remote.word[3] = ctx->user_ip6[3];
	remember_sender(&sender, ctx->user_port);
	return 1;
}
