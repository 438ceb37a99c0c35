"""Programs and libraries in user space: ELF files, Go programs, and what of them can be probed."""
