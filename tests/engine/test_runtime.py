"""A GPU session on the pretended GPU beyond plain runs: profiles, overlap, growing outputs, DLPack, ends."""

from __future__ import annotations

import gc
import itertools
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.engine import device
from tests.engine.pretended import batch
from trtkit.engine import closing
from trtkit.errors import EngineError, ModelError

Opened = Callable[..., Any]
Tensors = Callable[..., device.Tensor]


def ends(gpu: device.Gpu) -> list[str]:
    gc.collect()
    return [entry for entry in gpu.diary if entry.startswith("end of")]


# Profiles


def test_each_call_takes_the_profile_that_fits(gpu: device.Gpu, opened: Opened) -> None:
    with opened() as session:
        for size in (2, 40, 3, 2, 64, 40):
            np.testing.assert_array_equal(session.run(batch(size, size))["y"], batch(size, 2 * size))
        assert gpu.count("context with 1 config") == 2 and gpu.count("profile 1") == 1
    assert ends(gpu).count("end of Context") == 2 and ends(gpu)[-3:] == [
        "end of Engine",
        "end of Cache",
        "end of Runtime",
    ]


def test_the_profile_tuned_nearest_is_taken(gpu: device.Gpu, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "LIMITS", [((1, 4), (32, 4), (64, 4)), ((1, 4), (2, 4), (64, 4))])
    with opened() as session:
        assert [session.loaded.profile_for({"x": (size, 4)}) for size in (1, 4, 7, 9, 32, 64)] == [1, 1, 1, 0, 0, 0]


def test_a_profile_without_room_for_its_context(gpu: device.Gpu, opened: Opened) -> None:
    gpu.contexts_left = 1
    with opened() as session:
        session.run(batch(2))
        with pytest.raises(EngineError, match="cannot make an execution context for 'net'"):
            session.run(batch(40))
        np.testing.assert_array_equal(session.run(batch(2, 3))["y"], batch(2, 6))


# Copies that overlap


