// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * netflow: who talks to whom, how much, how well. One state per TCP socket and per UDP socket and peer; two hook sets
 * (kprobes, and raw tracepoints for kernels without them) feed the same few functions.
 *
 * TCP bytes are not added up from return values: write_seq and copied_seq are the kernel's own count of what it
 * accepted and what the process took. Reading them makes MSG_PEEK, sendfile, splice and a missed return probe harmless:
 * the next event on the socket catches up. SYN is before the first reading, FIN is taken off.
 *
 * User space and programs share no entry that both write: see `flows`, `dead` and `generation`.
 */
#include <uapi/linux/ptrace.h>
#include <kcompat/read.h>

#define AF_INET     2
#define AF_INET6    10
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define MSG_PEEK    2

enum {
	ESTABLISHED = 1,
	SYN_SENT,
	SYN_RECV,
	FIN_WAIT1,
	FIN_WAIT2,
	TIME_WAIT,
	CLOSE,
	CLOSE_WAIT,
	LAST_ACK,
	LISTEN,
	CLOSING
};
enum { UNKNOWN, INCOMING, OUTGOING };

/* state.flags */
#define WAS_ESTABLISHED 1 /* its end is a closed connection, not a failed one */
#define PEER_FIN        2 /* the last number of the peer's sequence is a FIN, not a byte */
#define DONE_WRITING    4 /* what write_seq counts from here on is our FIN */
#define CLOSED          8 /* it may still be read from until it is destroyed */

struct address {
	u32 word[4];
};

/* Addresses are IPv6 or v4-mapped, ports in host order. */
struct tuple {
	struct address local;
	struct address remote;
	u16 local_port;
	u16 remote_port;
	u32 netns;
};

struct owner {
	u32 pid;
	char comm[16];
};

/*
 * `written` and `read` are write_seq and copied_seq continued to 64 bits, the bases where they stood when we first
 * looked. They are moved on by one store: two processors that do so at once never count twice, and what the slower one
 * takes back the next event restores.
 */
struct tcp_state {
	u64 id; /* birth in ns: sock addresses are used again */
	u64 written;
	u64 written_base;
	u64 read;
	u64 read_base;
	struct tuple tuple;
	struct owner owner;
	u32 retransmits;
	u32 srtt_us; /* as the kernel keeps it: us << 3 */
	u32 mdev_us; /* us << 2 */
	u32 established;
	u32 closed;
	u32 first_retrans;
	u32 generation;
	u8 direction;
	u8 flags;
	u16 unused[3];
};

/* What many short connections that look alike outside have in common. */
struct flow_key {
	struct tuple tuple;
	struct owner owner;
	u32 direction;
};

struct flow {
	u64 bytes_read;
	u64 bytes_written;
	u64 rtt_us; /* sums over `rtt_samples` sockets, in us */
	u64 rtt_var_us;
	u64 rtt_samples;
	u64 retransmits;
	u64 established;
	u64 closed;
};

struct dead_key {
	u64 sk;
	u64 id;
};

struct udp_key {
	u64 sk;
	struct address remote;
	u16 remote_port;
	u16 local_port;
	u32 unused;
};

struct udp_state {
	u64 id;
	u64 bytes_read;
	u64 bytes_written;
	u64 last_ns;
	struct tuple tuple;
	struct owner owner;
	u32 direction;
};

struct listener {
	u32 netns;
	u32 port;
};

/* Where a datagram of this thread was routed to. */
struct route {
	struct address local;
	struct address remote;
	u16 local_port; /* network order, like the next: compared, then turned round */
	u16 remote_port;
	u32 unused;
};

/* Whom an unconnected datagram socket sends to, as long as it is only one. */
struct partner {
	struct address remote;
	u16 remote_port;
	u16 local_port;
	u32 many;
};

/* Which argument of udp_recvmsg has the flags; 0 while user space finds out, with a thread of that name. */
struct calibration {
	u64 argument;
	u64 fourth;
	u64 fifth;
	u64 comm[2];
};

/* A datagram received on an unconnected socket, whose sender is known when its address goes to user space. */
struct pending {
	u64 sk;
	u64 bytes;
};

/* Live TCP sockets, by address. Programs insert and delete; user space reads. */
BPF_HASH(socks, u64, struct tcp_state, MAX_SOCKS);
/*
 * TCP sockets born and destroyed within one generation, merged. Programs write the one of the current generation, user
 * space empties the other: it makes a new generation, waits until no program of the old one can be running, then reads.
 */
