"""The version of this package, for those rooms that must not import the package's own names."""

__version__ = "0.1.0"
