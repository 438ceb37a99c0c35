"""Check what this machine offers to each tool and what is missing."""
