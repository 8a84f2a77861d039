/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Hook set two: raw tracepoints, for kernels without kprobes. They see the end of every socket and every
 * retransmission, but where programs are preempted.
 */

int rawtp__inet_sock_set_state(struct bpf_raw_tracepoint_args *ctx)
{
	on_state((void *)ctx->args[0], (int)ctx->args[1], (int)ctx->args[2], is_on(PREEMPTED));
	return 0;
}

/*
 * Reading the kernel's numbers is half of what a call costs us. Once a tick is enough, as long as what calls return is
 * what the number grows by, nothing but bytes changes, and nobody else moves bytes the same way.
 */
static __always_inline int is_looked_at(const struct tcp_state *state, const struct lane *lane)
{
	return state->flags == WAS_ESTABLISHED && !state->moves_unseen && lane->looked == (u32)bpf_jiffies64() &&
	       lane->thread == (u32)bpf_get_current_pid_tgid();
}

/* After a look at one that was established before; `is_exact`: what calls returned since the last one is all of it. */
static __always_inline void looked(struct tcp_state *state, struct lane *lane, int is_exact)
{
	lane->looked = bpf_jiffies64();
	lane->thread = is_exact ? (u32)bpf_get_current_pid_tgid() : 0;
	if (!is_exact)
		state->moves_unseen = 1;
}

static __always_inline void look_at_sent(void *sk, struct tcp_state *state, u32 sent, int misses)
{
	int lasts = state && !misses && state->flags == WAS_ESTABLISHED;
	u64 expected = state ? state->written - state->written_base + state->out.ahead + sent : 0;

	on_tcp_sent(sk, state, sent, misses);
	if (!lasts)
		return;
	/* That there is one then, not every verifier can tell. */
	asm volatile("" : "+r"(state));
	if (state)
		looked(state, &state->out, state->written - state->written_base == expected);
}

static __always_inline void look_at_received(void *sk, struct tcp_state *state, u32 taken, int misses)
{
	int lasts = state && !misses && state->flags == WAS_ESTABLISHED;
	u64 expected = state ? state->read + state->in.ahead + taken : 0;

	on_tcp_received(sk, state, taken, misses);
	if (!lasts)
		return;
	/* That there is one then, not every verifier can tell. */
	asm volatile("" : "+r"(state));
	if (state)
		looked(state, &state->in, state->read == expected);
}

/* (struct sock *sk, int ret, int flags), after the send. A socket that is known is one of TCP: nothing else is asked.
 */
int rawtp__sock_send_length(struct bpf_raw_tracepoint_args *ctx)
{
	void *sk = (void *)ctx->args[0];
	int sent = (int)ctx->args[1];
	struct tcp_state *state;
	u16 protocol;
	int misses;

	if (sent <= 0) {
		forget_route();
		return 0;
	}
	misses = is_on(PREEMPTED);
	state = find_own(sk, misses);
	protocol = state ? IPPROTO_TCP : inet_protocol(sk);
	if (state && is_looked_at(state, &state->out))
		state->out.ahead += sent;
	else if (protocol == IPPROTO_TCP)
		look_at_sent(sk, state, sent, misses);
	else if (protocol == IPPROTO_UDP)
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
	struct tuple known = {};
	struct tuple ends = {};
	int i;

	read_tuple(sk, &known);
	/* The verifier forgets what it knew of it: it would go through the loop for each kind of socket. */
	bpf_probe_read(&ends, sizeof(ends), &known);

	/* A loop the verifier follows: this hook set is for 6.3 and newer. */
#pragma clang loop unroll(disable)
	for (i = 0; i < MMSGS; i++) {
		if (i >= count)
			return;
		bpf_probe_read(&name, sizeof(name), messages + i * SIZEOF_MMSG);
		bpf_probe_read(&length, sizeof(length), messages + i * SIZEOF_MMSG + MMSG_LEN);
		count_received_by(sk, &ends, length, name);
	}
	if (count > MMSGS)
		lose(LOST_PEER);
}

/* (struct sock *sk, int ret, int flags), after the receive. */
int rawtp__sock_recv_length(struct bpf_raw_tracepoint_args *ctx)
{
	void *sk = (void *)ctx->args[0];
	int received = (int)ctx->args[1];
	int flags = (int)ctx->args[2];
	struct pending pending = {};
	struct tcp_state *state;
	u16 protocol;
	int misses;
	u32 taken;

	if (received <= 0) {
		/* An empty datagram has a sender too. */
		if (!received)
			forget_sender();
		return 0;
	}
	misses = is_on(PREEMPTED);
	state = find_own(sk, misses);
	protocol = state ? IPPROTO_TCP : inet_protocol(sk);
	taken = flags & (MSG_PEEK | MSG_ERRQUEUE) ? 0 : received;
	if (state && !(flags & MSG_OOB) && is_looked_at(state, &state->in)) {
		state->in.ahead += taken;
	} else if (protocol == IPPROTO_TCP) {
		look_at_received(sk, state, taken, misses);
	} else if (protocol == IPPROTO_UDP && flags & (MSG_PEEK | MSG_ERRQUEUE)) {
		forget_sender();
	} else if (protocol == IPPROTO_UDP) {
		pending.sk = (u64)sk;
		pending.bytes = received;
		on_udp_received(sk, &pending);
	}
	return 0;
}

/* What a call that is no recvmmsg(2) received before its last datagram: nobody tells from whom, but the one partner. */
static __always_inline void count_earlier(const struct pending *found)
{
	struct tuple tuple = {};

	if (!found->earlier)
		return;
	read_tuple((void *)found->sk, &tuple);
	if (is_from_partner((void *)found->sk, &tuple))
		count_datagram((void *)found->sk, &tuple, found->earlier_bytes, 0, 0);
	else
		lose_many(LOST_PEER, found->earlier - 1); /* one is counted */
}

/*
 * (struct pt_regs *regs, long ret): the sender's address is in user space by now. Only the set that hears of all
 * messages of a recvmmsg(2) at once, and so too late to take one after the other, goes through them here.
 */
static __always_inline int on_sys_exit(struct bpf_raw_tracepoint_args *ctx, int goes_through)
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
	if (goes_through && number == NR_RECVMMSG) {
		count_received_many((void *)found.sk, message, (int)ctx->args[1]);
		return 0;
	}
	if (number == NR_RECVFROM)
		bpf_probe_read(&name, sizeof(name), &regs->SYSCALL_ARG5);
	else if (number == NR_RECVMSG)
		bpf_probe_read(&name, sizeof(name), message);
	count_earlier(&found);
	count_received((void *)found.sk, found.bytes, name);
	return 0;
}

int rawtp__sys_exit(struct bpf_raw_tracepoint_args *ctx)
{
	return on_sys_exit(ctx, 1);
}

/* Beside the kprobes, from 4.17 on: kernels before 5.3 take no loop. */
int rawtp__sys_exit__last(struct bpf_raw_tracepoint_args *ctx)
{
	return on_sys_exit(ctx, 0);
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
