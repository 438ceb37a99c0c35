"""The commands of the command line that run tools."""
