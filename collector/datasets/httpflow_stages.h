/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The same as on_chunk(), for probes, in programs that go on one from the other: a verifier before 4.7 gives up after
 * 32,768 instructions on all ways through a program. Most calls of most connections end in the first.
 */

enum { PAIR, FOLLOW };

/* What one program leaves to the next. */
struct handed {
	struct chunk chunk;
	u64 text[2];
	u32 like;
	u32 is_new;
};

/* By thread: the last program of a chain deletes, so that there are as many as processors, for none waits. */
BPF_HASH(hands, u64, struct handed, 4096);
BPF_PROG_ARRAY(stages, 2);

static __always_inline void on_chunk_in_stages(void *ctx, struct chunk *chunk, struct conn *conn, int may_greet)
{
	u64 text[2] = {};
	int is_new = 0;
	int like;

	if (!conn || conn->kind == OVER)
		return;
	like = begin_chunk(text, chunk, conn, &is_new, may_greet, 0);
	if (conn->kind == NEW && !(may_greet && like == GREETING)) {
		strike(conn);
	} else if (conn->kind == PLAIN && !is_new && like == NOTHING) {
		passed(conn, chunk, is_asked(conn, chunk));
	} else {
		u64 thread = bpf_get_current_pid_tgid();
		struct handed handed = {.chunk = *chunk, .text = {text[0], text[1]}, .like = like, .is_new = is_new};

		if (may_greet && like == GREETING)
			strike(conn);
		if (hands.update(&thread, &handed)) {
			lose(LOST_CALL);
			return;
		}
		if (conn->kind == PLAIN && !is_new)
			stages.call(ctx, PAIR);
		else
			stages.call(ctx, FOLLOW);
		hands.delete(&thread);
		lose(LOST_CALL);
		return;
	}
	count(conn, chunk);
}

int kprobe__pair(struct pt_regs *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct handed *handed = hands.lookup(&thread);
	union scratch scratch;
	struct chunk chunk;
	struct conn *conn;
	int like;

	if (!handed)
		return 0;
	/* Before 4.7 helpers write only where something was written before. */
	__builtin_memset(&scratch, 0, sizeof(scratch));
	chunk = handed->chunk;
	like = handed->like;
	scratch.words.text[0] = handed->text[0];
	scratch.words.text[1] = handed->text[1];
	conn = conns.lookup(&chunk.key);
	if (!conn) {
		hands.delete(&thread);
		return 0;
	}
	if (pair(&scratch, conn, &chunk, is_asked(conn, &chunk), like, 0)) {
		hands.delete(&thread);
		count(conn, &chunk);
		return 0;
	}
	handed = hands.lookup(&thread);
	if (handed)
		handed->is_new = 1;
	stages.call(ctx, FOLLOW);
	hands.delete(&thread);
	lose(LOST_CALL);
	return 0;
}

int kprobe__follow(struct pt_regs *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct handed *handed = hands.lookup(&thread);
	struct piece piece = {};
	struct chunk chunk;
	struct conn *conn;
	int like, is_new;

	if (!handed)
		return 0;
	chunk = handed->chunk;
	like = handed->like;
	is_new = handed->is_new;
	hands.delete(&thread);
	conn = conns.lookup(&chunk.key);
	if (!conn)
		return 0;
	follow(ctx, &piece, &chunk, conn, like, is_new);
	count(conn, &chunk);
	return 0;
}
