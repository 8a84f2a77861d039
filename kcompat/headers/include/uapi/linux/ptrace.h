/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The registers a kprobe sees: ABI of BPF kprobe programs on both architectures (their ptrace.h). */
#ifndef KCOMPAT_PTRACE_H
#define KCOMPAT_PTRACE_H

#if defined(__TARGET_ARCH_arm64) || defined(__aarch64__)
struct pt_regs {
	unsigned long regs[31];
	unsigned long sp;
	unsigned long pc;
	unsigned long pstate;
	unsigned long orig_x0;
	int syscallno;
	unsigned int unused2;
};
#else
struct pt_regs {
	unsigned long r15, r14, r13, r12;
	unsigned long bp, bx;
	unsigned long r11, r10, r9, r8;
	unsigned long ax, cx, dx, si, di;
	unsigned long orig_ax;
	unsigned long ip, cs, flags, sp, ss;
};
#endif

#endif
