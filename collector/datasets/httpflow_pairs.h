/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* One request, its response, the next: paired and summed up here. */

#define EARLY_NS 1000000000ULL

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

/*
 * Of a PLAIN connection, what begins like no message: a request's rest moves its end. Where none waits it may be a
 * request of another kind, as WebDAV has: its answer is no early one of the next.
 */
static __always_inline void passed(struct conn *conn, const struct chunk *chunk, int asked)
{
	if (!asked)
		return;
	if (conn->waiting) {
		conn->asked_ns = chunk->time_ns;
	} else {
		conn->done = 0;
		conn->early_ns = 0;
	}
}

/* Up to where the socket has sent; the same number always where that is not known. */
static __always_inline u32 sent_until(const struct chunk *chunk)
{
	u32 seq = 0;

#if defined(HAVE_tcp_sock__write_seq)
	READ(&seq, (void *)chunk->key.sk, tcp_sock__write_seq);
#endif
	return seq;
}

/*
 * Whether a response that no request waits for may be one's that was sent and is not told of yet. A server has read
 * before it answers. That it is of none that goes untold shows when the next is told of, or there was an exchange.
 */
static __always_inline int may_be_early(const struct conn *conn)
{
#if defined(HAVE_tcp_sock__write_seq)
	return conn->role == CLIENT;
#else
	return conn->role == CLIENT && conn->done;
#endif
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
		if (!answered_ns || chunk->time_ns - answered_ns > EARLY_NS || sent_until(chunk) != conn->early_seq) {
			conn->waiting = 1;
			return 1;
		}
		/* Another thread was told of the answer before this one of what it had sent: since then nothing was. */
		status = conn->early_status;
		minor = conn->early_minor;
	} else {
		status = final_status(&chunk->source, chunk->size, (u8 *)text, &minor);
		if (!conn->waiting) {
			if (may_be_early(conn) && status) {
				conn->early_seq = sent_until(chunk);
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
