/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Hook set one: kprobes.
 */

/* A thread is in one system call at a time, and in one retransmission, which may interrupt the call of any thread. */
#define SYSTEM_CALL    0
#define RETRANSMISSION (1ULL << 63)

static __always_inline void begin_call(u64 kind, void *sk)
{
	u64 call = bpf_get_current_pid_tgid() | kind;
	u64 value = (u64)sk;

	if (calls.update(&call, &value))
		lose(LOST_CALL);
}

static __always_inline void *end_call(u64 kind)
{
	u64 call = bpf_get_current_pid_tgid() | kind;
	u64 *value = calls.lookup(&call);
	void *sk = value ? (void *)*value : 0;

	calls.delete(&call);
	return sk;
}

/*
 * Takes the bases of a socket older than us, but before the handshake, when there is nothing to be older than. Whether
 * it is one of TCP.
 */
static __always_inline int know_before_call(void *sk)
{
	u8 state = 0;
	struct numbers now = {};
	struct tcp_state *known = find_own(sk, 1);

	if (known && known->flags & WAS_ESTABLISHED)
		return 1;
	if (!known && !is_protocol(sk, IPPROTO_TCP))
		return 0;
	READ(&state, sk, sock_common__skc_state);
	if (state == CLOSE || state == SYN_SENT || state == LISTEN)
		return 1;
	read_numbers(sk, &now);
	if (known)
		establish(sk, known, &now, 0, 0);
	else
		adopt_old(sk, UNKNOWN, &now, 0, 0);
	return 1;
}

int kprobe__tcp_set_state(struct pt_regs *ctx)
{
	void *sk = (void *)PT_REGS_PARM1(ctx);
	u8 from = 0;

	READ(&from, sk, sock_common__skc_state);
	on_state(sk, from, (int)PT_REGS_PARM2(ctx), 1);
	return 0;
}

/* tcp_sendmsg and, before 6.5, tcp_sendpage: both have the sock first. */
int kprobe__tcp_send(struct pt_regs *ctx)
{
	void *sk = (void *)PT_REGS_PARM1(ctx);

	if (know_before_call(sk))
		begin_call(SYSTEM_CALL, sk);
	return 0;
}

int kretprobe__tcp_send(struct pt_regs *ctx)
{
	void *sk = end_call(SYSTEM_CALL);

	if (sk && (int)PT_REGS_RC(ctx) > 0)
		on_tcp_sent(sk, find(sk), (int)PT_REGS_RC(ctx), 1);
	return 0;
}

/* Before the bytes are taken: the base of a socket older than us. */
int kprobe__tcp_recvmsg(struct pt_regs *ctx)
{
	know_before_call((void *)PT_REGS_PARM1(ctx));
	return 0;
}

/* recvmsg, splice and everything else that takes bytes ends here, peeking too; copied_seq tells them apart. */
int kprobe__tcp_cleanup_rbuf(struct pt_regs *ctx)
{
	void *sk = (void *)PT_REGS_PARM1(ctx);
	int copied = (int)PT_REGS_PARM2(ctx);

	if (copied > 0)
		on_tcp_received(sk, find_own(sk, 1), copied, 1);
	return 0;
}

int kretprobe__inet_csk_accept(struct pt_regs *ctx)
{
	void *sk = (void *)PT_REGS_RC(ctx);
	struct tcp_state *state;

	if (!sk)
		return 0;
	state = find_own(sk, 1);
	if (!state) {
		struct numbers now = {};

		if (!is_protocol(sk, IPPROTO_TCP))
			return 0;
		read_numbers(sk, &now);
		adopt_old(sk, INCOMING, &now, 0, 0);
		state = find(sk);
		if (!state)
			return 0;
	}
	touch(state);
	if (state->direction == UNKNOWN)
		state->direction = INCOMING;
	/* Nothing else tells of listeners: none becomes one through tcp_set_state(). */
	remember_listener(&state->tuple);
	return 0;
}

int kprobe__tcp_retransmit_skb(struct pt_regs *ctx)
{
	begin_call(RETRANSMISSION, (void *)PT_REGS_PARM1(ctx));
	return 0;
}

int kretprobe__tcp_retransmit_skb(struct pt_regs *ctx)
{
	void *sk = end_call(RETRANSMISSION);

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
	begin_call(SYSTEM_CALL, (void *)PT_REGS_PARM1(ctx));
	return 0;
}

int kretprobe__udp_send(struct pt_regs *ctx)
{
	void *sk = end_call(SYSTEM_CALL);

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
	count_pending(0);
	forget_sender();
	begin_call(SYSTEM_CALL, (void *)((flags & (MSG_PEEK | MSG_ERRQUEUE)) ? 0 : PT_REGS_PARM1(ctx)));
	return 0;
}

int kretprobe__udp_recvmsg(struct pt_regs *ctx)
{
	struct pending pending = {};

	pending.sk = (u64)end_call(SYSTEM_CALL);
	if (!pending.sk || (int)PT_REGS_RC(ctx) <= 0)
		return 0;
	pending.bytes = (int)PT_REGS_RC(ctx);
	on_udp_received((void *)pending.sk, &pending);
	return 0;
}

/* (struct sockaddr_storage *kaddr, ...): the sender's address, on its way to user space. */
int kprobe__move_addr_to_user(struct pt_regs *ctx)
{
	count_pending((const void *)PT_REGS_PARM1(ctx));
	return 0;
}

/* The end of a system call that receives, where no raw tracepoint tells of ends: before 4.17. */
int kretprobe__receive(struct pt_regs *ctx)
{
	count_pending(0);
	return 0;
}
