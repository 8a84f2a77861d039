/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* bcc's helpers include it; they bring their own logarithms, so nothing is needed. */
