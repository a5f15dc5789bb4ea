"""The version of the package, in the one place where both the build and the program read it."""

__version__ = "0.1.0"
