/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Beside either set: the root of all cgroups is told who sent a datagram, of readers who ask, right before the receive
 * is over, in its thread. Kernels before 6.10 do not say which thread that is and refuse these.
 */

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
