"""Kept exports: the same network is found again, and another one never is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trtkit
from trtkit.importers import kept_exports
from trtkit.importers import torch as importer

torch = pytest.importorskip("torch")


class Net(torch.nn.Module):
    def __init__(self, factor: float = 2.0, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layer, self.factor = torch.nn.Linear(4, 3), factor

    def forward(self, x: Any) -> Any:
        return self.layer(x) * self.factor


@pytest.fixture
def exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the modules that were really exported."""
    done: list[str] = []
    right = importer._export
    monkeypatch.setenv(kept_exports.SETTING, str(tmp_path / "kept"))
    monkeypatch.setattr(
        importer, "_export", lambda module, *rest: done.append(type(module).__name__) or right(module, *rest)
    )
    return done


def test_found_again(exports: list[str]) -> None:
    x = torch.rand(2, 4)
    first, second = (trtkit.load(Net(), torch.rand(2, 4)) for _ in range(2))
    assert exports == ["Net"]
    assert first.to_bytes() == second.to_bytes() and (first.inputs, first.name) == (second.inputs, second.name)
    (got,) = second.run({"x": x.numpy()}).values()
    np.testing.assert_allclose(got, Net()(x).detach(), rtol=1e-5)


def wrapped(number: int) -> Any:
    class Local(Net):
        def forward(self, x: Any) -> Any:
            return super().forward(x) + number

    return Local()


def hooked() -> Any:
    net = Net()
    net.layer.register_forward_hook(lambda module, x, y: y * 3)
    return net


def patched(number: float) -> Any:
    net = Net()
    net.forward = lambda x: net.layer(x) * number
    return net


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Net, lambda: Net(factor=3.0)),
        (Net, lambda: Net(seed=1)),
        (Net, lambda: Net().double().float().requires_grad_(False).apply(lambda m: setattr(m, "note", 1))),
        (lambda: wrapped(1), lambda: wrapped(2)),
        (hooked, hooked),
        (lambda: patched(1), lambda: patched(2)),
        (lambda: torch.nn.Sequential(Net(), torch.nn.ReLU()), lambda: torch.nn.Sequential(Net(), torch.nn.Tanh())),
    ],
)
def test_another_network_has_another_key(one: Any, other: Any) -> None:
    keys = [kept_exports._key(make(), "") for make in (one, other)]
    assert keys[0] != keys[1] or keys == [None, None]  # None: exported every time


@pytest.mark.parametrize("make", [Net, lambda: wrapped(3), lambda: torch.nn.Sequential(Net(), torch.nn.ReLU6())])
def test_the_same_network_has_the_same_key(make: Any) -> None:
    key = kept_exports._key(make(), "")
    assert key is not None and kept_exports._key(make(), "") == key


def test_other_inputs_are_exported_anew(exports: list[str]) -> None:
    for inputs, options in (
        (torch.rand(2, 4), {}),
        (torch.rand(2, 5, 4), {}),
        (torch.rand(2, 4), {"dynamic_batch": False}),
    ):
        trtkit.load(Net(), inputs, **options)
    assert len(exports) == 3


def test_without_the_setting_nothing_is_kept(
    exports: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(kept_exports.SETTING)
    for _ in range(2):
        trtkit.load(Net(), torch.rand(2, 4))
    assert len(exports) == 2 and not (tmp_path / "kept").exists()
