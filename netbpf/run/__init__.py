"""Run a tool: from its options to the summary."""
