/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What httpflow keeps, in which maps: shared by everything below. */

/* conn.kind */
enum {
	NEW,      /* nothing like HTTP seen yet */
	PLAIN,    /* one request, its response, the next request: paired here */
	FOLLOWED, /* anything else HTTP allows: pieces go to user space, which pairs */
	OVER      /* not HTTP, or no longer */
};
/* conn.role: which end this socket is. */
enum { NOBODY, CLIENT, SERVER };

#define STRIKES 16   /* calls that begin like nothing HTTP says, before a socket is given up for good */
#define HEAD    4096 /* bytes behind the beginning of a message of which pieces go to user space */

/* Of a request: its method and path, then zeros. A longer one is user space's. */
#define TEXT_WORDS 15

/* `layer` tells what one socket carries apart: its own bytes, or those inside its TLS. */
struct conn_key {
	u64 sk;
	u64 layer;
};
enum { BARE, TLS };

struct request {
	u64 word[TEXT_WORDS];
};

struct conn {
	u64 id;       /* birth in ns: sock addresses are used again */
	u64 asked_ns; /* PLAIN: when the last of the waiting request went by */
	u64 early_ns; /* PLAIN: when a response went by whose request was not seen yet */
	u64 read;     /* bytes since birth, and when the last of them went by */
	u64 read_ns;
	u64 written;
	u64 written_ns;
	u64 read_until; /* FOLLOWED: up to here pieces go to user space whatever they begin like */
	u64 written_until;
	struct tuple tuple;
	struct owner owner;
	u32 read_seq; /* chunk.seq of the last one that way */
	u32 written_seq;
	u16 early_status;
	u8 early_minor;
	u8 kind;
	u8 role;
	u8 waiting; /* PLAIN: a request without its response */
	u8 done;    /* PLAIN: there was an exchange */
	u8 strikes;
	u8 is_http2;  /* FOLLOWED: pieces of every call go to user space, whatever they begin like */
	u8 read_said; /* SAID_* */
	u8 written_said;
	u8 unused;
	u32 early_seq; /* PLAIN: up to where the client had sent when that response went by */
	u32 unused_too;
	struct request request; /* PLAIN: the waiting one, or the last */
};

/* What a socket's number has said of the bytes that calls moved: just these; something else, as with kTLS. */
#define SAID_SAME  1
#define SAID_OTHER 2

/* What exchanges that look alike have in common. */
struct exchange_key {
	struct tuple tuple;
	struct owner owner;
	u16 status;
	u8 minor; /* of HTTP/1 */
	u8 direction;
	u64 layer;
	struct request request;
};

struct exchange {
	u64 count;
	u64 latency_ns; /* sum */
};

#define IS_KERNEL(address) ((long long)(address) < 0)

/* Where the bytes of a call lie: in one piece, or in `iov`, an array of `struct iovec` (ABI), wherever that lies. */
struct source {
	u64 base;
	u64 left;
	u64 iov;
	u64 segments;
};

/* One call that moved bytes over a socket. */
struct chunk {
	struct conn_key key;
	u64 time_ns;
	u32 size;
	u32 seq;     /* of the last byte, as far as it matters */
	u32 written; /* else read */
	u32 unseen;  /* bytes right before, as far as it shows, of which no call was told of */
	struct source source;
};

/*
 * Piece of a FOLLOWED connection, or of a hello; or news of it: `text` then holds a struct told_conn, or a struct
 * request.
 */
#define PIECE_TEXT 256
enum { PIECE, OPENED, REQUESTED, CLOSED, GREETED };
struct piece {
	struct conn_key key;
	u64 id;
	u64 time_ns;
	u64 offset;   /* of its first byte, in its direction */
	u64 other_ns; /* when the last byte went the other way */
	u16 lead;     /* bytes of `text` in front of it, and its own */
	u16 size;
	u8 what;
	u8 written;
	u8 role;
	u8 unseen; /* bytes in front of it of which no call was told of, 255 for more */
	char text[PIECE_TEXT];
};

struct told_conn {
	struct tuple tuple;
	struct owner owner;
};

/* Sockets that carried bytes. Programs insert and delete, with the socket; user space reads. */
BPF_HASH(conns, struct conn_key, struct conn, MAX_CONNS);
/*
 * Exchanges of PLAIN connections, merged. Programs write the one of the current generation, user space empties the
 * other: it makes a new generation, waits until no program of the old one is running that was not preempted, then
 * reads.
 */
BPF_HASH(exchanges0, struct exchange_key, struct exchange, MAX_EXCHANGES);
BPF_HASH(exchanges1, struct exchange_key, struct exchange, MAX_EXCHANGES);
/* Pieces, a ring a CPU: what finds it full is counted by the kernel and told to user space. */
BPF_PERF_OUTPUT(pieces);
/* Slot 0: of how many connections one is looked at, a power of two, less one. User space writes. */
BPF_ARRAY(sampling, u32, 1);
/* Slots of `losses`. */
enum { LOST_CONN, LOST_EXCHANGE, LOST_CALL, LOST_TLS, LOST_PIECE };
