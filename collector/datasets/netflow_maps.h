/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What netflow keeps, in which maps, and how it reads a socket: shared by everything below. */

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

/* state.flags */
#define WAS_ESTABLISHED 1 /* its end is a closed connection, not a failed one */
#define PEER_FIN        2 /* the last number of the peer's sequence is a FIN, not a byte */
#define DONE_WRITING    4 /* what write_seq counts from here on is our FIN */
#define CLOSED          8 /* it may still be read from until it is destroyed */

/*
 * One direction of a socket, between two looks at the kernel's number of it. `ahead` is what the calls of `thread` have
 * moved since, as they returned it: all of them began after the look, which was that thread's too, so that nothing of
 * theirs is in it. The next look has it in it.
 */
struct lane {
	u32 looked; /* in which tick of the kernel's clock */
	u32 thread; /* 0: whoever calls looks */
	u32 ahead;
};

/*
 * `written` and `read` are write_seq and copied_seq continued to 64 bits, the bases where they stood when we first
 * looked. They are moved on by one store: two processors that do so at once never count twice, and what the slower one
 * takes back the next event restores. A base is set before what counts from it: half set, it makes a number below zero.
 * `flags` belong to whoever has the socket's lock. Those who only look at its numbers, after its call, write none, but
 * of a socket of which the handshake's end was not seen: that they establish, and may undo what is set in that moment.
 */
struct tcp_state {
	u64 id; /* sock addresses are used again */
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
	u8 moves_unseen; /* calls did not account for all once, as with splice(2) and kTLS: each looks from then on */
	u8 went_too_far; /* more than 2 GiB went by unseen: not all of its bytes are counted */
	struct lane out;
	struct lane in;
	u32 unused_too;
	/* The id once more: who reads memory that is used again meanwhile sees two sockets. 0: it is buried. */
	u64 seal;
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

/* Whom to ask for is translated on the way: netns 0 stands for all. */
struct destination {
	struct address remote;
	u32 port;
	u32 netns;
};

/* Where a datagram of this thread is sent to: of `sk` where cgroups tell, else of the socket with that port. */
struct route {
	u64 sk;
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

/* Who sent the datagram that a thread receives. */
struct sender {
	struct address remote;
	u32 remote_port;
};

/*
 * A datagram received on an unconnected socket, whose sender is known when its address goes to user space; and what the
 * same call received on that socket before: of recvmmsg(2) all senders are known then, of others, as io_uring's, none.
 */
struct pending {
	u64 sk;
	u64 bytes;
	u64 earlier_bytes;
	u64 earlier; /* datagrams */
};

/* The number of the socket that was born last on each processor. Programs write. */
#define PROCESSORS 8192 /* no kernel has more */
BPF_ARRAY(births, u64, PROCESSORS);
/* Live TCP sockets, by address. Programs insert and delete; user space reads. */
BPF_HASH(socks, u64, struct tcp_state, MAX_SOCKS);
/*
 * TCP sockets born and destroyed within one generation, merged. Programs write the one of the current generation, user
 * space empties the other: it makes a new generation, waits until no program of the old one is running that was not
 * preempted, then reads.
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
/* Translated destinations, whose connections are merged port by port. User space inserts; never deleted. */
BPF_HASH(translated, struct destination, u32, 16384);
/* Processes that own datagram flows and have ended. User space inserts, and deletes with the flows; programs read. */
BPF_HASH(ended, u32, u32, 16384);
/* By socket: programs insert, user space deletes with the socket's last idle flow. */
BPF_HASH(partners, u64, struct partner, MAX_SOCKS);
/*
 * By thread: programs insert when a call begins and delete when it ends, so as many as there are calls at a time, and
 * threads that ended in one or whose end was missed: when half full, user space deletes these. A route may also be
 * looked up beside a call, for a packet that arrives: user space empties `routes` when half full.
 */
BPF_HASH(routes, u64, struct route, 32768);
BPF_HASH(senders, u64, struct sender, 32768);
BPF_HASH(pendings, u64, struct pending, 32768);
BPF_HASH(calls, u64, u64, 32768);
/*
 * Slots of `switches`: `senders` has every sender that is asked for; there is something in `translated`; programs at
 * raw tracepoints are preempted, and those begun meanwhile left out.
 */
enum { SENDERS_TOLD, ANY_TRANSLATED, PREEMPTED };
/* User space writes a 1, programs read. */
BPF_ARRAY(switches, u32, 3);
/* Slot 0. User space writes; the program adds what it sees while `argument` is 0. */
BPF_ARRAY(calibrations, struct calibration, 1);
/* Slots of `losses`. */
enum { LOST_SOCK, LOST_FLOW, LOST_DEAD, LOST_DATAGRAM, LOST_PEER, LOST_CALL };

static __always_inline int is_on(int which)
{
	u32 *value = switches.lookup(&which);

	return value && *value;
}
