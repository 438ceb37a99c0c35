"""Every tool on traffic of its own."""
