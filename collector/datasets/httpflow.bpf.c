// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * httpflow: HTTP/1 requests and their responses, by what the bytes of each call on a TCP socket begin like.
 *
 * What nearly all connections do, one whole request in a call, its response, the next, is paired and summed up here: a
 * busy server costs no event. A connection that does anything else (pipelines, splits a head, sends it with a body) is
 * handed over: its messages' beginnings go to user space, which knows HTTP in full. What is no HTTP is soon not looked
 * at any more.
 */
#include <uapi/linux/ptrace.h>
#define LARGEST_SPAN 0 /* no stack is left for copies */
#include <kcompat/read.h>

#include "sock.h"
#include "tally.h"
#include "httpflow_maps.h"
#include "httpflow_text.h"
#include "httpflow_pieces.h"
#include "httpflow_pairs.h"
#include "httpflow_conns.h"
#include "httpflow_calls.h"
#include "httpflow_stages.h"
#include "httpflow_tls.h"
#include "httpflow_kprobes.h"
#include "httpflow_tracepoints.h"
