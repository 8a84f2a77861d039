/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What the bytes of a call begin like, and where that leads. */

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
