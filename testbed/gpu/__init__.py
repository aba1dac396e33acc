"""A GPU that isn't there: the real pycuda on a stand-in for the driver, and a double of TensorRT on top.

- `driver.c`, `driver.py`: the stand-in for libcuda.so.1, and how to control it.
- `pycuda.py`: the real pycuda, compiled once and cached.
- `double.py`: TensorRT's calls, as far as the engine uses them; networks run on onnxruntime, enqueued on the
  stand-in's streams.
- `rtx.py`: the real TensorRT for RTX, whose parser and builder need no GPU.
- `site`: put on a process's path, makes `import tensorrt` the double.
"""
