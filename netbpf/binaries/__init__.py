"""User-space programs and libraries: which files are in use, and where to put uprobes on them.

Reads ELF files, Go programs and /proc/PID/maps; attaches nothing and knows no tool.
"""
