"""The package's version: one place, read by setup.cfg and by checkpoints."""

__version__ = "0.1.0"
