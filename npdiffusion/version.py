"""The version of the library, which pictures carry."""
__version__ = "0.1.0"
