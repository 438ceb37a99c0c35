"""Text, JSON lines and CSV over declared columns."""