@pytest.mark.parametrize("cuda_graph", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_batches_come_out_in_order(gpu: device.Gpu, opened: Opened, seed: int, cuda_graph: bool) -> None:
    """The streams go on in a random order, so an event that is not waited for would show."""
    gpu.random.seed(seed)
    sizes = [gpu.random.choice((1, 2, 3, 40)) for _ in range(40)]
    with opened(cuda_graph=cuda_graph) as session:
        outputs = session.run_many(batch(size, i) for i, size in enumerate(sizes))
        for i, (size, got) in enumerate(zip(sizes, outputs, strict=True)):
            np.testing.assert_array_equal(got["y"], batch(size, 2 * i))


def test_several_batches_are_under_way_at_once(gpu: device.Gpu, opened: Opened) -> None:
    with opened() as session:
        taken: list[int] = []
        outputs = session.run_many(taken.append(i) or batch(2, i) for i in range(6))  # type: ignore[func-returns-value]
        next(outputs)
        assert taken == [0, 1, 2, 3]
        outputs = session.run_many((taken.append(i) or batch(2, i) for i in range(6, 9)), overlap=False)  # type: ignore[func-returns-value]
        next(outputs)
        assert taken == [0, 1, 2, 3, 6]


def test_iterators_given_up_and_side_by_side(gpu: device.Gpu, opened: Opened) -> None:
    with opened() as session:
        given_up = session.run_many(batch(2, i) for i in range(9))
        assert next(given_up)["y"][0, 0] == 0
        pairs = zip(
            session.run_many(batch(2, i) for i in range(10)),
            session.run_many(batch(2, 100 + i) for i in range(10)),
            strict=True,
        )
        for i, (one, other) in enumerate(pairs):
            np.testing.assert_array_equal(session.run(batch(2, 7))["y"], batch(2, 14))  # and calls in between
            assert (one["y"][0, 0], other["y"][0, 0]) == (2 * i, 2 * (100 + i))
        assert next(given_up)["y"][0, 0] == 2


def test_more_shapes_than_are_kept(gpu: device.Gpu, opened: Opened) -> None:
    """Buffers are freed for others while batches are under way."""
    with opened(kept_shapes=2) as session:
        for i, got in enumerate(session.run_many(batch(1 + i % 5, i) for i in range(30))):
            np.testing.assert_array_equal(got["y"], batch(1 + i % 5, 2 * i))
        assert len(gpu.memory) == 2 * 2 + 1


def test_a_bad_batch_among_many(gpu: device.Gpu, opened: Opened) -> None:
    with opened() as session:
        outputs = session.run_many([batch(2, 1), batch(65)])
        with pytest.raises(ModelError, match=r"\(65, 4\) is outside"):
            list(outputs)
        np.testing.assert_array_equal(next(session.run_many([batch(2, 3)]))["y"], batch(2, 6))


def test_closed_while_batches_are_under_way(gpu: device.Gpu, opened: Opened) -> None:
    session = opened()
    outputs = session.run_many(batch(2, i) for i in itertools.count())
    assert next(outputs)["y"][0, 0] == 0
    session.close()
    assert len(gpu.memory) == 0 and gpu.graphs == {} and ends(gpu)[0] == "end of Context"
    with pytest.raises(EngineError, match="closed"):
        for _ in range(5):
            next(outputs)


def test_large_arrays_are_staged_whole(gpu: device.Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["trtkit.engine.cuda"]
    monkeypatch.setattr(module, "_SPLIT_BYTES", 64)
    for copiers in (1, 3, 4):
        monkeypatch.setattr(module, "_COPIERS", copiers)
        for count in (1, 15, 16, 17, 1001):
            array, to = np.arange(count, dtype=np.float32).reshape(1, -1), np.zeros((1, count), np.float32)
            module.stage(to, array)  # type: ignore[attr-defined]
            np.testing.assert_array_equal(to, array)


# Outputs whose shape depends on the data


def rows(*first: float) -> np.ndarray:
    return np.array([[value, 1, 2, 3] for value in first], np.float32)


def test_outputs_grow_and_shrink(gpu: device.Gpu, opened: Opened) -> None:
    gpu.grows = True
    with opened() as session:
        for values in ((1, -1), (1, 2), (-1, -1), (3, 4), (1, -1, 5)):
            expected = [v for v in values if v > 0]
            np.testing.assert_array_equal(session.run(rows(*values))["y"], 2 * rows(*expected).reshape(-1, 4))
        assert gpu.count("capture") == 0
        many = session.run_many(rows(*[1] * i, -1) for i in range(1, 9))
        assert [got["y"].shape for got in many] == [(i, 4) for i in range(1, 9)]
    assert gpu.memory == {}


def test_growing_outputs_of_tensors(gpu: device.Gpu, opened: Opened, tensor: Tensors) -> None:
    gpu.grows = True
    x = tensor(rows(1, -1, 3))
    with opened() as session:
        for value in (-1, 2, -3, 4):
            x.write(rows(1, value, 3))
            expected = 2 * rows(*[v for v in (1, value, 3) if v > 0])
            np.testing.assert_array_equal(session.run(x)["y"].numpy(), expected)


def test_no_memory_for_a_growing_output(gpu: device.Gpu, opened: Opened) -> None:
    gpu.grows = True
    with opened() as session:
        session.run(rows(1, -1))
        gpu.full = True
        with pytest.raises(EngineError, match="no room for another"):
            session.run(rows(1, 1))
        gpu.full = False
        np.testing.assert_array_equal(session.run(rows(1, 2))["y"], 2 * rows(1, 2))


# Arrays of other libraries


class Foreign:
    """An array of CuPy, say: DLPack is all that one can know about it."""

    def __init__(self, tensor: device.Tensor) -> None:
        self.tensor = tensor

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.tensor.__dlpack_device__()


def test_dlpack_arrays_are_read_where_they_lie(
    gpu: device.Gpu, opened: Opened, tensor: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch, "from_dlpack", lambda foreign: foreign.tensor)
    x = tensor(batch(2, 3))
    with opened() as session:
        np.testing.assert_array_equal(session.run(Foreign(x))["y"].numpy(), batch(2, 6))
        x.write(batch(2, 5))
        np.testing.assert_array_equal(session.run({"x": Foreign(x)})["y"].numpy(), batch(2, 10))
        assert gpu.count("capture") == 1  # the same memory, so the same graph
        with pytest.raises(ModelError, match="has no input 'z'"):
            session.run({"z": Foreign(x)})
        with pytest.raises(ModelError, match=r"Input 'y' of 'net' is not on the GPU, and another one is"):
            session.run({"x": Foreign(x), "y": batch(2)})


def test_tensors_under_a_wrong_name(opened: Opened, tensor: Tensors) -> None:
    with opened() as session, pytest.raises(ModelError, match="Did you mean 'x'"):
        session.run({"X": tensor(batch(2))})


@pytest.fixture
def streams(gpu: device.Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's streams."""
    import torch

    monkeypatch.setattr(torch, "empty_like", lambda t: device.Tensor(gpu, np.zeros(t.shape, np.float32)))
    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda handle: device.Stream(gpu, handle))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: device.current_stream(gpu))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)


