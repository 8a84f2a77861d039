/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * No program of ours may depend on a version number: the same object is for every kernel. The exact number that a
 * kprobe program must carry before 5.0 is given when it is loaded (see kcompat/version.py). bcc's own headers ask for
 * one; with 0 they take what the oldest kernels have.
 */
#ifndef KCOMPAT_VERSION_H
#define KCOMPAT_VERSION_H

#define LINUX_VERSION_CODE      0
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + ((c) > 255 ? 255 : (c)))

#endif
