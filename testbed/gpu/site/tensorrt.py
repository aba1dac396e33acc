"""The double under TensorRT's own name, for processes that have this folder on their path."""

from testbed.gpu.double import *  # noqa: F403
from testbed.gpu.double import __version__ as __version__
