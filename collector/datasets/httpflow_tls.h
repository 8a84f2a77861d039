/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What goes through TLS libraries, before it is encrypted and after it was decrypted. Which socket it goes over no
 * argument says: the hooks of sockets do, which fire while the thread is in the library. A read of what the library had
 * decrypted before asks no socket: then it is the one its session spoke over last.
 */

/* What a thread is doing in a TLS library. */
struct tls_call {
	u64 session; /* SSL *, gnutls_session_t: one within a process */
	u64 buffer;  /* 0: none, it shakes hands */
	u64 size_at; /* where the library tells how much it moved; 0: it returns that */
	u64 sk;      /* the socket it spoke over, 0: none so far, and when it last did */
	u64 time_ns;
	u64 written;
};

struct tls_session {
	u64 process;
	u64 session;
};

/* `id` is the connection's: should the socket be another's by now, it is another. */
struct tls_socket {
	u64 sk;
	u64 id;
};

/*
 * By thread: programs insert when a call begins and delete when it ends, so as many as there are calls at a time; user
 * space deletes those of threads that have ended in one.
 */
BPF_HASH(tls_calls, u64, struct tls_call, 32768);
/*
 * Programs insert, and delete when a session is freed; user space deletes those of processes that have ended. When it
 * is full, only what a library had decrypted before is lost, and counted.
 */
BPF_HASH(tls_sockets, struct tls_session, struct tls_socket, MAX_CONNS);

/* Slot 0: whether a library was ever called. Programs set it, and do not ask for calls before. */
BPF_ARRAY(tls_seen, u32, 1);

/*
 * From every hook of a socket: it is the one of the library's call this thread is in, if it is in one. Which requests
 * go over in the clear is not asked about.
 */
static __always_inline void inside_tls(void *sk, const struct conn *conn)
{
	struct tls_call *call;
	int zero = 0;
	u64 thread;
	u32 *seen;

	if (conn && conn->kind == PLAIN)
		return;
	seen = tls_seen.lookup(&zero);
	if (!seen || !*seen)
		return;
	thread = bpf_get_current_pid_tgid();
	call = tls_calls.lookup(&thread);
	if (!call)
		return;
	call->sk = (u64)sk;
	call->time_ns = bpf_ktime_get_ns();
}

static __always_inline int begin_tls(u64 session, u64 buffer, u64 size_at, int written)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct tls_call call = {};
	int zero = 0;
	u32 *seen = tls_seen.lookup(&zero);

	if (seen && !*seen)
		*seen = 1;
	call.session = session;
	call.buffer = buffer;
	call.size_at = size_at;
	call.written = written;
	if (tls_calls.update(&thread, &call))
		lose(LOST_CALL);
	return 0;
}

/* (SSL *, const void *, int): SSL_write; (gnutls_session_t, const void *, size_t): gnutls_record_send */
int uprobe__tls_write(struct pt_regs *ctx)
{
	return begin_tls(PT_REGS_PARM1(ctx), PT_REGS_PARM2(ctx), 0, 1);
}

/* (SSL *, const void *, size_t, size_t *): SSL_write_ex */
int uprobe__tls_write_ex(struct pt_regs *ctx)
{
	return begin_tls(PT_REGS_PARM1(ctx), PT_REGS_PARM2(ctx), PT_REGS_PARM4(ctx), 1);
}

/* (SSL *, const void *, size_t, uint64_t, size_t *): SSL_write_ex2, ssl_write_internal from OpenSSL 3.3 on */
int uprobe__tls_write_flags(struct pt_regs *ctx)
{
	return begin_tls(PT_REGS_PARM1(ctx), PT_REGS_PARM2(ctx), PT_REGS_PARM5(ctx), 1);
}

int uprobe__tls_read(struct pt_regs *ctx)
{
	return begin_tls(PT_REGS_PARM1(ctx), PT_REGS_PARM2(ctx), 0, 0);
}

int uprobe__tls_read_ex(struct pt_regs *ctx)
{
	return begin_tls(PT_REGS_PARM1(ctx), PT_REGS_PARM2(ctx), PT_REGS_PARM4(ctx), 0);
}

/* (SSL *): SSL_do_handshake; (gnutls_session_t): gnutls_handshake. It may read more than its own. */
int uprobe__tls_handshake(struct pt_regs *ctx)
{
	return begin_tls(PT_REGS_PARM1(ctx), 0, 0, 0);
}

/* (SSL *): SSL_free; (gnutls_session_t): gnutls_deinit */
int uprobe__tls_free(struct pt_regs *ctx)
{
	struct tls_session key = {};

	key.process = bpf_get_current_pid_tgid() >> 32;
	key.session = PT_REGS_PARM1(ctx);
	tls_sockets.delete(&key);
	return 0;
}

/* The session spoke over this socket. What the socket itself carries is of no interest: it is not looked at again. */
static __always_inline void remember(struct tls_session *key, u64 sk)
{
	struct conn_key bare = {};
	struct tls_socket spoke;
	struct tls_socket *before;
	struct conn *conn;

	bare.sk = sk;
	conn = conns.lookup(&bare);
	if (!conn)
		return;
	if (conn->kind == NEW)
		conn->kind = OVER;
	before = tls_sockets.lookup(key);
	spoke.sk = sk;
	spoke.id = conn->id;
	if (!before)
		tls_sockets.update(key, &spoke);
	else if (before->id != spoke.id)
		*before = spoke;
}

static __always_inline u64 remembered(struct tls_session *key)
{
	struct tls_socket *spoke = tls_sockets.lookup(key);
	struct conn_key bare = {};
	struct conn *conn;
	u64 id;

	if (!spoke)
		return 0;
	bare.sk = spoke->sk;
	id = spoke->id;
	conn = conns.lookup(&bare);
	return conn && conn->id == id ? bare.sk : 0;
}

/* The end of any of them. */
int uretprobe__tls(struct pt_regs *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct tls_call *call = tls_calls.lookup(&thread);
	struct tls_session session = {};
	struct chunk chunk = {};
	u64 size_at, moved;

	if (!call)
		return 0;
	session.process = thread >> 32;
	session.session = call->session;
	chunk.key.sk = call->sk;
	chunk.key.layer = TLS;
	chunk.source.base = call->buffer;
	chunk.written = call->written;
	/* What came was there for the reader when it was decrypted, what went when the socket had it. */
	chunk.time_ns = chunk.written ? call->time_ns : 0;
	size_at = call->size_at;
	tls_calls.delete(&thread);
	if (chunk.key.sk)
		remember(&session, chunk.key.sk);
	if (!chunk.source.base || (int)PT_REGS_RC(ctx) <= 0)
		return 0;
	moved = PT_REGS_RC(ctx);
	if (size_at && bpf_probe_read(&moved, sizeof(moved), (void *)size_at))
		return 0;
	chunk.size = moved;
	if ((int)chunk.size <= 0)
		return 0;
	chunk.source.left = chunk.size;
	if (!chunk.time_ns)
		chunk.time_ns = bpf_ktime_get_ns();
	if (!chunk.key.sk)
		chunk.key.sk = remembered(&session);
	if (chunk.key.sk)
		on_chunk_in_stages(ctx, &chunk, find_conn(ctx, &chunk.key, 1), 0);
	else
		lose(LOST_TLS);
	return 0;
}
