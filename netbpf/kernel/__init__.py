"""What this kernel offers, and how a program gets into it."""
