"""Network tracing tools that use what the running kernel supports and report what they lost."""

__version__ = "0.1.0"
