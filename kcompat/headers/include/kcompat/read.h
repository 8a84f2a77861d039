/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * READ(): the one way our programs read a kernel field. kcompat.template generates OFFSET_<field>, WIDTH_<field> and
 * HAVE_<field> for every field that is known; a field that is not known has no macro at all.
 */
#ifndef KCOMPAT_READ_H
#define KCOMPAT_READ_H

/*
 * Copies the field to *dst, which may be wider than the field if the caller zeroed it. bpf_probe_read is the one
 * spelling that loads from 4.4 on; on x86 and arm64 it still reads kernel memory today.
 */
#define READ(dst, base, FIELD)                                                                                 \
	({                                                                                                     \
		_Static_assert(sizeof(*(dst)) >= WIDTH_##FIELD, #FIELD " is wider than what it is read into"); \
		bpf_probe_read((dst), WIDTH_##FIELD, (const void *)(base) + OFFSET_##FIELD);                   \
	})

/*
 * Several fields of one struct in one call, for what a read costs is the call, hardly its size: READ_SPAN() declares a
 * copy of what lies from the first to the end of the last, and PICK() takes each out of it. Where they lie further
 * apart than `largest`, or there is none, PICK() is READ(): offsets are constants, so that only one of the two is
 * compiled.
 */
#ifndef LARGEST_SPAN
#define LARGEST_SPAN 224 /* bytes of the stack, of which there are 512 */
#endif
#define AT(FIELD)    OFFSET_##FIELD
#define END(FIELD)   (OFFSET_##FIELD + WIDTH_##FIELD)
#define LOWER(a, b)  ((a) < (b) ? (a) : (b))
#define HIGHER(a, b) ((a) > (b) ? (a) : (b))

#define SPAN(from, end)          ((end) - ((from) & ~7)) /* what was aligned is so in the copy */
#define FITS(from, end, largest) ((end) > (from) && SPAN(from, end) <= (largest))

/* Before 4.7 a helper fills only what was filled already: the copy begins as zeros. */
#define READ_SPAN(copy, base, from, end, largest)                                                   \
	const void *const copy##_base = (base);                                                     \
	const int copy##_first = (from) & ~7;                                                       \
	const int copy##_fits = FITS(from, end, largest);                                           \
	char copy[FITS(from, end, largest) ? SPAN(from, end) : 8] __attribute__((aligned(8))) = {}; \
	if (copy##_fits)                                                                            \
	bpf_probe_read(copy, sizeof(copy), copy##_base + copy##_first)

#define PICK(dst, copy, FIELD)                                                                                 \
	({                                                                                                     \
		_Static_assert(sizeof(*(dst)) >= WIDTH_##FIELD, #FIELD " is wider than what it is read into"); \
		if (copy##_fits)                                                                               \
			__builtin_memcpy((dst), copy + OFFSET_##FIELD - copy##_first, WIDTH_##FIELD);          \
		else                                                                                           \
			READ(dst, copy##_base, FIELD);                                                         \
	})

#endif
