/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* HTTP/1 by its bytes, eight at a time and without a loop: what a call's bytes begin like, and whole requests. */

#define EVERY(byte) (0x0101010101010101ULL * (byte))

/* A PREFACE is what a client of HTTP/2 begins with, a GREETING what one of TLS does: its hello. */
enum { NOTHING, REQUEST, RESPONSE, PREFACE, GREETING };

/*
 * Each word is worked through on its own: without this the compiler keeps what it knows of all of them, and the stack
 * has no room for that.
 */
#define ALONE(word) asm volatile("" : "+r"(word))

/* 0x80 in each byte of the word that is this one; and perhaps in some behind the first of them. */
static __always_inline u64 equal(u64 word, u8 byte)
{
	u64 x = word ^ EVERY(byte);

	return (x - EVERY(0x01)) & ~x & EVERY(0x80);
}

/* Whether the first bytes, of which there are `size`, are the beginning of the word's, or the word's of theirs. */
#define BEGINS(bytes, mask, text, length) \
	(!(((bytes) ^ (text)) & (mask) & ((length) == 8 ? ~0ULL : (1ULL << 8 * ((length)&7)) - 1)))

/* Little-endian words. */
#define W4(a, b, c, d)             ((u64)(a) | (u64)(b) << 8 | (u64)(c) << 16 | (u64)(d) << 24)
#define W8(a, b, c, d, e, f, g, h) (W4(a, b, c, d) | W4(e, f, g, h) << 32)
#define CONNECT                    W8('C', 'O', 'N', 'N', 'E', 'C', 'T', ' ')
/* A record of a handshake, version 3.0 to 3.4 and up to 3.7, of any length, and a client's hello in it. */
#define HELLO      W8(22, 3, 0, 0, 0, 1, 0, 0)
#define HELLO_MASK W8(0xff, 0xff, 0xf8, 0, 0, 0xff, 0, 0)

static __always_inline int begins_like(u64 bytes, u32 size)
{
	u64 mask = size >= 8 ? ~0ULL : (1ULL << 8 * (size & 7)) - 1;

	if (BEGINS(bytes, mask, W4('G', 'E', 'T', ' '), 4) ||
	    BEGINS(bytes, mask, W8('P', 'O', 'S', 'T', ' ', 0, 0, 0), 5) ||
	    BEGINS(bytes, mask, W4('P', 'U', 'T', ' '), 4) ||
	    BEGINS(bytes, mask, W8('H', 'E', 'A', 'D', ' ', 0, 0, 0), 5) ||
	    BEGINS(bytes, mask, W8('P', 'A', 'T', 'C', 'H', ' ', 0, 0), 6) ||
	    BEGINS(bytes, mask, W8('D', 'E', 'L', 'E', 'T', 'E', ' ', 0), 7) ||
	    BEGINS(bytes, mask, W8('O', 'P', 'T', 'I', 'O', 'N', 'S', ' '), 8) || BEGINS(bytes, mask, CONNECT, 8) ||
	    BEGINS(bytes, mask, W8('T', 'R', 'A', 'C', 'E', ' ', 0, 0), 6))
		return REQUEST;
	if (BEGINS(bytes, mask, W8('H', 'T', 'T', 'P', '/', '1', '.', 0), 7))
		return RESPONSE;
	if (size >= 8 && bytes == W8('P', 'R', 'I', ' ', '*', ' ', 'H', 'T'))
		return PREFACE;
	return NOTHING;
}

/* The first 8 bytes of a call, or 16, as far as there are any; 0 when they cannot be read. */
static __always_inline int first_bytes(const struct source *source, u32 size, u64 *bytes)
{
	u8 byte;
	int i;

	if (source->left >= 16 && size >= 16 && !bpf_probe_read(bytes, 2 * sizeof(*bytes), (void *)source->base))
		return 1;
	if (source->left >= 8 || size >= 8) {
		if (!bpf_probe_read(bytes, sizeof(*bytes), (void *)source->base))
			return 1;
	}
	/* What lies behind a short one may not be there. */
	*bytes = 0;
#pragma unroll
	for (i = 0; i < 7; i++) {
		byte = 0;
		if (i < size && i < source->left) {
			if (bpf_probe_read(&byte, 1, (void *)(source->base + i)))
				return 0;
			*bytes |= (u64)byte << 8 * i;
		}
	}
	return 1;
}

#define WINDOW_WORDS 16
#define STRIDE       (8 * TEXT_WORDS) /* the last word of a window is the first of the next */
#define WINDOWS      3
#define SHORTEST     18 /* "GET / HTTP/1.0", two ends of line */

/*
 * All ones where the number is 0. The compiler must not see that it is a question: it would make a jump of it, each
 * doubles the ways to what follows, and 5.10's verifier goes all of them.
 */
