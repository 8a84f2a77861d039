/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Hook set one: kprobes. The message says where the bytes lie: its iov_iter, as it stands before the call.
 */

#if defined(HAVE_msghdr__msg_iter__iov) && defined(HAVE_msghdr__msg_iter__count) && \
	defined(HAVE_msghdr__msg_iter__nr_segs) && defined(HAVE_tcp_sock__copied_seq)
#define ENOUGH_SEGMENTS 1024

struct call {
	u64 sk;
	u32 copied_seq;
	u32 unused;
	struct source source;
};

/*
 * By thread: programs insert when a call begins and delete when it ends, so as many as there are calls at a time; when
 * half full, user space deletes those of threads that have ended.
 */
BPF_HASH(calls, u64, struct call, 32768);

/* One buffer of user space has its address where else the array of iovecs has its own, which is the kernel's. */
static __always_inline void find_buffers(struct source *source, void *message)
{
	u64 pointer = 0;
	u64 count = 0;
	u64 segments = 0;

	READ(&pointer, message, msghdr__msg_iter__iov);
	READ(&count, message, msghdr__msg_iter__count);
	READ(&segments, message, msghdr__msg_iter__nr_segs);
	if (!pointer)
		return;
	if (!IS_KERNEL(pointer)) {
		source->base = pointer;
		source->left = count;
	} else {
		source->iov = pointer;
		source->segments = segments < ENOUGH_SEGMENTS ? segments : ENOUGH_SEGMENTS;
	}
}

static __always_inline void begin(void *sk, void *message)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct conn_key key = {};
	struct call call = {};
	struct conn *conn;

	key.sk = (u64)sk;
	conn = conns.lookup(&key);
	VALUE_OR_ZERO(conn);
	inside_tls(sk, conn);
	if (conn && conn->kind == OVER && !is_another(conn, &key)) {
		/* Of a call whose end was missed. */
		calls.delete(&thread);
		return;
	}
	call.sk = (u64)sk;
	READ(&call.copied_seq, sk, tcp_sock__copied_seq);
	if (message)
		find_buffers(&call.source, message);
	if (calls.update(&thread, &call))
		lose(LOST_CALL);
}

/* What was read since the last call that was told of, and by none: in one that was missed, or by splice(2). */
static __always_inline void find_unread(struct conn *conn, struct chunk *chunk, u32 before)
{
	u32 last = conn->read_seq;
	u32 unseen = before - last;

	if (last && unseen < 0x80000000) {
		chunk->unseen = unseen;
		conn->read += unseen;
	}
}

static __always_inline int end(struct pt_regs *ctx, int written)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct call *call = calls.lookup(&thread);
	struct chunk chunk = {};
	u32 before, copied_seq = 0;
	struct conn *conn;

	if (!call)
		return 0;
	chunk.key.sk = call->sk;
	chunk.source = call->source;
	before = call->copied_seq;
	calls.delete(&thread);
	chunk.size = PT_REGS_RC(ctx);
	if ((int)chunk.size <= 0)
		return 0;
	/* Who only peeked took nothing. */
	READ(&copied_seq, (void *)chunk.key.sk, tcp_sock__copied_seq);
	if (!written && copied_seq == before)
		return 0;
	chunk.time_ns = bpf_ktime_get_ns();
	chunk.written = written;
	conn = find_conn(ctx, &chunk.key, 1);
	if (!written) {
		if (!conn)
			return 0;
		chunk.seq = copied_seq;
		find_unread(conn, &chunk, before);
	}
	on_chunk_in_stages(ctx, &chunk, conn, written);
	return 0;
}

/* (struct sock *sk, struct msghdr *msg, ...) */
int kprobe__tcp_sendmsg(struct pt_regs *ctx)
{
	begin((void *)PT_REGS_PARM1(ctx), (void *)PT_REGS_PARM2(ctx));
	return 0;
}

int kretprobe__tcp_sendmsg(struct pt_regs *ctx)
{
	return end(ctx, 1);
}

/* Before 6.5, what sendfile(2) and splice(2) send: pages, which no user buffer holds. */
int kprobe__tcp_sendpage(struct pt_regs *ctx)
{
	begin((void *)PT_REGS_PARM1(ctx), 0);
	return 0;
}

int kprobe__tcp_recvmsg(struct pt_regs *ctx)
{
	begin((void *)PT_REGS_PARM1(ctx), (void *)PT_REGS_PARM2(ctx));
	return 0;
}

int kretprobe__tcp_recvmsg(struct pt_regs *ctx)
{
	return end(ctx, 0);
}

int kprobe__tcp_v4_destroy_sock(struct pt_regs *ctx)
{
	on_destroy(ctx, (void *)PT_REGS_PARM1(ctx));
	return 0;
}
#endif
