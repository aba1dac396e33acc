"""The GPU engine: TensorRT (or TensorRT for RTX) through pycuda.

- `bindings`: the two libraries, imported only when a GPU is asked for, and a sentence for whatever is missing.
- `check`: what of all that is here, for `vaultml doctor`.
- `device`: the GPU's context, owned by one thread, and its facts.
- `build`: from ONNX to a serialized engine (a plan).
- `store`: plans on disk, shared by the workers of a node.
- `load`: the plan for this model on this GPU: from the store, or built.
- `execution`: two slots of buffers, three streams, one execution context.
- `engine`: the thread that owns the GPU, and the queue in front of it.
"""

from vaultml_worker.engines.tensorrt.bindings import missing
from vaultml_worker.engines.tensorrt.check import check
from vaultml_worker.engines.tensorrt.engine import EngineBroken, TensorRtEngine
from vaultml_worker.engines.tensorrt.load import Built, build_ahead

__all__ = ["Built", "EngineBroken", "TensorRtEngine", "build_ahead", "check", "missing"]
