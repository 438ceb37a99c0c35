"""What this machine offers to each tool, and what is missing."""
