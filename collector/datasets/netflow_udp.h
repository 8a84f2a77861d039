/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Datagrams, counted by socket and peer; who the peer is takes some finding out. */

static __always_inline int is_zero(const struct address *address)
{
	/* A v4-mapped 0.0.0.0 is nobody's address either. */
	return !address->word[0] && !address->word[1] && !address->word[3] &&
	       (!address->word[2] || address->word[2] == 0xffff0000);
}

/* The owner has ended: whoever uses the socket now has it, or another one at its address, with the same ends. */
static __always_inline void own_again(struct udp_state *state)
{
	u32 pid = state->owner.pid;
	struct owner owner = {};

	if (pid == bpf_get_current_pid_tgid() >> 32 || !ended.lookup(&pid))
		return;
	own(&owner);
	FORGET_SUMS(state);
	state->owner = owner;
}

static __always_inline void count_datagram(void *sk, const struct tuple *tuple, u64 read, u64 written, int connected)
{
	struct udp_key key = {};
	struct udp_state fresh = {};
	struct udp_state *state;
	struct address known;

	key.sk = (u64)sk;
	key.remote = tuple->remote;
	key.remote_port = tuple->remote_port;
	key.local_port = tuple->local_port;
	state = datagrams.lookup(&key);
	if (!state) {
		fresh.id = bpf_ktime_get_ns();
		fresh.tuple = *tuple;
		/* Who connects or speaks first is the client; who is spoken to on a socket of its own, the server. */
		fresh.direction = connected || written ? OUTGOING : INCOMING;
		own(&fresh.owner);
		/* Another processor may have been first: then its entry is ours too. */
		datagrams.insert(&key, &fresh);
		state = datagrams.lookup(&key);
		if (!state) {
			lose(LOST_DATAGRAM);
			return;
		}
	}
	/* Of a socket that is bound to no address a route may tell it only later. */
	FORGET_SUMS(state);
	known = state->tuple.local;
	FORGET_SUMS(state);
	if (is_zero(&known) && !is_zero(&tuple->local))
		state->tuple.local = tuple->local;
	FORGET_SUMS(state);
	own_again(state);
	FORGET_SUMS(state);
	state->last_ns = bpf_ktime_get_ns();
	/* Adding a constant 0 would become an atomic instruction that kernels before 5.12 do not know. */
	if (read)
		__sync_fetch_and_add(&state->bytes_read, read);
	if (written)
		__sync_fetch_and_add(&state->bytes_written, written);
}

static __always_inline void remember_route(const struct route *route)
{
	u64 thread = bpf_get_current_pid_tgid();

	if (routes.update(&thread, (struct route *)route))
		lose(LOST_CALL);
}

static __always_inline void on_route4(void *flow)
{
	struct route route = {};
	u8 protocol = 0;
	u32 v4 = 0;

	READ(&protocol, flow, flowi4__flowi_proto);
	if (protocol != IPPROTO_UDP)
		return;
	READ(&route.remote_port, flow, flowi4__dport);
	if (!route.remote_port)
		return; /* the receiving side of a route, or an address check */
	READ(&route.local_port, flow, flowi4__sport);
	READ(&v4, flow, flowi4__daddr);
	map_v4(&route.remote, v4);
	READ(&v4, flow, flowi4__saddr);
	map_v4(&route.local, v4);
	remember_route(&route);
}

#if defined(HAVE_flowi6__daddr) && defined(HAVE_flowi6__saddr) && defined(HAVE_flowi6__dport) && \
	defined(HAVE_flowi6__sport) && defined(HAVE_flowi6__flowi_proto)
static __always_inline void on_route6(void *flow)
{
	struct route route = {};
	u8 protocol = 0;

	READ(&protocol, flow, flowi6__flowi_proto);
	if (protocol != IPPROTO_UDP)
		return;
	READ(&route.remote_port, flow, flowi6__dport);
	if (!route.remote_port)
		return;
	READ(&route.local_port, flow, flowi6__sport);
	READ(&route.remote, flow, flowi6__daddr);
	READ(&route.local, flow, flowi6__saddr);
	remember_route(&route);
}
#else
static __always_inline void on_route6(void *flow)
{
}
#endif

static __always_inline void remember_partner(void *sk, const struct tuple *tuple)
{
	u64 key = (u64)sk;
	struct partner fresh = {};
	struct partner *partner = partners.lookup(&key);

	if (partner && partner->local_port == tuple->local_port) {
		if (partner->remote_port != tuple->remote_port || partner->remote.word[0] != tuple->remote.word[0] ||
		    partner->remote.word[1] != tuple->remote.word[1] ||
		    partner->remote.word[2] != tuple->remote.word[2] ||
		    partner->remote.word[3] != tuple->remote.word[3])
			partner->many = 1;
		return;
	}
	fresh.remote = tuple->remote;
	fresh.remote_port = tuple->remote_port;
	fresh.local_port = tuple->local_port;
	partners.update(&key, &fresh);
}

static __always_inline int is_of(const struct route *route, void *sk, u16 local_port)
{
	u64 told = route->sk;

	return told ? told == (u64)sk : __builtin_bswap16(route->local_port) == local_port;
}

/* A call is over that sent nothing: where it would have is not where the next one does. */
static __always_inline void forget_route(void)
{
	u64 thread = bpf_get_current_pid_tgid();

	if (routes.lookup(&thread))
		routes.delete(&thread);
}

static __always_inline void send_home(struct tuple *tuple)
{
	if (!tuple->remote.word[2])
		tuple->remote.word[3] = __builtin_bswap32(1);
	else if (is_zero(&tuple->local))
		tuple->remote.word[3] = __builtin_bswap32(0x7f000001);
	else
		tuple->remote = tuple->local;
}

