// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * The in-kernel half of the rival: a sequential scan in the manner of tcptracer-bpf, written anew from a description.
 * Each event, a TCP connect of the one thread user space names, reads one value at one offset.
 */
#include <uapi/linux/ptrace.h>

#define SYN_SENT    2
#define ESTABLISHED 1

enum { CHECKING = 1, CHECKED };
enum { U32 = 1, U16, NETNS };

struct status {
	u64 pid_tgid;
	u32 state;
	u32 what;
	u32 offset;
	u32 offset_ino; /* behind the pointer at `offset`, for NETNS */
	s32 error;      /* the pointer could not be followed */
	u32 value;
};

/* The handshake, one entry under key 0: user space writes CHECKING, the program CHECKED, user space reads. */
BPF_HASH(tcptracer_status, u64, struct status, 1);
/* struct sock * by pid_tgid, from entry to return of tcp_v4_connect: the kprobe inserts, the kretprobe deletes. */
BPF_HASH(connecting, u64, u64, 1024);

static __always_inline int check(u64 sk)
{
	u64 key = 0, net = 0;
	u16 half = 0;
	struct status *now = tcptracer_status.lookup(&key);
	struct status next = {};

	if (!now || now->state != CHECKING || now->pid_tgid != bpf_get_current_pid_tgid())
		return 0;
	next.pid_tgid = now->pid_tgid;
	next.what = now->what;
	next.offset = now->offset;
	next.offset_ino = now->offset_ino;
	next.state = CHECKED;
	if (next.what == U32) {
		next.error = bpf_probe_read(&next.value, sizeof(next.value), (void *)(sk + next.offset));
	} else if (next.what == U16) {
		next.error = bpf_probe_read(&half, sizeof(half), (void *)(sk + next.offset));
		next.value = half;
	} else if (next.what == NETNS) {
		bpf_probe_read(&net, sizeof(net), (void *)(sk + next.offset));
		next.error = bpf_probe_read(&next.value, sizeof(next.value), (void *)(net + next.offset_ino));
	}
	tcptracer_status.update(&key, &next);
	return 0;
}

int kprobe__tcp_v4_connect(struct pt_regs *ctx)
{
	u64 key = bpf_get_current_pid_tgid(), sk = PT_REGS_PARM1(ctx);

	connecting.update(&key, &sk);
	return 0;
}

int kretprobe__tcp_v4_connect(struct pt_regs *ctx)
{
	u64 key = bpf_get_current_pid_tgid(), *sk = connecting.lookup(&key), address;

	if (!sk)
		return 0;
	address = *sk;
	connecting.delete(&key);
	return (int)PT_REGS_RC(ctx) == 0 ? check(address) : 0;
}

/* (const struct sock *sk, int oldstate, int newstate): by then addresses and ports are filled in, as at the return. */
int rawtp__inet_sock_set_state(struct bpf_raw_tracepoint_args *ctx)
{
	if (ctx->args[1] != SYN_SENT || ctx->args[2] != ESTABLISHED)
		return 0;
	return check(ctx->args[0]);
}
