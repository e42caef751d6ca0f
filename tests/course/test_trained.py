"""The trained networks: they load, their data fit, and they score what their cards say, optimised or not."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

import trtkit
from trtkit.course import dates, signs, speech
from trtkit.course.paths import dataset
from trtkit.course.trained import TRAINED, Trained, accuracy, evaluate, learnt_from, network, trained
from trtkit.errors import DataError

# what the cards say; agreement with itself is 1 by definition
SCORES = {
    "mobilenet_v2": 1.0, "digits": 0.9122, "mnist": 0.99, "nuclei": 0.8804, "signs": 0.998, "mobilenet_signs": 0.8039,
    "sentiment": 0.7581,
    "dates": 1.0, "spoken_digits": 0.98,
}  # fmt: skip
OURS = tuple(name for name in TRAINED if name != "mobilenet_v2")


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
        assert list(one.model.check_inputs(batch)) == [info.name for info in one.model.inputs]
    assert all(isinstance(info.shape[0], str) for info in one.model.inputs)
    seen, judged = set(rows(one.calibration)), set(rows(one.test))
    assert not seen & judged
    assert len(seen) >= 100
    assert len(judged) == sum(len(next(iter(batch.values()))) for batch in one.test) >= 24


@pytest.mark.parametrize("name", TRAINED)
def test_the_score_notices_noise(name: str) -> None:
    rng = np.random.default_rng(0)
    noise = [{k: rng.standard_normal(v.shape).astype(v.dtype) for k, v in batch.items()} for batch in fp32(name)]
    assert task(name).score(noise) < min(0.7, task(name).score(fp32(name)))


@pytest.mark.parametrize("name", TRAINED)
def test_missing_outputs_are_an_error(name: str) -> None:
    one = task(name)
    with pytest.raises(DataError, match=r"outputs of all \d+ test samples"):
        one.score(fp32(name)[:1])
    with pytest.raises(DataError, match="got 0"):
        one.score([])


@pytest.mark.parametrize("name", TRAINED)
def test_the_card_says_score_and_licence(name: str) -> None:
    card = (dataset(name) / "README.md").read_text()
    for line in ("Input", "Output", "Licence", "Date", "Source" if name == "mobilenet_v2" else "Trained by"):
        assert f"| {line} |" in card
    if name in OURS:
        assert f"| **{100 * SCORES[name]:.2f} %** " in card
        assert f"trtkit.course.recipes.{name}" in card
        parameters = sum(p.numel() for p in network(name).parameters())
        assert f"{parameters:,} parameters" in card


@pytest.mark.parametrize("name", TRAINED)
def test_the_torch_module_is_the_same_network(name: str) -> None:
    batch = {key: array[:4] for key, array in task(name).test[0].items()}
    module = network(name)
    assert not module.training
    with torch.no_grad():
        got = module(*(torch.from_numpy(array) for array in batch.values())).numpy()
    want = next(iter(task(name).model.run(batch).values()))
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("name", OURS)
def test_what_it_learnt_from_is_not_what_judges_it(name: str) -> None:
    inputs, answers = learnt_from(name)
    assert all(len(array) == len(answers) for array in inputs.values())
    learnt = set(rows([inputs]))
    assert not learnt & set(rows(task(name).test))
    task(name).model.check_inputs(inputs)


def test_the_exporter_s_notes_are_not_shipped() -> None:
    for name in set(OURS) - {"mobilenet_signs"}:
        assert b'File "' not in (dataset(name) / "model.onnx").read_bytes()


def test_not_a_number_is_a_wrong_answer() -> None:
    logits = np.array([[np.nan, 1.0], [0.0, 1.0]])
    assert accuracy(np.array([0, 1]))([{"y": logits}]) == 0.5


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(DataError, match=r"no trained network 'digit'; there are .*digits"):
        trained("digit")
    with pytest.raises(DataError, match=r"what 'mobilenet_v2' learnt from, only that of digits"):
        learnt_from("mobilenet_v2")


def test_spoken_digits_hear_a_sound() -> None:
    """The spectrogram follows a tone from low to high, and ignores how many sounds it is given at once."""
    time = np.arange(speech.RATE) / speech.RATE
    tones = np.sin(2 * np.pi * np.array([[200], [1000], [5000]]) * time).astype(np.float32)
    seen = speech.log_mel(tones)
    loudest = seen[:, 0].mean(2).argmax(1)
    assert loudest[0] < loudest[1] < loudest[2]
    np.testing.assert_array_equal(seen[1:2], speech.log_mel(tones[1:2]))
    assert abs(speech.log_mel(0 * tones)).max() < 1e-6
    with pytest.raises(DataError, match="one second"):
        speech.log_mel(tones[:, :-1])


def test_signs_are_made_from_a_seed() -> None:
    x, y = signs.signs(40, seed=5)
    again, _ = signs.signs(40, seed=5)
    other, _ = signs.signs(40, seed=6)
    np.testing.assert_array_equal(x, again)
    assert (x != other).mean() > 0.5
    assert y.tolist() == [i % 34 for i in range(40)]


def test_a_date_of_strange_letters_is_an_error() -> None:
    with pytest.raises(DataError, match=r"36 characters .* which '\?' are not"):
        dates.numbers(["27.11.2026?"], dates.ALPHABET, dates.READ)
    with pytest.raises(DataError, match="36 characters"):
        dates.numbers(["27 November 2026" * 3], dates.ALPHABET, dates.READ)


def test_exact_match_wants_every_character() -> None:
    score = accuracy(np.array([[0, 1], [1, 1]]))
    assert score([{"y": np.eye(2)[[[0, 1], [1, 0]]]}]) == 0.5


def test_the_dates_network_writes_on_its_own_what_its_score_says() -> None:
    """Decoding greedily, with its own characters as input, gives the same exact matches as the right ones do."""
    one, count = task("dates"), 32
    read, answers = one.test[0]["read"][:count], one.test[0]["written"][:count]
    written = np.zeros((count, dates.WRITE + 1), np.int64)
    written[:, 0] = dates.START
    for place in range(dates.WRITE):
        logits = one.model.run({"read": read, "written": written[:, :-1]})["logits"]
        written[:, place + 1] = logits[:, place].argmax(1)
    forced = one.model.run({"read": read, "written": answers})["logits"].argmax(2)
    truth = np.concatenate([answers[:, 1:], forced[:, -1:]], 1)  # the last character is not among the inputs
    both = (written[:, 1:] == truth).all(1), (forced == truth).all(1)
    np.testing.assert_array_equal(*both)
    assert both[0].mean() > 0.9
