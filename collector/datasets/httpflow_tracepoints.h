/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Hook set two: raw tracepoints, for kernels without kprobes. The socket hook names the socket and says how much moved;
 * the end of the same system call, where the bytes lie.
 */

/* System calls by number, and the registers of their arguments. */
#if defined(__TARGET_ARCH_arm64) || defined(__aarch64__)
enum {
	NR_READ = 63,
	NR_WRITE,
	NR_READV,
	NR_WRITEV,
	NR_SENDTO = 206,
	NR_RECVFROM,
	NR_SENDMSG = 211,
	NR_RECVMSG,
	NR_RECVMMSG = 243,
	NR_SENDMMSG = 269
};
#define SYSCALL_NUMBER syscallno
#define SYSCALL_ARG2   regs[1]
#define SYSCALL_ARG3   regs[2]
#else
enum {
	NR_READ,
	NR_WRITE,
	NR_READV = 19,
	NR_WRITEV,
	NR_SENDTO = 44,
	NR_RECVFROM,
	NR_SENDMSG,
	NR_RECVMSG,
	NR_RECVMMSG = 299,
	NR_SENDMMSG = 307
};
#define SYSCALL_NUMBER orig_ax
#define SYSCALL_ARG2   si
#define SYSCALL_ARG3   dx
#endif
#define MSG_IOV 16 /* in struct user_msghdr, with which struct mmsghdr begins (ABI) */

/* What a system call moved so far. */
struct transfer {
	u64 sk;
	u64 time_ns;
	u32 size;
	u32 written;
};

/* By thread: programs insert within a call and delete at its end, so as many as there are calls at a time. */
BPF_HASH(transfers, u64, struct transfer, 32768);

static __always_inline void moved(void *sk, int size, int written)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct conn_key key = {};
	struct transfer fresh = {};
	struct transfer *transfer;
	struct conn *conn;

	if (size <= 0)
		return;
	key.sk = (u64)sk;
	conn = conns.lookup(&key);
	if (conn ? conn->kind == OVER : !is_protocol(sk, IPPROTO_TCP))
		return;
	transfer = transfers.lookup(&thread);
	/* sendfile(2) and sendmmsg(2) move more than once. */
	if (transfer && transfer->sk == (u64)sk && transfer->written == written) {
		transfer->size += size;
		return;
	}
	fresh.sk = (u64)sk;
	fresh.time_ns = bpf_ktime_get_ns();
	fresh.size = size;
	fresh.written = written;
	if (transfers.update(&thread, &fresh))
		lose(LOST_CALL);
}

/* (struct sock *sk, int ret, int flags), after the send. */
int rawtp__sock_send_length(struct bpf_raw_tracepoint_args *ctx)
{
	moved((void *)ctx->args[0], (int)ctx->args[1], 1);
	return 0;
}

/* (struct sock *sk, int ret, int flags), after the receive. */
int rawtp__sock_recv_length(struct bpf_raw_tracepoint_args *ctx)
{
	if (!((int)ctx->args[2] & MSG_PEEK))
		moved((void *)ctx->args[0], (int)ctx->args[1], 0);
	return 0;
}

/* (struct pt_regs *regs, long ret): what was asked for is still in the registers. */
int rawtp__sys_exit(struct bpf_raw_tracepoint_args *ctx)
{
	const struct pt_regs *regs = (const struct pt_regs *)ctx->args[0];
	u64 thread = bpf_get_current_pid_tgid();
	struct transfer *transfer = transfers.lookup(&thread);
	struct chunk chunk = {};
	u64 number = 0;
	u64 where = 0;
	u64 count = 0;

	if (!transfer)
		return 0;
	chunk.key.sk = transfer->sk;
	chunk.time_ns = transfer->time_ns;
	chunk.size = transfer->size;
	chunk.written = transfer->written;
	transfers.delete(&thread);
	bpf_probe_read(&number, sizeof(regs->SYSCALL_NUMBER), &regs->SYSCALL_NUMBER);
	bpf_probe_read(&where, sizeof(where), &regs->SYSCALL_ARG2);
	bpf_probe_read(&count, sizeof(count), &regs->SYSCALL_ARG3);
	if (number == NR_READ || number == NR_WRITE || number == NR_SENDTO || number == NR_RECVFROM) {
		chunk.source.base = where;
		chunk.source.left = count;
	} else if (number == NR_READV || number == NR_WRITEV) {
		chunk.source.iov = where;
		chunk.source.segments = count;
	} else if (number == NR_SENDMSG || number == NR_RECVMSG || number == NR_SENDMMSG || number == NR_RECVMMSG) {
		/*
		 * Where the iovecs lie and how many there are: what `iov` and `segments` are. Of many messages, the
		 * first; of those behind, only how many bytes they are is known.
		 */
		bpf_probe_read(&chunk.source.iov, 2 * sizeof(where), (void *)(where + MSG_IOV));
	}
	on_chunk(ctx, &chunk);
	return 0;
}

int rawtp__tcp_destroy_sock(struct bpf_raw_tracepoint_args *ctx)
{
	on_destroy(ctx, (void *)ctx->args[0]);
	return 0;
}
