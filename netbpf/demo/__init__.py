"""Demonstrate every tool on generated traffic."""
