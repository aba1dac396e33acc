"""The VaultML worker: recordings in, detections out."""

from importlib.metadata import version

__version__ = version("vaultml")
