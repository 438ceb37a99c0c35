"""Queries about the running kernel: types, probes, counters, namespaces, cgroups and processes.

Loads no programs of tools and reads no user-space binaries; `select` turns the answers into probes.
"""
