"""netbpf triage: run the tools that see problems together, and tell what they found."""
