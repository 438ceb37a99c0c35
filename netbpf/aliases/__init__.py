"""Names of other tools: each module lists those of one suite in ALIASES, and names it in SUITE."""