BPF_HASH(flows0, struct flow_key, struct flow, MAX_FLOWS);
BPF_HASH(flows1, struct flow_key, struct flow, MAX_FLOWS);
/*
 * Destroyed TCP sockets that an earlier flush may have reported in part: user space must subtract that. Programs
 * insert, user space reads and deletes. No more than were alive at the last flush: as large as `socks`.
 */
BPF_HASH(dead, struct dead_key, struct tcp_state, MAX_SOCKS);
/* UDP, by socket and peer. Programs insert and add; user space reads, and deletes what has long been idle. */
BPF_HASH(datagrams, struct udp_key, struct udp_state, MAX_SOCKS);
/* Listening ports, for the direction of connections older than us. Programs insert, user space seeds; never deleted. */
BPF_HASH(listeners, struct listener, u32, 16384);
/* By socket: programs insert, user space deletes with the socket's last idle flow. */
BPF_HASH(partners, u64, struct partner, MAX_SOCKS);
/* By thread: programs insert when a call begins and delete when it ends, so as many as there are calls at a time. */
BPF_HASH(routes, u64, struct route, 32768);
BPF_HASH(pendings, u64, struct pending, 32768);
BPF_HASH(calls, u64, u64, 32768);
/* Slot 0. User space writes; the program adds what it sees while `argument` is 0. */
BPF_ARRAY(calibrations, struct calibration, 1);
/* Slot 0: the generation. User space writes, programs read. */
BPF_ARRAY(generation, u32, 1);
/* What did not fit, by reason; programs add, user space reads. */
BPF_ARRAY(losses, u64, 8);
enum { LOST_SOCK, LOST_FLOW, LOST_DEAD, LOST_DATAGRAM, LOST_PEER, LOST_CALL };

static __always_inline void lose(int reason)
{
	u64 *count = losses.lookup(&reason);

	if (count)
		__sync_fetch_and_add(count, 1);
}

static __always_inline u32 current_generation(void)
{
	int zero = 0;
	u32 *now = generation.lookup(&zero);

	return now ? *now : 0;
}

static __always_inline void own(struct owner *owner)
{
	owner->pid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(&owner->comm, sizeof(owner->comm));
}

static __always_inline void map_v4(struct address *address, u32 v4)
{
	address->word[0] = 0;
	address->word[1] = 0;
	address->word[2] = 0xffff0000; /* ::ffff:a.b.c.d, on a little-endian machine */
	address->word[3] = v4;
}

static __always_inline int is_protocol(void *sk, u16 wanted)
{
	u16 family = 0;
	u16 protocol = 0;

	READ(&family, sk, sock_common__skc_family);
	if (family != AF_INET && family != AF_INET6)
		return 0;
	READ(&protocol, sk, sock__sk_protocol);
	return protocol == wanted;
}

static __always_inline void read_tuple(void *sk, struct tuple *tuple)
{
	u16 family = 0;
	u16 port = 0;
	u32 v4 = 0;

	READ(&family, sk, sock_common__skc_family);
#if defined(HAVE_sock_common__skc_v6_daddr) && defined(HAVE_sock_common__skc_v6_rcv_saddr)
	if (family == AF_INET6) {
		READ(&tuple->local, sk, sock_common__skc_v6_rcv_saddr);
		READ(&tuple->remote, sk, sock_common__skc_v6_daddr);
	} else
#endif
	{
		READ(&v4, sk, sock_common__skc_rcv_saddr);
		map_v4(&tuple->local, v4);
		READ(&v4, sk, sock_common__skc_daddr);
		map_v4(&tuple->remote, v4);
	}
	READ(&tuple->local_port, sk, sock_common__skc_num);
	READ(&port, sk, sock_common__skc_dport);
	tuple->remote_port = __builtin_bswap16(port);
#if defined(HAVE_sock_common__skc_net) && defined(HAVE_net__ns__inum)
	{
		void *net = 0;

		READ(&net, sk, sock_common__skc_net);
		READ(&tuple->netns, net, net__ns__inum);
	}
#endif
}

static __always_inline struct tcp_state *find(void *sk)
{
	u64 key = (u64)sk;

	return socks.lookup(&key);
}

