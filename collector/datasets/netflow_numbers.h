/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What a TCP socket has counted itself, and one state made to follow it. */

/* Before 4.9 a sum is no map value's address any more: the compiler must not keep one for a store further down. */
#define FORGET_SUMS(state) asm volatile("" : "+r"(state))

/* What of a struct tcp_sock is looked at with every event. */
struct numbers {
	u32 write_seq;
	u32 copied_seq;
	u32 rcv_nxt;
	u32 srtt_us;
	u32 mdev_us;
};

/*
 * Two reads: of those that lie within LARGEST_SPAN behind the first, and of the rest. On most kernels all five do not
 * lie so close together, but one or two.
 */
#define NUMBERS(CHOOSE, WHAT)                                                 \
	CHOOSE(CHOOSE(WHAT(tcp_sock__write_seq), WHAT(tcp_sock__copied_seq)), \
	       CHOOSE(WHAT(tcp_sock__rcv_nxt), CHOOSE(WHAT(tcp_sock__srtt_us), WHAT(tcp_sock__mdev_us))))
#define IS_NEAR(FIELD)  (END(FIELD) <= (FIRST_NUMBER & ~7) + LARGEST_SPAN)
#define NEAR_END(FIELD) (IS_NEAR(FIELD) ? END(FIELD) : 0)
#define FAR_AT(FIELD)   (IS_NEAR(FIELD) ? 0x7fffffff : AT(FIELD))
#define FAR_END(FIELD)  (IS_NEAR(FIELD) ? 0 : END(FIELD))
enum { FIRST_NUMBER = NUMBERS(LOWER, AT) };
enum { NEAR_SPAN = SPAN(FIRST_NUMBER, NUMBERS(HIGHER, NEAR_END)) };
/* Of 512 bytes of stack, what these programs have for copies. */
#define COPIES      376
#define LARGEST_FAR (COPIES - NEAR_SPAN - LOWER(SPAN(FIRST_OF_ENDS, END_OF_ENDS), LARGEST_ENDS))
#define PICK_NUMBER(dst, FIELD)                 \
	({                                      \
		if (IS_NEAR(FIELD))             \
			PICK(dst, near, FIELD); \
		else                            \
			PICK(dst, far, FIELD);  \
	})

static __always_inline void read_numbers(void *sk, struct numbers *now)
{
	READ_SPAN(near, sk, FIRST_NUMBER, NUMBERS(HIGHER, NEAR_END), LARGEST_SPAN);
	READ_SPAN(far, sk, NUMBERS(LOWER, FAR_AT), NUMBERS(HIGHER, FAR_END), LARGEST_FAR);

	PICK_NUMBER(&now->write_seq, tcp_sock__write_seq);
	PICK_NUMBER(&now->copied_seq, tcp_sock__copied_seq);
	PICK_NUMBER(&now->rcv_nxt, tcp_sock__rcv_nxt);
	PICK_NUMBER(&now->srtt_us, tcp_sock__srtt_us);
	PICK_NUMBER(&now->mdev_us, tcp_sock__mdev_us);
}

static __always_inline u32 total_retrans(void *sk)
{
	u32 total = 0;

	READ(&total, sk, tcp_sock__total_retrans);
	return total;
}

/* From now on bytes count, less those of this very call, which are in the kernel's numbers already. */
static __always_inline void set_bases(struct tcp_state *state, const struct numbers *now, u32 accepted, u32 copied)
{
	state->written_base = (u32)(now->write_seq - accepted);
	state->read_base = (u32)(now->copied_seq - copied);
	asm volatile("" ::: "memory");
	state->written = (u32)(now->write_seq - accepted);
	state->read = (u32)(now->copied_seq - copied);
}

/* Which of the two FINs of a connection older than us have been sent: what they add to a sequence is no byte. */
static __always_inline u8 flags_of_old(void *sk)
{
	u8 state = 0;

	READ(&state, sk, sock_common__skc_state);
	if (state == FIN_WAIT1 || state == FIN_WAIT2)
		return DONE_WRITING;
	if (state == CLOSE_WAIT)
		return PEER_FIN;
	return state == CLOSING || state == LAST_ACK ? DONE_WRITING | PEER_FIN : 0;
}

static __always_inline void measure(struct tcp_state *state, const struct numbers *now)
{
	state->srtt_us = now->srtt_us;
	state->mdev_us = now->mdev_us;
}

/*
 * A number that seems to have gone back by more than a sixteenth of all numbers went on by half of them or more: how
 * far, nobody can say. Back by less it is when another processor knew more. Old verifiers follow every branch: none.
 */
static __always_inline u8 goes_too_far(u32 grown)
{
	u32 top = grown >> 28;

	return top >> 3 & ~(top + 1 >> 4);
}

/* Nothing counts before there is a base to count from: its event may not have been seen. */
static __always_inline void catch_up_written(struct tcp_state *state, const struct numbers *now)
{
	u64 before = state->written;
	u32 grown = now->write_seq - (u32)before;

	if ((state->flags & (WAS_ESTABLISHED | DONE_WRITING)) != WAS_ESTABLISHED)
		return;
	state->went_too_far |= goes_too_far(grown);
	if (grown < 0x80000000) {
		state->out.ahead = 0;
		asm volatile("" ::: "memory");
		state->written = before + grown;
	}
}

/* No more than `limit`: after the close nothing tells a FIN from a byte, except what the reader was given. */
static __always_inline void catch_up_read(struct tcp_state *state, const struct numbers *now, u32 limit)
{
	u32 end = now->copied_seq;
	u64 before = state->read;
	u32 grown;

	if (!(state->flags & WAS_ESTABLISHED))
		return;
	if (state->flags & PEER_FIN && end == now->rcv_nxt)
		end -= 1;
	grown = end - (u32)before;
	state->went_too_far |= goes_too_far(grown);
	if (grown < 0x80000000) {
		state->in.ahead = 0;
		asm volatile("" ::: "memory");
		state->read = before + (grown < limit ? grown : limit);
	}
}

/* Where every retransmission is seen, this one is enough. */
static __always_inline void count_retransmits(void *sk, struct tcp_state *state)
{
	u32 total = total_retrans(sk);

	FORGET_SUMS(state);
	state->retransmits = total - state->first_retrans;
}
