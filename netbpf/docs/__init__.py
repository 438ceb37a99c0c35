"""Manuals, man pages and the tables of the documents, all made from the declarations."""
