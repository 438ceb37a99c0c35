"""Operating system services: raw system calls, child processes, privileges, untrusted files.

Nothing here knows kernel types, BPF programs or tools; every other room may import it.
"""
