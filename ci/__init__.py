"""Boots real kernels in QEMU and runs the product in them, from outside, as a user would."""