static __always_inline void on_udp_sent(void *sk, u64 bytes)
{
	struct tuple tuple = {};
	u64 thread = bpf_get_current_pid_tgid();
	struct route *route = routes.lookup(&thread);
	int connected;

	read_tuple(sk, &tuple);
	connected = tuple.remote_port != 0;
	if (route && is_of(route, sk, tuple.local_port)) {
		tuple.remote = route->remote;
		tuple.remote_port = __builtin_bswap16(route->remote_port);
		if (is_zero(&tuple.local))
			tuple.local = route->local;
		/* Whoever sends to nobody in particular sends to this machine: udp_sendmsg(), udpv6_sendmsg(). */
		if (is_zero(&tuple.remote))
			send_home(&tuple);
		if (!connected)
			remember_partner(sk, &tuple);
	}
	routes.delete(&thread);
	if (!tuple.remote_port) {
		lose(LOST_PEER);
		return;
	}
	count_datagram(sk, &tuple, 0, bytes, connected);
}

/* The reader did not ask who sent it: on a socket that only ever spoke to one, that one did. */
static __always_inline int is_from_partner(void *sk, struct tuple *tuple)
{
	u64 key = (u64)sk;
	struct partner *partner = partners.lookup(&key);

	if (!partner || partner->many || partner->local_port != tuple->local_port) {
		lose(LOST_PEER);
		return 0;
	}
	tuple->remote = partner->remote;
	tuple->remote_port = partner->remote_port;
	return 1;
}

/* What `senders` has of this thread is of an earlier datagram, or of one that is not taken. */
static __always_inline void forget_sender(void)
{
	u64 thread = bpf_get_current_pid_tgid();

	if (is_on(SENDERS_TOLD))
		senders.delete(&thread);
}

static __always_inline void remember_sender(struct sender *sender, u32 port)
{
	u64 thread = bpf_get_current_pid_tgid();

	sender->remote_port = __builtin_bswap16((u16)port);
	if (senders.update(&thread, sender))
		lose(LOST_CALL);
}

#define MOST_MESSAGES 1024 /* of one recvmmsg(2): UIO_MAXIOV */

/*
 * What it takes the place of was received in the same call; on another socket, or so many, by no recvmmsg(2). Threads
 * of io_uring's own end no call at all.
 */
static __always_inline void remember_pending(u64 thread, struct pending *fresh)
{
	struct pending *before = pendings.lookup(&thread);

	if (before) {
		u64 sk = before->sk;

		if (sk == fresh->sk && before->earlier < MOST_MESSAGES) {
			fresh->earlier = before->earlier + 1;
			fresh->earlier_bytes = before->earlier_bytes + before->bytes;
		} else {
			lose_many(LOST_PEER, before->earlier + 1);
		}
	}
	if (pendings.update(&thread, fresh))
		lose(LOST_CALL);
}

/*
 * On a connected socket the sender is known, else where its cgroup was just told; else when the address goes to user
 * space, unless it would have been told.
 */
static __always_inline void on_udp_received(void *sk, struct pending *pending)
{
	struct tuple tuple = {};
	u64 thread = bpf_get_current_pid_tgid();
	struct sender *sender = senders.lookup(&thread);
	int connected;

	read_tuple(sk, &tuple);
	connected = tuple.remote_port != 0;
	if (!connected && sender) {
		tuple.remote = sender->remote;
		tuple.remote_port = sender->remote_port;
	} else if (!connected && is_on(SENDERS_TOLD)) {
		if (!is_from_partner(sk, &tuple))
			return;
	} else if (!connected) {
		remember_pending(thread, pending);
		return;
	}
	if (sender)
		senders.delete(&thread);
	count_datagram(sk, &tuple, pending->bytes, 0, connected);
}

/* The head of struct sockaddr_in; sockaddr_in6 has its address 8 bytes from the start. */
struct name {
	u16 family;
	u16 port;
	u32 v4;
};

/* A datagram received on an unconnected socket of `ends` from the address in `sockaddr` (ABI), wherever that lies. */
static __always_inline void count_received_by(void *sk, const struct tuple *ends, u64 bytes, const void *sockaddr)
{
	struct tuple tuple = *ends;
	struct name name = {};

	if (!sockaddr) {
		if (is_from_partner(sk, &tuple))
			count_datagram(sk, &tuple, bytes, 0, 0);
		return;
	}
	if (bpf_probe_read(&name, sizeof(name), sockaddr)) {
		lose(LOST_PEER);
		return;
	}
	tuple.remote_port = __builtin_bswap16(name.port);
	if (name.family == AF_INET) {
		map_v4(&tuple.remote, name.v4);
	} else if (name.family == AF_INET6) {
		bpf_probe_read(&tuple.remote, sizeof(tuple.remote), sockaddr + sizeof(name));
	} else {
		lose(LOST_PEER);
		return;
	}
	count_datagram(sk, &tuple, bytes, 0, 0);
}

static __always_inline void count_received(void *sk, u64 bytes, const void *sockaddr)
{
	struct tuple ends = {};

	read_tuple(sk, &ends);
	count_received_by(sk, &ends, bytes, sockaddr);
}

/* The datagram this thread has received and that is not counted yet, from `sockaddr`; 0 where nobody asked. */
static __always_inline void count_pending(const void *sockaddr)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct pending *pending = pendings.lookup(&thread);
	struct pending found;

	if (!pending)
		return;
	found = *pending;
	pendings.delete(&thread);
	count_received((void *)found.sk, found.bytes, sockaddr);
}
