"""The double under TensorRT's own name, computing by PyTorch on a real GPU; its version says so."""

import torch

from testbed.gpu import double
from testbed.gpu.double import *  # noqa: F403
from testbed.gpu.on_torch import Runtime as Runtime

__version__ = f"{double.__version__}-pytorch-{torch.__version__}"
