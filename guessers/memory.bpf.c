// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Kernel memory for user space to think about: pointer hooks and a reader. No offset and no logic of the guess is in
 * here, so one compiled object serves every kernel of a machine type.
 *
 * Everything acts only for the thread whose name is the nonce: a name works in any pid namespace, a pid does not.
 * The dialect is that of Linux 4.4: no loops, no helper output into map values, under 512 bytes of stack.
 */
#include <uapi/linux/ptrace.h>

#define CALLS        64    /* pointer hooks remembered between two looks of user space; a power of two */
#define COPIES       128   /* passing objects remembered likewise: a softirq in our thread has others' packets too */
#define COPY_SIZE    256   /* flowi4 and flowi6 are at most 96 bytes, a sk_buff is 232 */
#define MESSAGES     16    /* messages remembered likewise */
#define MESSAGE_SIZE 128   /* a msghdr is at most 104 bytes */
#define STACK_SIZE   32768 /* no kernel stack is longer, but with a sanitizer */
#define CHUNKS       16    /* what one trigger of the reader fetches */
#define CHUNK_SIZE   256

struct nonce {
	u64 word[2];
};

struct call {
	u64 hook;
	u64 arg[5];
};

struct copy {
	u64 hook;
	u64 address;
	s64 status; /* what bpf_probe_read said */
	u8 bytes[COPY_SIZE];
};

struct message {
	u64 hook;
	u64 address;
	s64 status;
	s64 lead_status; /* what reading behind the pointer said; -1 when there was nothing to follow */
	u8 bytes[MESSAGE_SIZE];
	u8 lead[MESSAGE_SIZE];
};

struct chunk {
	s64 status;
	u8 bytes[CHUNK_SIZE];
};

struct hits {
	u64 all;  /* the hook fired, for anybody */
	u64 ours; /* and for our thread */
};

/* Written once by user space, read by every program. */
BPF_ARRAY(nonce, struct nonce, 1);
/* Slots 0, 1 and 2: how many calls, copies and messages were recorded since user space zeroed them. */
BPF_ARRAY(cursors, u64, 3);
/* Rings: programs write, user space reads; the cursor is what was written. */
BPF_ARRAY(calls, struct call, CALLS);
BPF_ARRAY(copies, struct copy, COPIES);
BPF_ARRAY(messages, struct message, MESSAGES);
/* Where in a message the pointer to follow stands, plus 1; user space writes, 0 follows none. */
BPF_ARRAY(followed, u64, 1);
/* By hook number; programs add, user space reads. */
BPF_ARRAY(hits, struct hits, 32);
/* The reader's order and its answer: addresses in, bytes and a status each out. 0 ends an order. */
BPF_ARRAY(wanted, u64, CHUNKS);
BPF_ARRAY(chunks, struct chunk, CHUNKS);

static __always_inline int is_ours(void)
{
	struct nonce name = {};
	struct nonce *want;
	int zero = 0;

	bpf_get_current_comm(&name, sizeof(name));
	want = nonce.lookup(&zero);
	return want && want->word[0] == name.word[0] && want->word[1] == name.word[1];
}

static __always_inline int begin(u32 hook)
{
	struct hits *seen = hits.lookup(&hook);
	int ours = is_ours();

	if (seen) {
		__sync_fetch_and_add(&seen->all, 1);
		if (ours)
			__sync_fetch_and_add(&seen->ours, 1);
	}
	return ours;
}

static __always_inline void record(u32 hook, u64 a, u64 b, u64 c, u64 d, u64 e)
{
	struct call entry = {.hook = hook, .arg = {a, b, c, d, e}};
	int slot = 0;
	u64 *cursor = cursors.lookup(&slot);

	if (!cursor)
		return;
	slot = *cursor & (CALLS - 1);
	*cursor += 1;
	calls.update(&slot, &entry);
}

/* For objects that live, or look like this, only during the call: on somebody's stack, on their way. */
static __always_inline void duplicate(u32 hook, u64 address)
{
	struct copy entry = {.hook = hook, .address = address};
	int slot = 1;
	u64 *cursor = cursors.lookup(&slot);

	if (!cursor)
		return;
	slot = *cursor & (COPIES - 1);
	*cursor += 1;
	entry.status = bpf_probe_read(entry.bytes, COPY_SIZE, (const void *)address);
	copies.update(&slot, &entry);
}