/* From now on bytes count, less those of this very call, which are in the kernel's numbers already. */
static __always_inline void set_bases(void *sk, struct tcp_state *state, u32 accepted, u32 copied)
{
	u32 write_seq = 0;
	u32 copied_seq = 0;

	READ(&write_seq, sk, tcp_sock__write_seq);
	READ(&copied_seq, sk, tcp_sock__copied_seq);
	state->written = state->written_base = (u32)(write_seq - accepted);
	state->read = state->read_base = (u32)(copied_seq - copied);
}

/* A socket seen for the first time. */
static __always_inline struct tcp_state *adopt(void *sk, u8 direction, u8 flags, u32 accepted, u32 copied)
{
	u64 key = (u64)sk;
	struct tcp_state fresh = {};
	struct tcp_state *state;

	fresh.id = bpf_ktime_get_ns();
	fresh.generation = current_generation();
	fresh.direction = direction;
	fresh.flags = flags;
	set_bases(sk, &fresh, accepted, copied);
	READ(&fresh.first_retrans, sk, tcp_sock__total_retrans);
	read_tuple(sk, &fresh.tuple);
	socks.insert(&key, &fresh); /* another processor may have been first: then its entry is ours too */
	state = socks.lookup(&key);
	if (!state)
		lose(LOST_SOCK);
	return state;
}

/* One older than us, in use: it was established, by whom is for user space to say. */
static __always_inline struct tcp_state *find_or_adopt(void *sk, u32 accepted, u32 copied)
{
	struct tcp_state *state = find(sk);

	return state ? state : adopt(sk, UNKNOWN, WAS_ESTABLISHED, accepted, copied);
}

static __always_inline void catch_up_written(void *sk, struct tcp_state *state)
{
	u32 now = 0;
	u64 before = state->written;
	u32 grown;

	READ(&now, sk, tcp_sock__write_seq);
	grown = now - (u32)before;
	if (!(state->flags & DONE_WRITING) && grown < 0x80000000)
		state->written = before + grown;
}

/* No more than `limit`: after the close nothing tells a FIN from a byte, except what the reader was given. */
static __always_inline void catch_up_read(void *sk, struct tcp_state *state, u32 limit)
{
	u32 now = 0;
	u32 end = 0;
	u64 before = state->read;
	u32 grown;

	READ(&now, sk, tcp_sock__copied_seq);
	if (state->flags & PEER_FIN) {
		READ(&end, sk, tcp_sock__rcv_nxt);
		if (now == end)
			now -= 1;
	}
	grown = now - (u32)before;
	if (grown < 0x80000000)
		state->read = before + (grown < limit ? grown : limit);
}

static __always_inline void measure(void *sk, struct tcp_state *state)
{
	u32 retrans = 0;

	READ(&state->srtt_us, sk, tcp_sock__srtt_us);
	READ(&state->mdev_us, sk, tcp_sock__mdev_us);
	READ(&retrans, sk, tcp_sock__total_retrans);
	state->retransmits = retrans - state->first_retrans;
}

static __always_inline void catch_up(void *sk, struct tcp_state *state)
{
	catch_up_written(sk, state);
	catch_up_read(sk, state, ~0);
	measure(sk, state);
}

