"""Benchmarks against peers, run as modules from the checkout: `python3 -m benchmarks.gpu_step1`."""
