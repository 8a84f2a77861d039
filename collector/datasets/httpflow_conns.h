/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* One state per socket that carries bytes: what is paired here, and what is handed on piece by piece. */

#define IOVEC    16 /* sizeof(struct iovec): base, length */
#define PIECES   16 /* of one call, at most */
#define EARLY_NS 1000000000ULL

/* One after the other they need the stack, together it has no room for them. */
union scratch {
	u64 registers[4];
	struct conn conn;
	struct owner owner;
	struct piece piece;
	struct exchange_key key;
	struct {
		u64 text[WINDOW_WORDS];
		u64 window[WINDOW_WORDS];
	} words;
};

/* A struct iovec is what `base` and `left` are. */
static __always_inline void next_segment(struct source *source)
{
	source->left = 0;
	if (!source->segments)
		return;
	/* A page's address is none of a buffer: so it is with what sendfile(2) sends, since 6.5. */
	if (bpf_probe_read(&source->base, 2 * sizeof(source->base), (void *)source->iov) || IS_KERNEL(source->base))
		source->left = 0;
	source->iov += 2 * sizeof(source->base);
	source->segments -= 1;
}

static __always_inline void tell(struct piece *piece, const struct conn_key *key, const struct conn *conn,
                                 const struct chunk *chunk)
{
	piece->key = *key;
	piece->id = conn->id;
	piece->role = conn->role;
	if (chunk) {
		piece->time_ns = chunk->time_ns;
		piece->written = chunk->written;
	}
	piece->other_ns = conn->read_ns;
	asm volatile("" ::: "memory");
	if (!piece->written)
		piece->other_ns = conn->written_ns;
}

/* From now on user space pairs; it is told of the request that waits. Of a greeting it only looks for a name. */
static __always_inline void hand_over(void *ctx, struct piece *piece, struct conn *conn, int like)
{
	struct told_conn *told = (struct told_conn *)piece->text;

	piece->what = GREETED;
	if (like != GREETING) {
		conn->kind = FOLLOWED;
		piece->what = OPENED;
	}
	/* User space goes by the time, and the request went by before what tells us that it is no plain one. */
	if (conn->waiting)
		piece->time_ns = conn->asked_ns;
	told->tuple = conn->tuple;
	told->owner = conn->owner;
	pieces.perf_submit(ctx, piece, sizeof(*piece));
	if (!conn->waiting)
		return;
	conn->waiting = 0;
	*(struct request *)piece->text = conn->request;
	piece->what = REQUESTED;
	piece->size = sizeof(conn->request);
	pieces.perf_submit(ctx, piece, sizeof(*piece));
}

/* In windows that cannot cross a page, so that what can be read of them is there in one. */
static __always_inline void hand_pieces(void *ctx, struct piece *piece, struct source *source, u64 left)
{
	u64 size;
	int i;

	piece->what = PIECE;
#pragma unroll
	for (i = 0; i < PIECES; i++) {
		if (!source->left)
			next_segment(source);
		size = source->left < left ? source->left : left;
		if (!size)
			return;
		piece->lead = source->base & (PIECE_TEXT - 1);
		if (size > PIECE_TEXT - piece->lead)
			size = PIECE_TEXT - piece->lead;
		piece->size = size;
		if (!bpf_probe_read(piece->text, sizeof(piece->text), (void *)(source->base - piece->lead)))
			pieces.perf_submit(ctx, piece, sizeof(*piece));
		piece->offset += size;
		source->base += size;
		source->left -= size;
		left -= size;
		ALONE(left);
	}
}

