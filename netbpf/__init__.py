"""Network tracing tools that run on the kernel at hand and say what their result is worth."""

__version__ = "0.1.0"
