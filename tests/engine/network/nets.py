"""Comparing networks with their frameworks: what all tests of this folder share."""

from __future__ import annotations

from typing import Any

import numpy as np

from trtkit.engine.network import Network

TOLERANCE = 5e-6  # float32 rounds to 6e-8; these nets add up a few hundred such errors at most


def same(network: Network, *samples: Any, tolerance: float = TOLERANCE) -> Network:
    """Hold a network against its framework, on batches 1, 2 and the samples given, and against saying nothing."""
    verification = network.check(tolerance=tolerance)
    if samples:
        checks = network.check(samples, tolerance).checks
        verification = verification._replace(checks=(*verification.checks, *checks))
    assert verification.passed, str(verification)
    sample = network.random_inputs(2, seed=1)
    for name, output in network.run(sample).items():
        assert np.std(output) > 1e-5, f"{name} is the same everywhere, so being equal says nothing"
    return network
