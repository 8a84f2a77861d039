"""The network collector: flows counted in the kernel, made into records, handed to sinks."""
