"""One module per tool, each a declaration; found by listing this package."""
