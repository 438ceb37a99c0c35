"""Rules that find what is wrong, each beside the tool or the counters that see it."""
