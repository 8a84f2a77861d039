/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The running kernel's version comes from the loader as -DLINUX_VERSION_CODE (see kcompat/version.py): before 5.0 a
 * kprobe program loads only if it carries the exact number.
 */
#ifndef KCOMPAT_VERSION_H
#define KCOMPAT_VERSION_H

#ifndef LINUX_VERSION_CODE
#error "pass -DLINUX_VERSION_CODE: kcompat.bpf does"
#endif
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + ((c) > 255 ? 255 : (c)))

#endif
