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

#endif
