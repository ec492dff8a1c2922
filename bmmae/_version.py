"""The version of the library, written into every model and result."""

__version__ = "0.1.0"
