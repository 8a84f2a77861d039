/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The end of a socket, and the flows that short connections are merged into. */

static __always_inline void add_to_flow(struct flow *flow, const struct tcp_state *state)
{
	__sync_fetch_and_add(&flow->bytes_read, state->read - state->read_base + state->in.ahead);
	__sync_fetch_and_add(&flow->bytes_written, state->written - state->written_base + state->out.ahead);
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

/*
 * The socket is gone: what it did goes to user space, by the shortest way that counts it once. Its seal is broken
 * before the generation is read: however long this takes, who reads `socks` meanwhile leaves it out. Where it could not
 * be deleted then (EBUSY), it still can be.
 */
static __always_inline void bury(void *sk, struct tcp_state *state)
{
	u64 key = (u64)sk;
	struct dead_key name = {.sk = (u64)sk, .id = state->id};
	u64 sealed = state->seal;
	u32 now;

	state->seal = 0;
	asm volatile("" ::: "memory");
	now = current_generation();
	if (sealed && (state->read + state->in.ahead != state->read_base ||
	               state->written + state->out.ahead != state->written_base || state->established ||
	               state->closed || state->retransmits)) {
		/* User space looks at `socks` only for those of earlier generations; a flow has no flags. */
		if (state->generation != now || state->went_too_far || !merge(state, now)) {
			struct tcp_state last = *state; /* before 4.18 a helper takes no map value */

			if (dead.update(&name, &last))
				lose(LOST_DEAD);
		}
	}
	socks.delete(&key);
}