static __always_inline void complete(union scratch *scratch, struct conn *conn, const struct conn_key *conn_key,
                                     u32 status, u8 minor, u64 answered_ns)
{
	struct exchange_key *key = &scratch->key;
	struct exchange fresh = {};
	struct exchange *exchange;
	u64 latency_ns = answered_ns > conn->asked_ns ? answered_ns - conn->asked_ns : 0;
	int odd;

	conn->waiting = 0;
	conn->done = 1;
	__builtin_memset(key, 0, sizeof(*key));
	key->request = conn->request;
	key->tuple = conn->tuple;
	key->owner = conn->owner;
	key->status = status;
	key->minor = minor;
	key->layer = conn_key->layer;
	key->direction = conn->role == CLIENT ? OUTGOING : INCOMING;
	/* The client's port is a star in the output where it is ephemeral: any one stands for all. */
	if (key->direction == OUTGOING && key->tuple.local_port >= EPHEMERAL_PORT)
		key->tuple.local_port = 65535;
	if (key->direction == INCOMING && key->tuple.remote_port >= EPHEMERAL_PORT)
		key->tuple.remote_port = 65535;
	odd = current_generation() & 1;
	exchange = odd ? exchanges1.lookup(key) : exchanges0.lookup(key);
	if (!exchange) {
		if (odd)
			exchanges1.insert(key, &fresh);
		else
			exchanges0.insert(key, &fresh);
		exchange = odd ? exchanges1.lookup(key) : exchanges0.lookup(key);
		if (!exchange) {
			lose(LOST_EXCHANGE);
			return;
		}
	}
	__sync_fetch_and_add(&exchange->count, 1);
	__sync_fetch_and_add(&exchange->latency_ns, latency_ns);
}

/* Of a PLAIN connection, what begins like no message: a request's rest moves its end. */
static __always_inline void passed(struct conn *conn, const struct chunk *chunk, int asked)
{
	if (asked && conn->waiting)
		conn->asked_ns = chunk->time_ns;
}

/* On a PLAIN connection. 0 when what happens is more than can be paired here. `is_read`: see whole_request(). */
static __always_inline int pair(union scratch *scratch, struct conn *conn, const struct chunk *chunk, int asked,
                                int like, int is_read)
{
	u64 *text = scratch->words.text;
	u64 answered_ns = chunk->time_ns;
	u32 status;
	u8 minor = 0;

	if (like == NOTHING) {
		passed(conn, chunk, asked);
		return 1;
	}
	if (asked) {
		if (conn->waiting || !whole_request(&chunk->source, chunk->size, text, scratch->words.window, is_read))
			return 0;
		conn->request = *(struct request *)text;
		conn->asked_ns = chunk->time_ns;
		answered_ns = conn->early_ns;
		conn->early_ns = 0;
		if (!answered_ns || chunk->time_ns - answered_ns > EARLY_NS) {
			conn->waiting = 1;
			return 1;
		}
		/* Another thread was told of the answer before this one of what it had sent. */
		status = conn->early_status;
		minor = conn->early_minor;
	} else {
		status = final_status(&chunk->source, chunk->size, (u8 *)text, &minor);
		if (!conn->waiting) {
			if (conn->done && status) {
				conn->early_ns = chunk->time_ns;
				conn->early_status = status;
				conn->early_minor = minor;
			}
			return 1;
		}
		if (!status)
			return 0;
	}
	complete(scratch, conn, &chunk->key, status, minor, answered_ns);
	return 1;
}

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
	if (conns.insert(key, fresh))
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
		pieces.perf_submit(ctx, piece, sizeof(*piece));
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
 * a socket's end may have been.
 */
static __always_inline struct conn *find_conn(void *ctx, struct conn_key *key, int may_miss)
{
	struct conn *conn = conns.lookup(key);
	union scratch scratch;

	VALUE_OR_ZERO(conn);
	if (may_miss && conn && is_another(conn, key)) {
		forget(ctx, &scratch, conn, key);
		conn = 0;
	}
	asm volatile("" : "+r"(conn));
	return conn ? conn : meet(&scratch, key);
}

static __always_inline int is_asked(const struct conn *conn, const struct chunk *chunk)
{
	return (conn->role == CLIENT) == !!chunk->written;
}

/*
 * What the bytes of a call begin like, `text` being the first 16; a new connection that begins with HTTP has begun.
 * `may_greet` is known when this is compiled: whether it is something sent, and not within TLS. Where a request is due,
 * `text` may be all of the first window, if there is room for it: then `is_read` is no null pointer.
 */