def test_outputs_of_ones_own(gpu: device.Gpu, opened: Opened, tensor: Tensors, streams: None) -> None:
    with opened() as session:
        tensors = [tensor(batch(2, i)) for i in range(5)]
        outputs = [session.run_apart(x)["y"] for x in tensors]
        for i, y in enumerate(outputs):
            np.testing.assert_array_equal(y.numpy(), batch(2, 2 * i))
        assert gpu.count("capture") == 1  # one graph for all addresses
        np.testing.assert_array_equal(session.run_apart(batch(2, 9))["y"], batch(2, 18))


# Threads


def test_a_session_in_a_thread_of_its_own(gpu: device.Gpu, opened: Opened) -> None:
    """PyCUDA's context is current in the thread that imported it alone, and must not stay on another one's stack."""
    done: list[Any] = []

    def work() -> None:
        with opened() as session:
            done.append(session.run(batch(2, 4))["y"])
            done.extend(got["y"] for got in session.run_many([batch(2, 1)] * 4))
        done.append(gpu.threads.depth)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    np.testing.assert_array_equal(done[0], batch(2, 8))
    assert len(done) == 6 and done[-1] == 0 and gpu.memory == {}


# The end


def test_half_made_sessions_leave_nothing(gpu: device.Gpu, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu.contexts_left = 0
    with pytest.raises(EngineError, match="cannot make an execution context"):
        opened()
    assert gpu.memory == {} and ends(gpu)[-3:] == ["end of Engine", "end of Cache", "end of Runtime"]
    gpu.contexts_left = 9
    monkeypatch.setattr(device.Engine, "get_tensor_location", lambda self, name: "host")
    with pytest.raises(EngineError, match=r"'x' of 'net' is a shape tensor.*open\('cpu'\)"):
        opened()
    assert ends(gpu)[-3:] == ["end of Engine", "end of Cache", "end of Runtime"]


def test_forgotten_sessions_are_freed_in_order(gpu: device.Gpu, opened: Opened) -> None:
    session = opened()
    session.run(batch(2))
    del session
    assert ends(gpu) == ["end of Context", "end of Engine", "end of Cache", "end of Runtime"]
    assert gpu.memory == {} and gpu.graphs == {}


def test_what_is_open_is_closed_when_the_interpreter_ends(gpu: device.Gpu, opened: Opened) -> None:
    one, other = opened(), opened()
    one.run(batch(2))
    closing.close_all()
    assert gpu.memory == {}
    for session in (one, other):
        with pytest.raises(EngineError, match="closed"):
            session.run(batch(2))


def test_the_newest_is_closed_first_and_errors_stop_nobody() -> None:
    closed: list[str] = []

    class Thing:
        def __init__(self, name: str) -> None:
            self.name = name
            closing.close_at_exit(self)

        def close(self) -> None:
            closed.append(self.name)
            if self.name == "b":
                raise OSError

    things = [Thing(name) for name in "abc"]
    closing.close_all()
    assert closed[-3:] == ["c", "b", "a"]
    del things


def test_a_failing_driver_does_not_keep_the_rest_open(
    gpu: device.Gpu, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = opened()
    for size in (1, 2):
        session.run(batch(size))
    driver = sys.modules["trtkit.engine.bound"].driver  # type: ignore[attr-defined]
    monkeypatch.setattr(driver, "cuGraphExecDestroy", lambda graph: (device.Status(1),))
    with pytest.raises(EngineError, match="CUDA: CUDA_ERROR_INVALID_VALUE"):
        session.close()
    assert ends(gpu) == ["end of Context", "end of Engine", "end of Cache", "end of Runtime"]
    assert session._closed