static __always_inline u64 if_zero(u64 number)
{
	u64 sign = number | -number;

	ALONE(sign);
	return (sign >> 63) - 1;
}

/*
 * Whether an empty line begins in this window before `start`, bytes from its own beginning. A newline, any one byte, a
 * newline: takes a carriage return for granted, and is only ever too careful.
 */
static __always_inline u64 empty_line_before(const u64 *window, u32 start)
{
	u64 word = window[0];
	u64 newlines, next, both;
	u64 seen = 0;
	int i;

	ALONE(word);
	newlines = equal(word, '\n');
#pragma unroll
	for (i = 0; i < TEXT_WORDS; i++) {
		word = window[i + 1];
		ALONE(word);
		next = equal(word, '\n');
		both = newlines & (newlines >> 16 | next << 48);
		if (start >> 3 == i)
			return seen | (both & ((1ULL << 8 * (start & 7)) - 1));
		seen |= both;
		newlines = next;
		ALONE(newlines);
		ALONE(seen);
	}
	return seen;
}

/* Leaves method and path, zeros behind them. 0 when the path does not end in here. */
static __always_inline int keep_path(u64 *text)
{
	u64 space = equal(text[0], ' ');
	u64 behind_method = ~(((space & -space) << 1) - 1);
	u64 ended = 0;
	u64 word, ends, first;
	int i;

#pragma unroll
	for (i = 0; i < TEXT_WORDS; i++) {
		word = text[i];
		ALONE(word);
		ends = equal(word, ' ') | equal(word, '?');
		if (i == 0)
			ends &= behind_method;
		first = ends & -ends;
		text[i] = word & ((first >> 7) - 1) & if_zero(ended);
		ended |= first;
		ALONE(ended);
	}
	text[TEXT_WORDS] = 0;
	return ended != 0;
}

/* Where a whole request may begin, all that its path may be in is read at once: a read of user space is dear. */
static __always_inline int first_window(const struct source *source, u32 size, u64 *text)
{
	return source->left >= size && size >= SHORTEST && size <= WINDOWS * STRIDE &&
	       !bpf_probe_read(text, 8 * WINDOW_WORDS, (void *)source->base);
}

/* The last four of these bytes, as one word; the stack is read by whole words. */
static __always_inline u32 ending_at(const u64 *text, u32 size)
{
	u64 first = (size - 4) / 8;
	u32 bits = 8 * ((size - 4) & 7);
	u64 next = first + 1;

	/* The verifier must see what the compiler knows. */
	ALONE(first);
	ALONE(next);
	first &= WINDOW_WORDS - 1;
	next &= WINDOW_WORDS - 1;
	return text[first] >> bits | text[next] << 8 << (56 - bits);
}

/*
 * Whether these bytes are one request from its first byte to the end of its head, and nothing else; `text` is then its
 * method and path. With `is_read` it is the first window already, and its end is taken from there by an index, which no
 * verifier before 5.12 lets pass.
 */
static __always_inline int whole_request(const struct source *source, u32 size, u64 *text, u64 *window, int is_read)
{
	u32 start = size - 3; /* of the empty line, after a newline */
	int i;

	if (source->left < size || size < SHORTEST || size > WINDOWS * STRIDE)
		return 0;
	if (is_read && size <= 8 * WINDOW_WORDS) {
		window[0] = ending_at(text, size);
	} else {
		window[0] = 0;
		bpf_probe_read(window, 4, (void *)(source->base + size - 4));
	}
	if (window[0] != W4('\r', '\n', '\r', '\n'))
		return 0;
	if (!is_read && bpf_probe_read(text, 8 * WINDOW_WORDS, (void *)source->base))
		return 0;
	if (text[0] == CONNECT || empty_line_before(text, start))
		return 0;
#pragma unroll
	for (i = 1; i < WINDOWS; i++) {
		if (start < i * STRIDE)
			break;
		if (bpf_probe_read(window, 8 * WINDOW_WORDS, (void *)(source->base + i * STRIDE)) ||
		    empty_line_before(window, start - i * STRIDE))
			return 0;
	}
	return keep_path(text);
}

/* "HTTP/1.1 200 ": the status, and the version behind the point; 0 for anything else. `line` is its first bytes. */
static __always_inline u32 final_status(const struct source *source, u32 size, const u8 *line, u8 *minor)
{
	u32 a, b, c;

	if (source->left < 16 || size < 16)
		return 0;
	*minor = line[7] - '0';
	a = (u32)line[9] - '0';
	b = (u32)line[10] - '0';
	c = (u32)line[11] - '0';
	if (*minor > 1 || line[8] != ' ' || a < 2 || a > 5 || b > 9 || c > 9 || (line[12] != ' ' && line[12] != '\r'))
		return 0;
	return a * 100 + b * 10 + c;
}
