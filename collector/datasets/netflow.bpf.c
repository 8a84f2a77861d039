// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * netflow: who talks to whom, how much, how well. One state per TCP socket and per UDP socket and peer; two hook sets
 * (kprobes, and raw tracepoints for kernels without them) feed the same few functions.
 *
 * TCP bytes are write_seq and copied_seq, the kernel's own count of what it accepted and what the process took. Reading
 * them makes MSG_PEEK, sendfile, splice and a missed return probe harmless: a later event on the socket catches up. SYN
 * is before the first reading, FIN is taken off. What calls return is added up only between two readings, see `struct
 * lane`.
 *
 * User space and programs share no entry that both write: see `flows`, `dead` and `generation`.
 */
#include <uapi/linux/ptrace.h>
#include <kcompat/read.h>

#include "sock.h"
#include "tally.h"
#include "netflow_maps.h"
#include "netflow_numbers.h"
#include "netflow_graves.h"
#include "netflow_tcp.h"
#include "netflow_udp.h"
#include "netflow_kprobes.h"
#include "netflow_tracepoints.h"
#include "netflow_cgroups.h"
