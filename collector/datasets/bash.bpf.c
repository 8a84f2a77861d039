// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * bash: the lines readline() returns. A program of its own would say where a line ends, but what says it (a string
 * helper) came with 4.11: this one copies pieces of the line's memory, none of which can cross a page, and user space
 * looks for the end.
 */
#include <uapi/linux/ptrace.h>

#define PIECE  64
#define PIECES 4
#define TEXT   (PIECE * PIECES)
/* 4096 bytes and, in front of them, what of the first piece is not the line's yet. */
#define PARTS 17

struct part_key {
	u64 time_ns; /* CLOCK_MONOTONIC */
	u32 thread;
	u32 number;
};

struct part {
	u32 pid;
	u32 uid;
	u32 lead; /* bytes of the first part that come before the line */
	u32 size; /* bytes of `text` that could be read */
	char comm[16];
	char text[TEXT];
};

/* Lines in parts. The program inserts, user space takes them out several times a second. */
BPF_HASH(parts, struct part_key, struct part, 8192);
/* Slot 0: parts that found no room. The program adds, user space reads. */
BPF_ARRAY(losses, u64, 1);

static __always_inline u64 has_zero_byte(u64 word)
{
	return (word - 0x0101010101010101ULL) & ~word & 0x8080808080808080ULL;
}

/* Whether the line has ended by the end of this piece. A piece without a zero byte says nothing either way. */
static __always_inline int has_ended(const char *piece)
{
	const u64 *word = (const u64 *)piece;
	u64 zero = 0;
	int i;

#pragma unroll
	for (i = 0; i < PIECE / 8; i++)
		zero |= has_zero_byte(word[i]);
	return zero != 0;
}

int uretprobe__readline(struct pt_regs *ctx)
{
	struct part_key key = {};
	struct part part = {};
	u64 line = PT_REGS_RC(ctx);
	u64 from = line & ~(u64)(PIECE - 1);
	int i, j;

	/* The end of input. */
	if (!line)
		return 0;
	key.time_ns = bpf_ktime_get_ns();
	key.thread = bpf_get_current_pid_tgid();
	part.pid = bpf_get_current_pid_tgid() >> 32;
	part.uid = bpf_get_current_uid_gid();
	part.lead = line - from;
	bpf_get_current_comm(&part.comm, sizeof(part.comm));
#pragma unroll
	for (i = 0; i < PARTS; i++) {
		part.size = 0;
#pragma unroll
		for (j = 0; j < PIECES; j++) {
			if (!bpf_probe_read(part.text + j * PIECE, PIECE, (void *)(from + i * TEXT + j * PIECE)) &&
			    part.size == j * PIECE)
				part.size = (j + 1) * PIECE;
		}
		key.number = i;
		if (parts.update(&key, &part)) {
			int zero = 0;
			u64 *lost = losses.lookup(&zero);

			if (lost)
				__sync_fetch_and_add(lost, 1);
			return 0;
		}
		if (part.size < TEXT)
			return 0;
		/* The first part's last piece lies behind the line's beginning: its lead is shorter than a piece. */
		if (has_ended(part.text + TEXT - PIECE))
			return 0;
	}
	return 0;
}
