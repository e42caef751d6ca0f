"""The trained networks: they load, their data fit, and they score what their cards say, optimised or not."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

import trtkit
from trtkit.course.trained import TRAINED, Trained, accuracy, evaluate, trained
from trtkit.errors import DataError

# what the cards say; agreement with itself is 1 by definition
SCORES = {"mobilenet_v2": 1.0, "digits": 0.9122}


@cache
def task(name: str) -> Trained:
    return trained(name)


@cache
def fp32(name: str) -> list[dict[str, np.ndarray]]:
    return [task(name).model.run(batch) for batch in task(name).test]


def rows(data: list[dict[str, np.ndarray]]) -> list[bytes]:
    """Every sample of all batches as bytes."""
    return [b"".join(part.tobytes() for part in row) for batch in data for row in zip(*batch.values(), strict=True)]


@pytest.mark.parametrize("name", TRAINED)
def test_score_is_the_card_s_also_when_optimised(name: str) -> None:
    score = task(name).score(fp32(name))
    assert score == pytest.approx(SCORES[name], abs=5e-4)
    assert evaluate(task(name), trtkit.optimize(task(name).model).run) == pytest.approx(score, abs=0.005)


@pytest.mark.parametrize("name", TRAINED)
def test_data_fit_the_model_and_are_disjoint(name: str) -> None:
    one = task(name)
    assert one.name == one.model.name == name
    assert not one.model.history
    assert one.kind in ("vision", "text", "audio")
    for batch in one.calibration + one.test:
        assert batch == one.model.check_inputs(batch)
    assert all(isinstance(info.shape[0], str) for info in one.model.inputs)
    seen, judged = set(rows(one.calibration)), set(rows(one.test))
    assert not seen & judged
    assert len(seen) >= 100
    assert len(judged) >= 100


@pytest.mark.parametrize("name", TRAINED)
def test_the_score_notices_noise(name: str) -> None:
    rng = np.random.default_rng(0)
    noise = [{k: rng.standard_normal(v.shape).astype(v.dtype) for k, v in batch.items()} for batch in fp32(name)]
    assert task(name).score(noise) < 0.7


@pytest.mark.parametrize("name", TRAINED)
def test_missing_outputs_are_an_error(name: str) -> None:
    one = task(name)
    with pytest.raises(DataError, match=r"outputs of all \d+ test samples"):
        one.score(fp32(name)[:1])
    with pytest.raises(DataError, match="got 0"):
        one.score([])


def test_not_a_number_is_a_wrong_answer() -> None:
    logits = np.array([[np.nan, 1.0], [0.0, 1.0]])
    assert accuracy(np.array([0, 1]))([{"y": logits}]) == 0.5


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(DataError, match=r"no trained network 'digit'; there are .*digits"):
        trained("digit")
