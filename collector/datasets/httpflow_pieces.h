/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What is handed to user space piece by piece, of connections that are not paired here. */

#define PIECES 16 /* of one call, at most */

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
		piece->unseen = chunk->unseen < 255 ? chunk->unseen : 255;
	}
	piece->other_ns = conn->read_ns;
	asm volatile("" ::: "memory");
	if (!piece->written)
		piece->other_ns = conn->written_ns;
}

/*
 * `error` is of one perf_submit(), or several or-ed together. Of a ring that is full user space hears; that a processor
 * has none, as one just switched on, is heard only here.
 */
#define ENOSPC 28
static __always_inline void count_unheard(int error)
{
	if (error && error != -ENOSPC)
		lose(LOST_PIECE);
}

/*
 * From now on user space pairs; it is told of the request that waits. Of a greeting it only looks for a name. What
 * could not be told is for the caller to count, as of pieces.
 */
static __always_inline int hand_over(void *ctx, struct piece *piece, struct conn *conn, int like)
{
	struct told_conn *told = (struct told_conn *)piece->text;
	int error;

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
	error = pieces.perf_submit(ctx, piece, sizeof(*piece));
	if (!conn->waiting)
		return error;
	conn->waiting = 0;
	*(struct request *)piece->text = conn->request;
	piece->what = REQUESTED;
	piece->size = sizeof(conn->request);
	return error | pieces.perf_submit(ctx, piece, sizeof(*piece));
}

/* In windows that cannot cross a page, so that what can be read of them is there in one. */
static __always_inline int hand_pieces(void *ctx, struct piece *piece, struct source *source, u64 left)
{
	int error = 0;
	int last = 0;
	u64 size;
	int i;

	piece->what = PIECE;
#pragma unroll
	for (i = 0; i < PIECES; i++) {
		if (!source->left)
			next_segment(source);
		size = source->left < left ? source->left : left;
		if (!size)
			break;
		piece->lead = source->base & (PIECE_TEXT - 1);
		if (size > PIECE_TEXT - piece->lead)
			size = PIECE_TEXT - piece->lead;
		piece->size = size;
		if (!bpf_probe_read(piece->text, sizeof(piece->text), (void *)(source->base - piece->lead)))
			last = pieces.perf_submit(ctx, piece, sizeof(*piece));
		/* One processor has them all. */
		if (!i)
			error = last;
		piece->offset += size;
		source->base += size;
		source->left -= size;
		left -= size;
		ALONE(left);
	}
	return error;
}

/* Pieces of the call go to user space; with `is_new`, from now on; of a greeting this once. */
static __always_inline void follow(void *ctx, struct piece *piece, struct chunk *chunk, struct conn *conn, int like,
                                   int is_new)
{
	/* Each on its own: before 4.9 no member may be chosen by adding to a map value's address. */
	u64 offset = conn->read;
	u64 until = conn->read_until;
	int error = 0;

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
		error = hand_over(ctx, piece, conn, like);
	piece->time_ns = chunk->time_ns;
	piece->offset = offset;
	count_unheard(error | hand_pieces(ctx, piece, &chunk->source, chunk->size));
}
