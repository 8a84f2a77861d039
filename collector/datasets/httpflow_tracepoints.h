/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Hook set two: raw tracepoints, for kernels without kprobes. The socket hook names the socket and says how much moved;
 * the end of the same system call, where the bytes lie.
 */

/* A system call, and its second and third argument. */
struct called {
#if defined(__TARGET_ARCH_arm64) || defined(__aarch64__)
	u64 where;
	u64 count;
	u64 number;
#else
	u64 count;
	u64 where;
	u64 first;
	u64 number;
#endif
};

/* System calls by number, and how they are read off the registers. */
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
static __always_inline void read_call(struct called *call, const struct pt_regs *regs)
{
	bpf_probe_read(&call->where, 2 * sizeof(call->where), &regs->regs[1]);
	bpf_probe_read(&call->number, sizeof(regs->syscallno), &regs->syscallno);
}
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
/* From dx on they are neighbours: one reading instead of three. */
static __always_inline void read_call(struct called *call, const struct pt_regs *regs)
{
	bpf_probe_read(call, sizeof(*call), &regs->dx);
}
#endif
#define MSG_IOV 16 /* in struct user_msghdr, with which struct mmsghdr begins (ABI) */

/* What a system call moved so far; none when `size` is 0. */
struct transfer {
	u64 sk;
	u64 time_ns;
	u32 size;
	u32 written;
};

/* By thread. Programs insert and change in place; threads that have ended give way to others when it is full. */
BPF_TABLE("lru_hash", u64, struct transfer, transfers, 32768);

static __always_inline void moved(void *sk, int size, int written)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct conn_key key = {};
	struct transfer fresh = {};
	struct transfer *transfer;
	struct conn *conn;

	if (size <= 0)
		return;
	inside_tls(sk);
	key.sk = (u64)sk;
	conn = conns.lookup(&key);
	if (conn ? conn->kind == OVER : !is_protocol(sk, IPPROTO_TCP))
		return;
	transfer = transfers.lookup(&thread);
	if (!transfer) {
		fresh.sk = (u64)sk;
		fresh.time_ns = bpf_ktime_get_ns();
		fresh.size = size;
		fresh.written = written;
		if (transfers.update(&thread, &fresh))
			lose(LOST_CALL);
		return;
	}
	/* sendfile(2) and sendmmsg(2) move more than once. */
	if (transfer->size && transfer->sk == (u64)sk && transfer->written == written) {
		transfer->size += size;
		return;
	}
	transfer->sk = (u64)sk;
	transfer->time_ns = bpf_ktime_get_ns();
	transfer->size = size;
	transfer->written = written;
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
	struct called call = {};

	if (!transfer || !transfer->size)
		return 0;
	chunk.key.sk = transfer->sk;
	chunk.time_ns = transfer->time_ns;
	chunk.size = transfer->size;
	chunk.written = transfer->written;
	transfer->size = 0;
	read_call(&call, regs);
	if (call.number == NR_READ || call.number == NR_WRITE || call.number == NR_SENDTO ||
	    call.number == NR_RECVFROM) {
		chunk.source.base = call.where;
		chunk.source.left = call.count;
	} else if (call.number == NR_READV || call.number == NR_WRITEV) {
		chunk.source.iov = call.where;
		chunk.source.segments = call.count;
	} else if (call.number == NR_SENDMSG || call.number == NR_RECVMSG || call.number == NR_SENDMMSG ||
	           call.number == NR_RECVMMSG) {
		/*
		 * Where the iovecs lie and how many there are: what `iov` and `segments` are. Of many messages, the
		 * first; of those behind, only how many bytes they are is known.
		 */
		bpf_probe_read(&chunk.source.iov, 2 * sizeof(call.where), (void *)(call.where + MSG_IOV));
	}
	on_chunk(ctx, &chunk, 0);
	return 0;
}

int rawtp__tcp_destroy_sock(struct bpf_raw_tracepoint_args *ctx)
{
	on_destroy(ctx, (void *)ctx->args[0]);
	return 0;
}