static __always_inline void add_to_flow(struct flow *flow, const struct tcp_state *state)
{
	__sync_fetch_and_add(&flow->bytes_read, state->read - state->read_base);
	__sync_fetch_and_add(&flow->bytes_written, state->written - state->written_base);
	__sync_fetch_and_add(&flow->retransmits, state->retransmits);
	__sync_fetch_and_add(&flow->established, state->established);
	__sync_fetch_and_add(&flow->closed, state->closed);
	if (state->srtt_us) {
		__sync_fetch_and_add(&flow->rtt_us, state->srtt_us >> 3);
		__sync_fetch_and_add(&flow->rtt_var_us, state->mdev_us >> 2);
		__sync_fetch_and_add(&flow->rtt_samples, 1);
	}
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
	if (key.direction == OUTGOING && key.tuple.local_port >= EPHEMERAL_PORT)
		key.tuple.local_port = 65535;
	if (key.direction == INCOMING && key.tuple.remote_port >= EPHEMERAL_PORT)
		key.tuple.remote_port = 65535;
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

static __always_inline void on_state(void *sk, int from, int to)
{
	struct tcp_state *state;

	if (!is_protocol(sk, IPPROTO_TCP))
		return;
	if (to == LISTEN) {
		remember_listener(sk);
		return;
	}
	if (from == LISTEN)
		return;
	state = find(sk);
	if (to == SYN_SENT) {
		if (state)
			bury(sk, state);
		state = adopt(sk, OUTGOING, 0, 0, 0);
		if (state) {
			state->first_retrans = 0;
			own(&state->owner);
		}
		return;
	}
	if (to == ESTABLISHED) {
		if (!state)
			state = adopt(sk, from == SYN_SENT ? OUTGOING : INCOMING, 0, 0, 0);
		if (!state)
			return;
		set_bases(sk, state, 0, 0);
		read_tuple(sk, &state->tuple);
		state->flags |= WAS_ESTABLISHED;
		state->established = 1;
		measure(sk, state);
		return;
	}
	if (!state) {
		if (from == SYN_SENT || from == SYN_RECV || from == CLOSE)
			return;
		state = adopt(sk, UNKNOWN, WAS_ESTABLISHED, 0, 0);
		if (!state)
			return;
	}
	catch_up(sk, state);
	/* A process closes; the other transitions come with packets, under whatever process happens to run. */
	if (!state->owner.pid && ((from == ESTABLISHED && to == FIN_WAIT1) || (from == CLOSE_WAIT && to == LAST_ACK)))
		own(&state->owner);
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
	/* After the close a disconnect may have moved the counters; what was read since then is counted already. */
	if (!(state->flags & CLOSED))
		catch_up(sk, state);
	bury(sk, state);
}

static __always_inline void touch(struct tcp_state *state)
{
	if (!state->owner.pid)
		own(&state->owner);
}

static __always_inline void on_tcp_sent(void *sk, u32 accepted)
{
	struct tcp_state *state = find_or_adopt(sk, accepted, 0);

	if (!state)
		return;
	touch(state);
	catch_up_written(sk, state);
	measure(sk, state);
}

/* `copied` bytes were given to a reader, which may only have peeked. */
static __always_inline void on_tcp_received(void *sk, u32 copied, int peeked)
{
	struct tcp_state *state = find_or_adopt(sk, 0, peeked ? 0 : copied);

	if (!state)
		return;
	touch(state);
	catch_up_read(sk, state, state->flags & CLOSED ? copied : ~0);
	measure(sk, state);
}

static __always_inline void on_retransmit(void *sk)
{
	struct tcp_state *state = find(sk);

	if (state)
		measure(sk, state);
}

static __always_inline int is_zero(const struct address *address)
{
	/* A v4-mapped 0.0.0.0 is nobody's address either. */
	return !address->word[0] && !address->word[1] && !address->word[3] &&
	       (!address->word[2] || address->word[2] == 0xffff0000);
}

static __always_inline void count_datagram(void *sk, const struct tuple *tuple, u64 read, u64 written, int connected)
{
	struct udp_key key = {};
	struct udp_state fresh = {};
	struct udp_state *state;

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
		if (datagrams.insert(&key, &fresh))
			lose(LOST_DATAGRAM);
		state = datagrams.lookup(&key);
		if (!state)
			return;
	}
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

static __always_inline void on_udp_sent(void *sk, u64 bytes)
{
	struct tuple tuple = {};
	u64 thread = bpf_get_current_pid_tgid();
	struct route *route = routes.lookup(&thread);
	int connected;

	read_tuple(sk, &tuple);
	connected = tuple.remote_port != 0;
	if (route && __builtin_bswap16(route->local_port) == tuple.local_port) {
		tuple.remote = route->remote;
		tuple.remote_port = __builtin_bswap16(route->remote_port);
		if (is_zero(&tuple.local))
			tuple.local = route->local;
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

/* On a connected socket the sender is known; else it is, once `resolve` is told. */
static __always_inline void on_udp_received(void *sk, const struct pending *pending)
{
	struct tuple tuple = {};
	u64 thread = bpf_get_current_pid_tgid();

	read_tuple(sk, &tuple);
	if (tuple.remote_port) {
		count_datagram(sk, &tuple, pending->bytes, 0, 1);
		return;
	}
	if (pendings.update(&thread, (struct pending *)pending))
		lose(LOST_CALL);
}

/* The head of struct sockaddr_in; sockaddr_in6 has its address 8 bytes from the start. */
struct name {
	u16 family;
	u16 port;
	u32 v4;
};

/* The reader did not ask who sent it: on a socket that only ever spoke to one, that one did. */
static __always_inline void count_from_partner(void *sk, u64 bytes)
{
	u64 key = (u64)sk;
	struct tuple tuple = {};
	struct partner *partner = partners.lookup(&key);

	read_tuple(sk, &tuple);
	if (!partner || partner->many || partner->local_port != tuple.local_port) {
		lose(LOST_PEER);
		return;
	}
	tuple.remote = partner->remote;
	tuple.remote_port = partner->remote_port;
	count_datagram(sk, &tuple, bytes, 0, 0);
}

/* A datagram received on an unconnected socket from the address in `sockaddr` (ABI), wherever that lies. */
static __always_inline void count_received(void *sk, u64 bytes, const void *sockaddr)
{
	struct tuple tuple = {};
	struct name name = {};

	if (!sockaddr) {
		count_from_partner(sk, bytes);
		return;
	}
	if (bpf_probe_read(&name, sizeof(name), sockaddr)) {
		lose(LOST_PEER);
		return;
	}
	read_tuple(sk, &tuple);
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

/*
 * Hook set one: kprobes.
 */

static __always_inline void begin_call(void *sk)
{
	u64 thread = bpf_get_current_pid_tgid();
	u64 value = (u64)sk;

	if (calls.update(&thread, &value))
		lose(LOST_CALL);
}

static __always_inline void *end_call(void)
{
	u64 thread = bpf_get_current_pid_tgid();
	u64 *value = calls.lookup(&thread);
	void *sk = value ? (void *)*value : 0;

	calls.delete(&thread);
	return sk;
}

int kprobe__tcp_set_state(struct pt_regs *ctx)
{
	void *sk = (void *)PT_REGS_PARM1(ctx);
	u8 from = 0;

	READ(&from, sk, sock_common__skc_state);
	on_state(sk, from, (int)PT_REGS_PARM2(ctx));
	return 0;
}

/* tcp_sendmsg and, before 6.5, tcp_sendpage: both have the sock first. */
int kprobe__tcp_send(struct pt_regs *ctx)
{
	void *sk = (void *)PT_REGS_PARM1(ctx);

	if (!is_protocol(sk, IPPROTO_TCP))
		return 0;
	if (!find(sk)) {
		u8 state = 0;

		/* Before the handshake there is nothing to be older than. */
		READ(&state, sk, sock_common__skc_state);
		if (state == CLOSE || state == SYN_SENT || state == LISTEN)
			return 0;
		adopt(sk, UNKNOWN, WAS_ESTABLISHED, 0, 0);
	}
	begin_call(sk);
	return 0;
}

int kretprobe__tcp_send(struct pt_regs *ctx)
{
	void *sk = end_call();

	if (sk && (int)PT_REGS_RC(ctx) > 0)
		on_tcp_sent(sk, 0);
	return 0;
}

/* Before the bytes are taken: the base of a socket older than us. */
int kprobe__tcp_recvmsg(struct pt_regs *ctx)
{
	void *sk = (void *)PT_REGS_PARM1(ctx);
	u8 state = 0;

	if (find(sk))
		return 0;
	READ(&state, sk, sock_common__skc_state);
	if (state == CLOSE || state == SYN_SENT || state == LISTEN)
		return 0;
	adopt(sk, UNKNOWN, WAS_ESTABLISHED, 0, 0);
	return 0;
}

/* recvmsg, splice and everything else that takes bytes ends here, peeking too; copied_seq tells them apart. */
int kprobe__tcp_cleanup_rbuf(struct pt_regs *ctx)
{
	void *sk = (void *)PT_REGS_PARM1(ctx);
	int copied = (int)PT_REGS_PARM2(ctx);

	if (copied > 0)
		on_tcp_received(sk, copied, 0);
	return 0;
}

int kretprobe__inet_csk_accept(struct pt_regs *ctx)
{
	void *sk = (void *)PT_REGS_RC(ctx);
	struct tcp_state *state;

	if (!sk)
		return 0;
	state = find(sk);
	if (state)
		touch(state);
	return 0;
}

int kprobe__tcp_retransmit_skb(struct pt_regs *ctx)
{
	begin_call((void *)PT_REGS_PARM1(ctx));
	return 0;
}

int kretprobe__tcp_retransmit_skb(struct pt_regs *ctx)
{
	void *sk = end_call();

	if (sk)
		on_retransmit(sk);
	return 0;
}

int kprobe__tcp_v4_destroy_sock(struct pt_regs *ctx)
{
	on_destroy((void *)PT_REGS_PARM1(ctx));
	return 0;
}

/* udp_sendmsg and udpv6_sendmsg; the second calls the first for mapped addresses, whose return then counts. */
int kprobe__udp_send(struct pt_regs *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();

	routes.delete(&thread);
	begin_call((void *)PT_REGS_PARM1(ctx));
	return 0;
}

int kretprobe__udp_send(struct pt_regs *ctx)
{
	void *sk = end_call();

	if (sk && (int)PT_REGS_RC(ctx) > 0)
		on_udp_sent(sk, (int)PT_REGS_RC(ctx));
	return 0;
}

/* (struct sock *sk, struct flowi4 *fl4, ...) of ip_make_skb and, for corked sockets, ip_append_data. */
int kprobe__udp_route4(struct pt_regs *ctx)
{
	on_route4((void *)PT_REGS_PARM2(ctx));
	return 0;
}

/* (const struct sock *sk, struct flowi6 *fl6, ...) of ip6_sk_dst_lookup_flow. */
int kprobe__udp_route6(struct pt_regs *ctx)
{
	on_route6((void *)PT_REGS_PARM2(ctx));
	return 0;
}

/*
 * udp_recvmsg(sk, msg, len, noblock, flags, addr_len): `noblock` went with 5.19 (kernel commit ec095263a965), and
 * addr_len later. Which register has the flags is found out by user space, with receives of its own.
 */
int kprobe__udp_recvmsg(struct pt_regs *ctx)
{
	int zero = 0;
	u64 thread = bpf_get_current_pid_tgid();
	struct pending *pending = pendings.lookup(&thread);
	struct calibration *calibration = calibrations.lookup(&zero);
	u64 fourth = PT_REGS_PARM4(ctx);
	u64 fifth = PT_REGS_PARM5(ctx);
	u64 comm[2] = {};
	int flags;

	/* Both are read now: the compiler would choose between addresses in ctx, which the verifier forbids. */
	asm volatile("" : "+r"(fourth), "+r"(fifth));

	if (!calibration)
		return 0;
	if (!calibration->argument) {
		bpf_get_current_comm(&comm, sizeof(comm));
		if (comm[0] == calibration->comm[0] && comm[1] == calibration->comm[1]) {
			calibration->fourth = fourth;
			calibration->fifth = fifth;
		}
		return 0;
	}
	flags = calibration->argument == 4 ? (int)fourth : (int)fifth;
	/* Nobody asked for the sender of the last one, and no end of a system call told us so. */
	if (pending) {
		struct pending found = *pending;

		pendings.delete(&thread);
		count_from_partner((void *)found.sk, found.bytes);
	}
	begin_call((void *)((flags & MSG_PEEK) ? 0 : PT_REGS_PARM1(ctx)));
	return 0;
}

int kretprobe__udp_recvmsg(struct pt_regs *ctx)
{
	struct pending pending = {};

	pending.sk = (u64)end_call();
	if (!pending.sk || (int)PT_REGS_RC(ctx) <= 0)
		return 0;
	pending.bytes = (int)PT_REGS_RC(ctx);
	on_udp_received((void *)pending.sk, &pending);
	return 0;
}

/* (struct sockaddr_storage *kaddr, ...): the sender's address, on its way to user space. */
int kprobe__move_addr_to_user(struct pt_regs *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct pending *pending = pendings.lookup(&thread);
	struct pending found;

	if (!pending)
		return 0;
	found = *pending;
	pendings.delete(&thread);
	count_received((void *)found.sk, found.bytes, (const void *)PT_REGS_PARM1(ctx));
	return 0;
}

/*
 * Hook set two: raw tracepoints, for kernels without kprobes.
 */

int rawtp__inet_sock_set_state(struct bpf_raw_tracepoint_args *ctx)
{
	on_state((void *)ctx->args[0], (int)ctx->args[1], (int)ctx->args[2]);
	return 0;
}

/* (struct sock *sk, int ret, int flags), after the send. */
int rawtp__sock_send_length(struct bpf_raw_tracepoint_args *ctx)
{
	void *sk = (void *)ctx->args[0];
	int sent = (int)ctx->args[1];

	if (sent <= 0)
		return 0;
	if (is_protocol(sk, IPPROTO_TCP))
		on_tcp_sent(sk, sent);
	else if (is_protocol(sk, IPPROTO_UDP))
		on_udp_sent(sk, sent);
	return 0;
}

/* How a thread receives: its system call and where that puts the sender's address, from its registers. */
#if defined(__TARGET_ARCH_arm64) || defined(__aarch64__)
enum { NR_RECVFROM = 207, NR_RECVMSG = 212, NR_RECVMMSG = 243 };
#define SYSCALL_NUMBER syscallno
#define SYSCALL_ARG2   regs[1]
#define SYSCALL_ARG5   regs[4]
#else
enum { NR_RECVFROM = 45, NR_RECVMSG = 47, NR_RECVMMSG = 299 };
#define SYSCALL_NUMBER orig_ax
#define SYSCALL_ARG2   si
#define SYSCALL_ARG5   r8
#endif
#define MMSG_LEN    56 /* struct mmsghdr: a struct user_msghdr, whose first member is msg_name, then msg_len */
#define SIZEOF_MMSG 64
#define MMSGS       64 /* messages of one recvmmsg(2) told apart; the sender of those behind is lost, and counted */

static __always_inline void count_received_many(void *sk, const void *messages, int count)
{
	const void *name = 0;
	u32 length = 0;
	int i;

	/* A loop the verifier follows: this hook set is for 6.3 and newer. */
#pragma clang loop unroll(disable)
	for (i = 0; i < MMSGS; i++) {
		if (i >= count)
			return;
		bpf_probe_read(&name, sizeof(name), messages + i * SIZEOF_MMSG);
		bpf_probe_read(&length, sizeof(length), messages + i * SIZEOF_MMSG + MMSG_LEN);
		count_received(sk, length, name);
	}
	if (count > MMSGS)
		lose(LOST_PEER);
}

/* (struct sock *sk, int ret, int flags), after the receive. */
int rawtp__sock_recv_length(struct bpf_raw_tracepoint_args *ctx)
{
	void *sk = (void *)ctx->args[0];
	int received = (int)ctx->args[1];
	int peeked = (int)ctx->args[2] & MSG_PEEK;
	u64 thread = bpf_get_current_pid_tgid();
	struct pending pending = {};

	if (received <= 0)
		return 0;
	if (is_protocol(sk, IPPROTO_TCP)) {
		on_tcp_received(sk, received, peeked);
	} else if (!peeked && is_protocol(sk, IPPROTO_UDP)) {
		pending.sk = (u64)sk;
		pending.bytes = received;
		on_udp_received(sk, &pending);
	}
	return 0;
}

/* (struct pt_regs *regs, long ret): the sender's address is in user space by now. */
int rawtp__sys_exit(struct bpf_raw_tracepoint_args *ctx)
{
	const struct pt_regs *regs = (const struct pt_regs *)ctx->args[0];
	u64 thread = bpf_get_current_pid_tgid();
	struct pending *pending = pendings.lookup(&thread);
	struct pending found;
	const void *message = 0;
	const void *name = 0;
	long number = 0;

	if (!pending)
		return 0;
	found = *pending;
	pendings.delete(&thread);
	bpf_probe_read(&number, sizeof(regs->SYSCALL_NUMBER), &regs->SYSCALL_NUMBER);
	bpf_probe_read(&message, sizeof(message), &regs->SYSCALL_ARG2);
	if (number == NR_RECVMMSG) {
		count_received_many((void *)found.sk, message, (int)ctx->args[1]);
		return 0;
	}
	if (number == NR_RECVFROM)
		bpf_probe_read(&name, sizeof(name), &regs->SYSCALL_ARG5);
	else if (number == NR_RECVMSG)
		bpf_probe_read(&name, sizeof(name), message);
	count_received((void *)found.sk, found.bytes, name);
	return 0;
}

int rawtp__tcp_retransmit_skb(struct bpf_raw_tracepoint_args *ctx)
{
	on_retransmit((void *)ctx->args[0]);
	return 0;
}

int rawtp__tcp_destroy_sock(struct bpf_raw_tracepoint_args *ctx)
{
	on_destroy((void *)ctx->args[0]);
	return 0;
}

/* (u32 tb_id, const struct flowi4 *flp, ...). */
int rawtp__fib_table_lookup(struct bpf_raw_tracepoint_args *ctx)
{
	on_route4((void *)ctx->args[1]);
	return 0;
}

/* (const struct net *net, ..., struct fib6_table *table, const struct flowi6 *flp). */
int rawtp__fib6_table_lookup(struct bpf_raw_tracepoint_args *ctx)
{
	on_route6((void *)ctx->args[3]);
	return 0;
}
