"""Lesson 04's checks: right answers pass, typical wrong ones and an empty stub fail with a hint."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from trtkit.course import digits
from trtkit.course.checks import NotSolved
from trtkit.course.checks import lesson04 as checks
from trtkit.course.pictures import lesson04 as pictures
from trtkit.importers.sklearn_trees import matrices


@pytest.fixture(autouse=True)
def no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trtkit.course.checks.lesson04.show", lambda fig, alt: None)


def hint(check: Any, answer: Any) -> str:
    with pytest.raises(NotSolved) as caught:
        check(answer)
    return str(caught.value)


def merged(x: Any, a: Any, b: Any) -> Any:
    both = x @ np.concatenate([a, b], axis=1)
    return both[:, : a.shape[1]], both[:, a.shape[1] :]


def test_two_products_with_one(capsys: pytest.CaptureFixture[str]) -> None:
    checks.check_merged(merged)
    assert "Right" in capsys.readouterr().out
    assert "2 products" in hint(checks.check_merged, lambda x, a, b: (x @ a, x @ b))
    assert "2 products" in hint(checks.check_merged, lambda x, a, b: (np.dot(x, a), np.dot(x, b)))
    assert "Where do you cut" in hint(checks.check_merged, lambda x, a, b: (x @ np.hstack([a, b]), None))
    assert "2 products" in hint(checks.check_merged, lambda x, a, b: (x.dot(a), x.dot(b)))
    assert "Where do you cut" in hint(checks.check_merged, lambda x, a, b: merged(x, b, a))
    wrong = hint(checks.check_merged, lambda x, a, b: tuple(2 * part for part in merged(x, a, b)))
    assert "axis 1, a first" in wrong
    assert "returns both results" in hint(checks.check_merged, lambda x, a, b: None)


def test_flops_of_heads() -> None:
    checks.check_heads(lambda trunk, head, k: (k * (trunk + head), trunk + k * head))
    assert "one trunk with k heads with k = 2" in hint(checks.check_heads, lambda t, h, k: (k * (t + h), t + h))
    assert "k networks with k = 2" in hint(checks.check_heads, lambda t, h, k: (t + k * h, t + k * h))
    assert "returns two numbers" in hint(checks.check_heads, lambda t, h, k: None)
    assert "returned nothing yet" in hint(checks.check_heads, lambda t, h, k: (None, None))


def rename(models: dict[str, list[str]], least: int = 2) -> dict[tuple[str, str], str]:
    counts = Counter(name for names in models.values() for name in names)
    return {(m, n): f"{m}/{n}" if counts[n] >= least else n for m, names in models.items() for n in names}


def test_name_clashes() -> None:
    checks.check_names(rename)
    assert "only one model has it" in hint(checks.check_names, lambda models: rename(models, 1))
    assert "2 models have it" in hint(checks.check_names, lambda models: rename(models, 3))

    def second_only(models: dict[str, list[str]]) -> dict[tuple[str, str], str]:
        seen: set[str] = set()
        answer = {}
        for m, names in models.items():
            for n in names:
                answer[m, n] = f"{m}/{n}" if n in seen else n
                seen.add(n)
        return answer

    assert "'conv' of 'cats' became 'conv': 2 models have it" in hint(checks.check_names, second_only)
    assert "(missing)" in hint(checks.check_names, lambda models: {("cats", "conv"): "cats/conv"})
    assert "returns a dict" in hint(checks.check_names, lambda models: None)


def test_paths_of_a_tree() -> None:
    right = matrices(checks.TREE).path
    checks.check_paths(lambda left, r: right)
    assert "turned around" in hint(checks.check_paths, lambda left, r: -right)
    assert "get 0" in hint(checks.check_paths, lambda left, r: np.where(right == 0, 1, right))
    assert "follow the way" in hint(checks.check_paths, lambda left, r: np.zeros_like(right))
    assert "has shape (4, 3)" in hint(checks.check_paths, lambda left, r: right.T)
    assert "returned nothing yet" in hint(checks.check_paths, lambda left, r: None)


def test_the_digit_network_learns_and_comes_from_its_seed() -> None:
    import torch

    learn, judge = digits.digits()
    net = digits.digit_network(learn)
    answers = net(torch.from_numpy(judge.x)).argmax(1).numpy()
    assert (answers == judge.y).mean() > 0.85
    again = digits.digit_network(learn, epochs=1)
    twice = digits.digit_network(learn, epochs=1)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), twice.parameters(), strict=True))


def test_pictures_draw() -> None:
    m = matrices(checks.TREE)
    drawn = [
        pictures.concatenation(4, 8, {"q": 8, "k": 4}),
        pictures.lines([1, 2], {"a": [1.0, 2.0]}, "x", "y", log=True, one=True),
        pictures.columns({"g": {"a": 1.0, "b": 2.0}}, "ms", "measured"),
        pictures.tree(checks.TREE, m),
        pictures.check_paths(m.path, m.path, m.lefts),
        pictures.renamed([("cats", "y", "cats/y", True)]),
    ]
    assert all(isinstance(fig, Figure) for fig in drawn)
