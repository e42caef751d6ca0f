"""Which modules' examples can be run here: those that need a GPU's packages only where these are installed."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("pycuda") and find_spec("cuda") else ["trtkit/engine/gpu.py"]
