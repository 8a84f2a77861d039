/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* One state per socket that carries bytes, from its first call to its destruction. */

/* A socket seen for the first time; 0 when it is none of ours. */
static __always_inline struct conn *meet(union scratch *scratch, struct conn_key *key)
{
	void *sk = (void *)key->sk;
	struct conn *fresh = &scratch->conn;
	int zero = 0;
	u32 *others;

	if (!is_protocol(sk, IPPROTO_TCP))
		return 0;
	__builtin_memset(fresh, 0, sizeof(*fresh));
	fresh->id = bpf_ktime_get_ns();
	read_tuple(sk, &fresh->tuple);
	others = sampling.lookup(&zero);
	/* The clock's lowest bits are not of every machine's clock. */
	if (others && fresh->id >> 10 & *others)
		fresh->kind = OVER;
	/* Another processor may have been first: then its entry is ours too. */
	if (conns.insert(key, fresh) && !conns.lookup(key))
		lose(LOST_CONN);
	return conns.lookup(key);
}

static __always_inline void forget(void *ctx, union scratch *scratch, struct conn *conn, struct conn_key *key)
{
	struct piece *piece = &scratch->piece;

	if (conn->kind == FOLLOWED) {
		__builtin_memset(piece, 0, sizeof(*piece));
		tell(piece, key, conn, 0);
		piece->what = CLOSED;
		piece->time_ns = bpf_ktime_get_ns();
		count_unheard(pieces.perf_submit(ctx, piece, sizeof(*piece)));
	}
	conns.delete(key);
}

/* Whether the address is another socket's by now, and the end of the one was not seen. */
static __always_inline int is_another(const struct conn *conn, const struct conn_key *key)
{
	u16 local_port = 0;
	u16 remote_port = 0;

	READ(&local_port, (void *)key->sk, sock_common__skc_num);
	READ(&remote_port, (void *)key->sk, sock_common__skc_dport);
	remote_port = __builtin_bswap16(remote_port);
	return (local_port && local_port != conn->tuple.local_port) ||
	       (remote_port && remote_port != conn->tuple.remote_port);
}

/*
 * What is known of a connection from now on; 0 of one that is none of ours. Where events may be missed, as kprobes are,
 * a socket's end may have been: then what either layer carried was the other socket's.
 */
static __always_inline struct conn *find_conn(void *ctx, struct conn_key *key, int may_miss)
{
	struct conn *conn = conns.lookup(key);
	union scratch scratch;

	VALUE_OR_ZERO(conn);
	if (may_miss && conn && is_another(conn, key)) {
		forget(ctx, &scratch, conn, key);
		key->layer ^= TLS;
		conn = conns.lookup(key);
		if (conn)
			forget(ctx, &scratch, conn, key);
		key->layer ^= TLS;
		conn = 0;
	}
	asm volatile("" : "+r"(conn));
	return conn ? conn : meet(&scratch, key);
}

/* A call on a connection that has not begun with HTTP yet. */
static __always_inline void strike(struct conn *conn)
{
	conn->strikes += 1;
	if (conn->strikes >= STRIKES)
		conn->kind = OVER;
}

/* What is known of the connection after the call. */
static __always_inline void count(struct conn *conn, const struct chunk *chunk)
{
	u64 offset = conn->read;

	ALONE(offset);
	if (chunk->written) {
		offset = conn->written;
		ALONE(offset);
		conn->written = offset + chunk->size;
		conn->written_ns = chunk->time_ns;
		conn->written_seq = chunk->seq;
		asm volatile("# written" ::: "memory");
	} else {
		conn->read = offset + chunk->size;
		conn->read_ns = chunk->time_ns;
		conn->read_seq = chunk->seq;
		asm volatile("# read" ::: "memory");
	}
}

static __always_inline void on_destroy(void *ctx, void *sk)
{
	struct conn_key key = {};
	union scratch scratch;
	struct conn *conn;

	key.sk = (u64)sk;
	conn = conns.lookup(&key);
	if (conn)
		forget(ctx, &scratch, conn, &key);
	key.layer = TLS;
	conn = conns.lookup(&key);
	if (conn)
		forget(ctx, &scratch, conn, &key);
}
