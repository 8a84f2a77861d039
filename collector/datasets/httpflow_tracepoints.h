/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Hook set two: raw tracepoints, for kernels without kprobes. The socket hook names the socket and says how much moved;
 * the registers that the thread came into the kernel with, where the bytes lie.
 *
 * They stand at the end of its kernel stack, on which we are too. The hook of the end of system calls is given them,
 * but every system call of the machine pays for that one.
 */

/* Whether an event has been dealt with already shows by what the socket has moved. */
#if defined(HAVE_tcp_sock__write_seq) && defined(HAVE_tcp_sock__copied_seq)
#define TWICE
#endif

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
/* In struct mmsghdr, which begins with struct user_msghdr (ABI). */
#define MSG_IOV  16
#define MMSG_LEN 56

#define STACK 16384 /* no stack is smaller, and each begins at a multiple of its size */
/*
 * How far behind a multiple of STACK the registers stand, the same on every stack; 0 while that is not known. Slot 1:
 * how far they would have to as well, had two stacks told two things. Programs write as long as user space has the end
 * of system calls hooked, and read.
 */
BPF_ARRAY(registers, u64, 2);
/* Slot 0: whether each event is tried twice. User space writes, before there are any. */
BPF_ARRAY(twice, u32, 1);

static __always_inline int is_twice(void)
{
	int zero = 0;
	u32 *said = twice.lookup(&zero);

	return said && *said;
}

static __always_inline u64 registers_at(int slot)
{
	u64 *at = registers.lookup(&slot);

	return at ? *at : 0;
}

/* (struct pt_regs *regs, long ret) */
int rawtp__sys_exit(struct bpf_raw_tracepoint_args *ctx)
{
	u64 at = ctx->args[0] & (STACK - 1);
	u64 known = registers_at(0);
	int slot = 0;

	if (known && known != at)
		slot = 1;
	registers.update(&slot, &at);
	return 0;
}

/*
 * The context's address as a number. Of all operations on a pointer the verifier takes this one for the making of a
 * number, from whom it lets see kernel addresses.
 */
static __always_inline u64 address_of(void *ctx)
{
	u64 negative = (u64)ctx;

	asm volatile("%0 = -%0" : "+r"(negative));
	return -negative;
}

/*
 * Of many messages in a call nobody says which one this is: the first, as long as nothing is told of what that one
 * moved. Of others only how many bytes they are is known.
 */
static __always_inline void find_message(struct source *source, const struct called *call)
{
	u32 moved_before = 0;

	if (call->number == NR_SENDMMSG || call->number == NR_RECVMMSG) {
		bpf_probe_read(&moved_before, sizeof(moved_before), (void *)(call->where + MMSG_LEN));
		if (moved_before && call->count > 1) {
			lose(LOST_CALL);
			return;
		}
	}
	/* Where the iovecs lie and how many there are: what `iov` and `segments` are. */
	bpf_probe_read(&source->iov, 2 * sizeof(source->iov), (void *)(call->where + MSG_IOV));
}

/* Of the call that this thread is in, where its bytes lie. */
static __always_inline void find_source(struct source *source, struct called *call, void *ctx, u64 at)
{
	read_call(call, (const struct pt_regs *)((address_of(ctx) & ~(STACK - 1ULL)) + at));
	if (call->number == NR_READ || call->number == NR_WRITE || call->number == NR_SENDTO ||
	    call->number == NR_RECVFROM) {
		source->base = call->where;
		source->left = call->count;
	} else if (call->number == NR_READV || call->number == NR_WRITEV) {
		source->iov = call->where;
		source->segments = call->count;
	} else if (call->number == NR_SENDMSG || call->number == NR_RECVMSG || call->number == NR_SENDMMSG ||
	           call->number == NR_RECVMMSG) {
		find_message(source, call);
	}
}

