/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What every dataset counts by: generations, of which user space takes one whole, and what did not fit. */

/* Slot 0: the generation. User space writes, programs read. */
BPF_ARRAY(generation, u32, 1);
/* What did not fit, by reason, a slot each; programs add, user space reads. */
BPF_ARRAY(losses, u64, 8);

static __always_inline void lose_many(int reason, u64 number)
{
	u64 *count = losses.lookup(&reason);

	if (count)
		__sync_fetch_and_add(count, number);
}

static __always_inline void lose(int reason)
{
	lose_many(reason, 1);
}

static __always_inline u32 current_generation(void)
{
	int zero = 0;
	u32 *now = generation.lookup(&zero);

	return now ? *now : 0;
}
