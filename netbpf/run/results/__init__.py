"""What a run shows: events, distributions, tables."""
