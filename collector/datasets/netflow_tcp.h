/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* One state per TCP socket, from its first transition to its destruction. */

/* Before 4.9 a sum is no map value's address any more: the compiler must not keep one for a store further down. */
#define FORGET_SUMS(state) asm volatile("" : "+r"(state))

static __always_inline void own_sock(struct tcp_state *state)
{
	struct owner owner = {};

	own(&owner);
	state->owner = owner;
}

static __always_inline struct tcp_state *find(void *sk)
{
	u64 key = (u64)sk;
	struct tcp_state *state = socks.lookup(&key);

	VALUE_OR_ZERO(state);
	return state;
}

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
enum { FIRST_NUMBER = NUMBERS(LOWER, AT), LARGEST_FAR = 32 };
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

/* A socket seen for the first time. */
static __always_inline void adopt(void *sk, struct tcp_state *fresh)
{
	u64 key = (u64)sk;

	fresh->id = fresh->seal = bpf_ktime_get_ns();
	fresh->generation = current_generation();
	read_tuple(sk, &fresh->tuple);
	/* Another processor may have been first: then its entry is ours too. */
	if (socks.insert(&key, fresh) && !socks.lookup(&key))
		lose(LOST_SOCK);
}

/* Fills in what is counted from, of one that is established, just now or long since. */
static __always_inline void set_out(struct tcp_state *fresh, const struct numbers *now, u32 accepted, u32 copied)
{
	set_bases(fresh, now, accepted, copied);
	fresh->written += accepted;
	fresh->read += copied;
	fresh->flags |= WAS_ESTABLISHED;
	measure(fresh, now);
}

/* One of which the handshake's end was not seen: where it writes from is known only now. */
static __always_inline void establish(void *sk, struct tcp_state *state, const struct numbers *now, u32 accepted,
                                      u32 copied)
{
	struct tuple tuple = {};

	set_bases(state, now, accepted, copied);
	tuple.netns = state->tuple.netns;
	read_tuple(sk, &tuple);
	state->tuple = tuple;
	state->flags |= WAS_ESTABLISHED;
	state->established = 1;
}

/*
 * Whether the address is another socket's by now, and neither the end of the one nor the start of the other was seen:
 * no kprobe runs while its processor is at other BPF work. A closed socket may have given its port back.
 */
static __always_inline int is_another(void *sk, const struct tcp_state *state)
{
	u16 local_port = 0;
	u16 remote_port = 0;

	if (!(state->flags & WAS_ESTABLISHED))
		return 0;
	read_ports(sk, &local_port, &remote_port);
	return (local_port && local_port != state->tuple.local_port) ||
	       (remote_port && remote_port != state->tuple.remote_port);
}

