"""Networks written layer by layer with TensorRT's network API, from a Keras model or a torch module.

network = from_keras(model)      # or from_torch(module, example)
network.check()                  # TensorRT's own definition against the framework, no GPU needed
engine = network.build()         # verified, as from trtkit.build
"""

from trtkit.engine.network.from_keras import from_keras
from trtkit.engine.network.from_torch import from_torch
from trtkit.engine.network.network import Network

__all__ = ["Network", "from_keras", "from_torch"]
