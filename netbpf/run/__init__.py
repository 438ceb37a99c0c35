"""The one sequence in which every tool runs, from the command line to the summary."""
