"""Which modules' examples can be run here: those that need a GPU's packages or PyTorch only where these are."""

from importlib.util import find_spec

ON_GPU = ("cuda", "loaded", "bound", "tensors", "overlap", "gpu", "kernel_gpu")
collect_ignore = [] if find_spec("pycuda") and find_spec("cuda") else [f"trtkit/engine/{name}.py" for name in ON_GPU]
if not find_spec("torch"):
    collect_ignore += [f"trtkit/quant/{name}.py" for name in ("fake_quant", "qat", "qat_graph", "qat_trace")]
    collect_ignore += ["trtkit/course/recipes", "trtkit/engine/network"]
