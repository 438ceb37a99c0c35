"""The results of a run: events, distributions, tables."""
