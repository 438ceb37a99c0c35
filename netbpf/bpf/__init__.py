"""Get BPF programs into the kernel and their data out: generate, compile, load, attach, read.

Knows probes and records from `declare`, but no single tool; bcc is imported in `compiler` only.
"""
