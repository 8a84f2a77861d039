"""The datasets: each a BPF C file and the module that loads it and reads what it counted."""