/* One piece of the stack serves all that follows. */
static __always_inline void look_into(void *ctx, struct chunk *chunk, struct conn *conn, u64 at, int written)
{
	union scratch scratch;

	__builtin_memset(scratch.registers, 0, sizeof(scratch.registers));
	find_source(&chunk->source, (struct called *)scratch.registers, ctx, at);
	on_chunk(ctx, &scratch, chunk, conn, written);
}

#if defined(TWICE)
/*
 * Calls that both programs were kept from show by the socket's number, if that never said anything else than what calls
 * moved. One more is a FIN.
 */
static __always_inline void find_unseen(struct conn *conn, struct chunk *chunk, int written)
{
	u32 before = written ? conn->written_seq : conn->read_seq;
	u8 said = written ? conn->written_said : conn->read_said;
	u32 unseen = chunk->seq - before - chunk->size;

	if (!before || unseen == 1)
		return;
	if (unseen && said == SAID_SAME && unseen < 0x80000000) {
		chunk->unseen = unseen;
		if (written)
			conn->written += unseen;
		else
			conn->read += unseen;
		return;
	}
	said |= unseen ? SAID_OTHER : SAID_SAME;
	if (written)
		conn->written_said = said;
	else
		conn->read_said = said;
}
#endif

static __always_inline void moved(void *ctx, void *sk, int size, int written, int is_again)
{
	u64 at = registers_at(0) & (STACK - 1);
	struct chunk chunk = {};
	struct conn *conn;

	if (size <= 0 || !at)
		return;
	chunk.key.sk = (u64)sk;
	conn = find_conn(ctx, &chunk.key, 0);
	if (!conn)
		return;
	inside_tls(sk, conn);
	if (conn->kind == OVER)
		return;
	chunk.time_ns = bpf_ktime_get_ns();
	chunk.size = size;
	chunk.written = written;
#if defined(TWICE)
	if (is_twice()) {
		if (written)
			READ(&chunk.seq, sk, tcp_sock__write_seq);
		else
			READ(&chunk.seq, sk, tcp_sock__copied_seq);
		if (is_again && (written ? conn->written_seq : conn->read_seq) == chunk.seq)
			return;
		find_unseen(conn, &chunk, written);
	}
#endif
	look_into(ctx, &chunk, conn, at, written);
}

static __always_inline int received(struct bpf_raw_tracepoint_args *ctx, int is_again)
{
	if (!((int)ctx->args[2] & MSG_PEEK))
		moved(ctx, (void *)ctx->args[0], (int)ctx->args[1], 0, is_again);
	return 0;
}

/* (struct sock *sk, int ret, int flags), after the send. */
int rawtp__sock_send_length(struct bpf_raw_tracepoint_args *ctx)
{
	moved(ctx, (void *)ctx->args[0], (int)ctx->args[1], 1, 0);
	return 0;
}

/* (struct sock *sk, int ret, int flags), after the receive. */
int rawtp__sock_recv_length(struct bpf_raw_tracepoint_args *ctx)
{
	return received(ctx, 0);
}

#if defined(TWICE)
/*
 * The same where programs may be preempted, right behind. One that has not ended is not begun again on its processor:
 * without these, what the thread that runs there meanwhile moves would be lost.
 */
int rawtp__sock_send_length__again(struct bpf_raw_tracepoint_args *ctx)
{
	moved(ctx, (void *)ctx->args[0], (int)ctx->args[1], 1, 1);
	return 0;
}

int rawtp__sock_recv_length__again(struct bpf_raw_tracepoint_args *ctx)
{
	return received(ctx, 1);
}
#endif

int rawtp__tcp_destroy_sock(struct bpf_raw_tracepoint_args *ctx)
{
	on_destroy(ctx, (void *)ctx->args[0]);
	return 0;
}

/* What the first try forgot is not there any more. */
int rawtp__tcp_destroy_sock__again(struct bpf_raw_tracepoint_args *ctx)
{
	on_destroy(ctx, (void *)ctx->args[0]);
	return 0;
}
