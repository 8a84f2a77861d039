/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* bcc carries its own copy of the BPF ABI: use that one, so that both always agree. */
#include <bcc/bpf.h>