/* Nothing counts before there is a base to count from: its event may not have been seen. */
static __always_inline void catch_up_written(struct tcp_state *state, const struct numbers *now)
{
	u64 before = state->written;
	u32 grown = now->write_seq - (u32)before;

	if ((state->flags & (WAS_ESTABLISHED | DONE_WRITING)) == WAS_ESTABLISHED && grown < 0x80000000) {
		state->written = before + grown;
		state->written_ahead = 0;
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
	if (grown < 0x80000000) {
		state->read = before + (grown < limit ? grown : limit);
		state->read_ahead = 0;
	}
}

/* Where every retransmission is seen, this one is enough. */
static __always_inline void count_retransmits(void *sk, struct tcp_state *state)
{
	u32 total = total_retrans(sk);

	FORGET_SUMS(state);
	state->retransmits = total - state->first_retrans;
}

static __always_inline void add_to_flow(struct flow *flow, const struct tcp_state *state)
{
	__sync_fetch_and_add(&flow->bytes_read, state->read - state->read_base);
	__sync_fetch_and_add(&flow->bytes_written, state->written - state->written_base);
	if (state->retransmits)
		__sync_fetch_and_add(&flow->retransmits, state->retransmits);
	__sync_fetch_and_add(&flow->established, state->established);
	__sync_fetch_and_add(&flow->closed, state->closed);
	if (state->srtt_us) {
		__sync_fetch_and_add(&flow->rtt_us, state->srtt_us >> 3);
		__sync_fetch_and_add(&flow->rtt_var_us, state->mdev_us >> 2);
		__sync_fetch_and_add(&flow->rtt_samples, 1);
	}
}

/* Which port a translated connection has decides where it goes: here, or in the namespace that it leaves through. */
static __always_inline int is_translated(const struct tuple *tuple)
{
	struct destination key = {};

	if (!is_on(ANY_TRANSLATED))
		return 0;
	key.remote = tuple->remote;
	key.port = tuple->remote_port;
	if (translated.lookup(&key))
		return 1;
	key.netns = tuple->netns;
	return translated.lookup(&key) != 0;
}

/* Merges a short connection into its flow; 0 when there is no room. */
static __always_inline int merge(const struct tcp_state *state, u32 now)
{
	struct flow_key key = {};
	struct flow empty = {};
	struct flow *flow;

	key.tuple = state->tuple;
	key.owner = state->owner;
	key.direction = state->direction;
	/* The client's port is a star in the output where it is ephemeral: any one stands for all. */
	if (key.direction == OUTGOING && key.tuple.local_port >= EPHEMERAL_PORT && !is_translated(&key.tuple))
		key.tuple.local_port = MERGED_PORT;
	if (key.direction == INCOMING && key.tuple.remote_port >= EPHEMERAL_PORT)
		key.tuple.remote_port = MERGED_PORT;
	if (now & 1) {
		flow = flows1.lookup(&key);
		if (!flow) {
			flows1.insert(&key, &empty);
			flow = flows1.lookup(&key);
		}
	} else {
		flow = flows0.lookup(&key);
		if (!flow) {
			flows0.insert(&key, &empty);
			flow = flows0.lookup(&key);
		}
	}
	if (!flow)
		return 0;
	add_to_flow(flow, state);
	return 1;
}

/* The socket is gone: what it did goes to user space, by the shortest way that counts it once. */
static __always_inline void bury(void *sk, struct tcp_state *state)
{
	u64 key = (u64)sk;
	struct dead_key name = {.sk = (u64)sk, .id = state->id};
	u32 now = current_generation();

	if (state->read != state->read_base || state->written != state->written_base || state->established ||
	    state->closed || state->retransmits) {
		/* User space looks at `socks` only for those of earlier generations. */
		if (state->generation != now || !merge(state, now)) {
			struct tcp_state last = *state; /* before 4.18 a helper takes no map value */

			if (dead.update(&name, &last))
				lose(LOST_DEAD);
		}
	}
	socks.delete(&key);
}

/* The state of this socket; that of another one before it, whose end may have been missed, is buried. */
static __always_inline struct tcp_state *find_own(void *sk, int misses)
{
	struct tcp_state *state = find(sk);

	if (state && misses && is_another(sk, state)) {
		bury(sk, state);
		state = 0;
	}
	/* Before 4.10 only the very register that is compared with NULL is a map value afterwards. */
	asm volatile("" : "+r"(state));
	return state;
}

/* One older than us, at a system call: it was established, by whom is for user space to say. */
static __always_inline void adopt_old(void *sk, const struct numbers *now, u32 accepted, u32 copied)
{
	struct tcp_state fresh = {};

	fresh.flags = flags_of_old(sk);
	fresh.first_retrans = total_retrans(sk);
	set_out(&fresh, now, accepted, copied);
	own(&fresh.owner);
	adopt(sk, &fresh);
}

static __always_inline void remember_listener(void *sk)
{
	struct tuple tuple = {};
	struct listener key = {};
	u32 one = 1;

	read_tuple(sk, &tuple);
	key.netns = tuple.netns;
	key.port = tuple.local_port;
	listeners.update(&key, &one);
}

/*
 * With `misses`, this or another transition may not be told of. There is one place each for a burial and a birth: a
 * program has 512 bytes of stack.
 */
static __always_inline void on_state(void *sk, int from, int to, int misses)
{
	struct numbers now = {};
	struct tcp_state *state;

	if (from == LISTEN && to != LISTEN)
		return;
	state = find(sk);
	if (!state && protocol_of(sk) != IPPROTO_TCP)
		return;
	if (to == LISTEN) {
		remember_listener(sk);
		return;
	}
	/* A FIN of the peer is still to be read, ours is only acknowledged: the numbers wait for what comes next. */
	if (state && !misses && state->flags & WAS_ESTABLISHED && (to == CLOSE_WAIT || to == FIN_WAIT2)) {
		if (to == CLOSE_WAIT)
			state->flags |= PEER_FIN;
		return;
	}
	if (to != SYN_SENT)
		read_numbers(sk, &now);
	/* Another one's, whose end was not seen. */
	if (state && (to == SYN_SENT || (to == ESTABLISHED && state->flags & WAS_ESTABLISHED) ||
	              (misses && is_another(sk, state)))) {
		bury(sk, state);
		state = 0;
	}
	/* Before 4.10 only the very register that is compared with NULL is a map value afterwards. */
	asm volatile("" : "+r"(state));
	if (!state) {
		struct tcp_state fresh = {};

		if (to == SYN_SENT) {
			fresh.direction = OUTGOING;
			own(&fresh.owner);
		} else if (to == ESTABLISHED) {
			fresh.direction = from == SYN_SENT ? OUTGOING : INCOMING;
			fresh.established = 1;
			set_out(&fresh, &now, 0, 0);
		} else if (from == SYN_SENT || from == SYN_RECV || from == CLOSE) {
			return;
		} else {
			fresh.flags = flags_of_old(sk);
			fresh.first_retrans = total_retrans(sk);
			set_out(&fresh, &now, 0, 0);
		}
		adopt(sk, &fresh);
		if (to == SYN_SENT || to == ESTABLISHED)
			return;
		state = find(sk);
		if (!state)
			return;
	}
	if (!(state->flags & WAS_ESTABLISHED) && (to == ESTABLISHED || (from != SYN_SENT && from != SYN_RECV)))
		establish(sk, state, &now, 0, 0);
	FORGET_SUMS(state);
	catch_up_written(state, &now);
	catch_up_read(state, &now, ~0);
	measure(state, &now);
	if (misses || to == CLOSE)
		count_retransmits(sk, state);
	/* Our FIN was sent and is in write_seq, and nobody told us. */
	if (!(state->flags & DONE_WRITING) &&
	    (from == FIN_WAIT1 || from == FIN_WAIT2 || from == CLOSING || from == LAST_ACK)) {
		state->flags |= DONE_WRITING;
		if (state->written > state->written_base)
			state->written -= 1;
	}
	FORGET_SUMS(state);
	/* A process closes; the other transitions come with packets, under whatever process happens to run. */
	if (!state->owner.pid && ((from == ESTABLISHED && to == FIN_WAIT1) || (from == CLOSE_WAIT && to == LAST_ACK)))
		own_sock(state);
	if (to == FIN_WAIT1 || to == LAST_ACK || to == CLOSE)
		state->flags |= DONE_WRITING;
	if (to == CLOSE_WAIT || to == CLOSING || to == TIME_WAIT)
		state->flags |= PEER_FIN;
	if (to == CLOSE) {
		if (!(state->flags & WAS_ESTABLISHED)) {
			u64 key = (u64)sk;

			socks.delete(&key);
			return;
		}
		state->flags |= CLOSED;
		state->closed = 1;
	}
}

static __always_inline void on_destroy(void *sk)
{
	struct tcp_state *state = find(sk);

	if (!state)
		return;
	/* The kernel's counters may have been reset by now; what was read since the close is counted already. */
	if (state->flags & WAS_ESTABLISHED)
		state->closed = 1;
	bury(sk, state);
}

static __always_inline void touch(struct tcp_state *state)
{
	u32 pid = state->owner.pid;

	FORGET_SUMS(state);
	if (!pid)
		own_sock(state);
}

/*
 * What a call moved is in the kernel's numbers by now. `state` is 0 for a socket not seen before; `copied` is 0 for a
 * reader that only peeked; with `misses`, a retransmission may not be told of.
 */
static __always_inline void on_tcp_moved(void *sk, struct tcp_state *state, u32 accepted, u32 copied, int misses)
{
	struct numbers now = {};

	read_numbers(sk, &now);
	if (!state) {
		adopt_old(sk, &now, accepted, copied);
		return;
	}
	if (!(state->flags & WAS_ESTABLISHED))
		establish(sk, state, &now, accepted, copied);
	touch(state);
	catch_up_written(state, &now);
	catch_up_read(state, &now, state->flags & CLOSED ? copied : ~0);
	measure(state, &now);
	if (misses)
		count_retransmits(sk, state);
}

static __always_inline void on_retransmit(void *sk)
{
	struct tcp_state *state = find(sk);
	struct numbers now = {};

	if (!state)
		return;
	read_numbers(sk, &now);
	measure(state, &now);
	count_retransmits(sk, state);
}
