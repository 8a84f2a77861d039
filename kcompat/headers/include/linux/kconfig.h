/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Stands for the kernel's kconfig.h; bcc includes it first and insists on CONFIG_BPF_SYSCALL. */
#ifndef KCOMPAT_KCONFIG_H
#define KCOMPAT_KCONFIG_H

#define CONFIG_BPF_SYSCALL 1

#endif
