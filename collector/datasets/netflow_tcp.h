/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* One state per TCP socket, from its first transition to its destruction. */

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

/*
 * No other socket at its address has had this number: programs of one processor may take the same one, interrupted by
 * another, but not for the same socket. The clock would do as well, and takes ten times as long.
 */
static __always_inline u64 next_id(void)
{
	u32 processor = bpf_get_smp_processor_id();
	int slot = processor & (PROCESSORS - 1);
	u64 *last = births.lookup(&slot);

	if (!last)
		return 0;
	__sync_fetch_and_add(last, 1);
	return (u64)processor << 48 | *last;
}

/* A socket seen for the first time; its ends, unless they are not known before the handshake is over. */
static __always_inline void adopt(void *sk, struct tcp_state *fresh, int has_ends)
{
	u64 key = (u64)sk;

	fresh->id = fresh->seal = next_id();
	fresh->generation = current_generation();
	if (has_ends)
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

	set_bases(state, now, accepted + state->out.ahead, copied);
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

/* One older than us, at a system call: it was established, by whom is for user space to say unless the call does. */
static __always_inline void adopt_old(void *sk, u8 direction, const struct numbers *now, u32 accepted, u32 copied)
{
	struct tcp_state fresh = {};

	fresh.direction = direction;
	fresh.flags = flags_of_old(sk);
	fresh.first_retrans = total_retrans(sk);
	set_out(&fresh, now, accepted, copied);
	own(&fresh.owner);
	adopt(sk, &fresh, 1);
}

static __always_inline void remember_listener(const struct tuple *tuple)
{
	struct listener key = {};
	u32 one = 1;

	key.netns = tuple->netns;
	key.port = tuple->local_port;
	if (!listeners.lookup(&key))
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
		struct tuple tuple = {};

		read_tuple(sk, &tuple);
		remember_listener(&tuple);
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
	if (state && (to == SYN_SENT || (to == ESTABLISHED && (state->flags & WAS_ESTABLISHED || !state->seal)) ||
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
			/* Before 5.6 those of an earlier connection stay (kernel commit c13c48c00a6b). */
			fresh.first_retrans = total_retrans(sk);
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
		adopt(sk, &fresh, to != SYN_SENT);
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
		if (state->flags & WAS_ESTABLISHED) {
			state->flags |= CLOSED;
			state->closed = 1;
		} else if (!state->retransmits) {
			u64 key = (u64)sk;

			socks.delete(&key);
		} else {
			/* These are told when the socket goes; nothing came of what should have gone with the SYN. */
			state->out.ahead = 0;
		}
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

static __always_inline int is_connecting(void *sk)
{
	u8 state = 0;

	READ(&state, sk, sock_common__skc_state);
	return state == SYN_SENT;
}

/*
 * `state` is 0 for a socket not seen before; with `misses`, a retransmission may not be told of. What went with a SYN
 * (TCP Fast Open) was accepted before there was a base: the call that returns then tells how much, else the first one.
 */
static __always_inline void on_tcp_sent(void *sk, struct tcp_state *state, u32 accepted, int misses)
{
	struct numbers now = {};
	u64 before;

	if ((!state || !(state->flags & WAS_ESTABLISHED)) && is_connecting(sk)) {
		if (state)
			state->out.ahead = accepted;
		return;
	}
	read_numbers(sk, &now);
	if (!state) {
		adopt_old(sk, UNKNOWN, &now, accepted, 0);
		return;
	}
	if (!(state->flags & WAS_ESTABLISHED))
		establish(sk, state, &now, accepted, 0);
	touch(state);
	before = state->written;
	catch_up_written(state, &now);
	if (state->direction == OUTGOING && before == state->written_base && state->written - before < accepted)
		state->written_base = state->written - accepted;
	FORGET_SUMS(state);
	measure(state, &now);
	if (misses) {
		/* Not every receive may be told of, nor every send: what moved the other way is caught up too. */
		if (!(state->flags & CLOSED))
			catch_up_read(state, &now, ~0);
		count_retransmits(sk, state);
	}
}

/* `copied` bytes were given to a reader; 0 when it only peeked. */
static __always_inline void on_tcp_received(void *sk, struct tcp_state *state, u32 copied, int misses)
{
	struct numbers now = {};

	read_numbers(sk, &now);
	if (!state) {
		adopt_old(sk, UNKNOWN, &now, 0, copied);
		return;
	}
	if (!(state->flags & WAS_ESTABLISHED))
		establish(sk, state, &now, 0, copied);
	touch(state);
	catch_up_read(state, &now, state->flags & CLOSED ? copied : ~0);
	measure(state, &now);
	if (misses) {
		catch_up_written(state, &now);
		count_retransmits(sk, state);
	}
}

static __always_inline void on_retransmit(void *sk)
{
	struct tcp_state *state = find(sk);
	struct numbers now = {};

	if (!state)
		return;
	/* A SYN: should this connect fail, where it went is known no more. */
	if (!(state->flags & WAS_ESTABLISHED)) {
		struct tuple tuple = {};

		read_tuple(sk, &tuple);
		state->tuple = tuple;
	}
	read_numbers(sk, &now);
	FORGET_SUMS(state);
	measure(state, &now);
	count_retransmits(sk, state);
}