static __always_inline int begin_chunk(u64 *text, struct chunk *chunk, struct conn *conn, int *is_new, int may_greet,
                                       int *is_read)
{
	struct owner owner = {};
	int like = NOTHING;
	u64 otherwise;
	int asked;

	if (!chunk->source.left)
		next_segment(&chunk->source);
	if (!chunk->source.left)
		next_segment(&chunk->source);
	if (is_read && conn->kind == PLAIN && !conn->waiting && is_asked(conn, chunk))
		*is_read = first_window(&chunk->source, chunk->size, text);
	if (chunk->source.left && ((is_read && *is_read) || first_bytes(&chunk->source, chunk->size, text))) {
		/* The first that is sent: one question, for each doubles the ways to what follows. */
		if (may_greet) {
			otherwise = ((text[0] & HELLO_MASK) ^ HELLO) | (conn->kind ^ NEW) | conn->strikes;
			ALONE(otherwise);
			if (!otherwise)
				return GREETING;
		}
		like = begins_like(text[0], chunk->size < chunk->source.left ? chunk->size : chunk->source.left);
	}
	if (conn->kind == NEW && like != NOTHING) {
		own(&owner);
		conn->owner = owner;
		conn->role = (like != RESPONSE) == !!chunk->written ? CLIENT : SERVER;
		conn->kind = PLAIN;
		if (like == PREFACE) {
			*is_new = 1;
			conn->is_http2 = 1;
			conn->read_until = ~0ULL;
			conn->written_until = ~0ULL;
		}
	}
	if (conn->is_http2)
		like = NOTHING;
	ALONE(like);
	asked = is_asked(conn, chunk);
	/* HEAD and HTTP begin alike, and some read an answer byte by byte. */
	if (like == REQUEST && !asked)
		like = chunk->size == 1 && (u8)text[0] == 'H' ? RESPONSE : NOTHING;
	else if (like == RESPONSE && asked)
		like = NOTHING;
	return like;
}

/* A call on a connection that has not begun with HTTP yet. */
static __always_inline void strike(struct conn *conn)
{
	conn->strikes += 1;
	if (conn->strikes >= STRIKES)
		conn->kind = OVER;
}

/* Pieces of the call go to user space; with `is_new`, from now on; of a greeting this once. */
static __always_inline void follow(void *ctx, struct piece *piece, struct chunk *chunk, struct conn *conn, int like,
                                   int is_new)
{
	/* Each on its own: before 4.9 no member may be chosen by adding to a map value's address. */
	u64 offset = conn->read;
	u64 until = conn->read_until;

	ALONE(offset);
	ALONE(until);
	if (chunk->written) {
		offset = conn->written;
		until = conn->written_until;
		ALONE(offset);
		ALONE(until);
	}
	if (like == GREETING) {
		is_new = 1;
	} else if (like != NOTHING) {
		until = offset + HEAD;
		if (chunk->written) {
			conn->written_until = until;
			asm volatile("# written" ::: "memory");
		} else {
			conn->read_until = until;
			asm volatile("# read" ::: "memory");
		}
	}
	if (offset >= until && !is_new)
		return;
	__builtin_memset(piece, 0, sizeof(*piece) - PIECE_TEXT);
	tell(piece, &chunk->key, conn, chunk);
	if (is_new)
		hand_over(ctx, piece, conn, like);
	piece->time_ns = chunk->time_ns;
	piece->offset = offset;
	hand_pieces(ctx, piece, &chunk->source, chunk->size);
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

/*
 * Every byte that moves over a TCP socket, or inside its TLS, comes through here or, by probes, on_chunk_in_stages():
 * in order, call by call.
 */
static __always_inline void on_chunk(void *ctx, union scratch *scratch, struct chunk *chunk, struct conn *conn,
                                     int may_greet)
{
	int is_new = 0;
	int is_read = 0;
	int like;

	__builtin_memset(scratch, 0, sizeof(*scratch));
	like = begin_chunk(scratch->words.text, chunk, conn, &is_new, may_greet, &is_read);
	if (conn->kind == NEW)
		strike(conn);
	else if (conn->kind == PLAIN && !is_new && !pair(scratch, conn, chunk, is_asked(conn, chunk), like, is_read))
		is_new = 1;
	if (conn->kind == FOLLOWED || is_new || (may_greet && like == GREETING))
		follow(ctx, &scratch->piece, chunk, conn, like, is_new);
	count(conn, chunk);
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
