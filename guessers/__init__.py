"""guessers finds the offsets of the running kernel by experiment; the kernel's BTF is never consulted."""