/* A message is on a stack, and so is what its pointers lead to: both are gone when the call ends. */
static __always_inline void keep_message(u32 hook, u64 address)
{
	struct message entry = {.hook = hook, .address = address, .lead_status = -1};
	int slot = 0;
	u64 *at = followed.lookup(&slot);
	u64 lead = 0;
	u64 *cursor;

	slot = 2;
	cursor = cursors.lookup(&slot);
	if (!cursor || !at)
		return;
	slot = *cursor & (MESSAGES - 1);
	*cursor += 1;
	entry.status = bpf_probe_read(entry.bytes, MESSAGE_SIZE, (const void *)address);
	if (*at)
		bpf_probe_read(&lead, sizeof(lead), (const void *)(address + *at - 1));
	/* On this very stack, or not at all: what is no address must not be read. */
	if (lead - address + STACK_SIZE < 2 * STACK_SIZE)
		entry.lead_status = bpf_probe_read(entry.lead, MESSAGE_SIZE, (const void *)lead);
	messages.update(&slot, &entry);
}

/* Whether the order goes on. */
static __always_inline int read_chunk(int slot)
{
	struct chunk answer = {};
	u64 *address = wanted.lookup(&slot);

	if (!address || !*address)
		return 0;
	answer.status = bpf_probe_read(answer.bytes, CHUNK_SIZE, (const void *)*address);
	chunks.update(&slot, &answer);
	return 1;
}

static __always_inline int read_all(void)
{
#define R(n)                \
	if (!read_chunk(n)) \
	return 0
	R(0);
	R(1);
	R(2);
	R(3);
	R(4);
	R(5);
	R(6);
	R(7);
	R(8);
	R(9);
	R(10);
	R(11);
	R(12);
	R(13);
	R(14);
	R(15);
#undef R
	return 0;
}

/* The reader's triggers: a system call nobody makes often and that changes nothing, sched_get_priority_max. */
int rawtp__read(struct bpf_raw_tracepoint_args *ctx)
{
	if (ctx->args[1] != TRIGGER_SYSCALL)
		return 0;
	return is_ours() ? read_all() : 0;
}

int kprobe__read(struct pt_regs *ctx)
{
	return is_ours() ? read_all() : 0;
}

#define RAWTP_CALL(NAME, HOOK, COUNT)                                                                                 \
	int rawtp__##NAME(struct bpf_raw_tracepoint_args *ctx)                                                        \
	{                                                                                                             \
		if (begin(HOOK))                                                                                      \
			record(HOOK, ctx->args[0], (COUNT) > 1 ? ctx->args[1] : 0, (COUNT) > 2 ? ctx->args[2] : 0, 0, \
			       0);                                                                                    \
		return 0;                                                                                             \
	}

#define KPROBE_CALL(NAME, HOOK)                                                                                      \
	int kprobe__##NAME(struct pt_regs *ctx)                                                                      \
	{                                                                                                            \
		if (begin(HOOK))                                                                                     \
			record(HOOK, PT_REGS_PARM1(ctx), PT_REGS_PARM2(ctx), PT_REGS_PARM3(ctx), PT_REGS_PARM4(ctx), \
			       PT_REGS_PARM5(ctx));                                                                  \
		return 0;                                                                                            \
	}

#define RAWTP_COPY(NAME, HOOK, ARG)                            \
	int rawtp__##NAME(struct bpf_raw_tracepoint_args *ctx) \
	{                                                      \
		if (begin(HOOK))                               \
			duplicate(HOOK, ctx->args[ARG]);       \
		return 0;                                      \
	}

#define KPROBE_COPY(NAME, HOOK, PARM)               \
	int kprobe__##NAME(struct pt_regs *ctx)     \
	{                                           \
		if (begin(HOOK))                    \
			duplicate(HOOK, PARM(ctx)); \
		return 0;                           \
	}

#define RAWTP_MESSAGE(NAME, HOOK, ARG)                         \
	int rawtp__##NAME(struct bpf_raw_tracepoint_args *ctx) \
	{                                                      \
		if (begin(HOOK))                               \
			keep_message(HOOK, ctx->args[ARG]);    \
		return 0;                                      \
	}

#define KPROBE_MESSAGE(NAME, HOOK, PARM)               \
	int kprobe__##NAME(struct pt_regs *ctx)        \
	{                                              \
		if (begin(HOOK))                       \
			keep_message(HOOK, PARM(ctx)); \
		return 0;                              \
	}
