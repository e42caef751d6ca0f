"""TensorRT: building engines, looking into them, verifying and running them."""
