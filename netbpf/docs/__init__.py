"""Manuals, man pages and the tables of README.md and docs/, generated from the declarations."""
