"""Benchmarks of netbpf beside its peers: python3 -m bench."""
