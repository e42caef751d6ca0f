"""The GPU session: what it says without PyCUDA, and its bookkeeping on a pretended GPU."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine import device
from tests.engine.pretended import MODULE, batch
from trtkit.errors import EngineError, MissingError, ModelError


@pytest.mark.parametrize("lacking", ["pycuda", "cuda"])
def test_without_its_packages_it_says_how_to_get_them(
    forget: None, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == lacking]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, lacking, None)  # an import of it now fails
    with pytest.raises(MissingError, match=r"pip install -e '.\[gpu\]'.*open\('cpu'\)"):
        importlib.import_module(MODULE)


# Arrays


def test_arrays_go_in_and_come_out(gpu: device.Gpu, opened: Callable[..., Any]) -> None:
    with opened() as session:
        assert session.device == "NVIDIA Pretence"
        assert [(i.name, i.shape) for i in (*session.inputs, *session.outputs)] == [
            ("x", ("x_dim0", 4)),
            ("y", ("y_dim0", 4)),
        ]
        first = session.run({"x": batch(2, 1)})["y"]
        second = session.run(batch(2, 5))["y"]
        np.testing.assert_array_equal(first, batch(2, 2))  # not overwritten by the second
        np.testing.assert_array_equal(second, batch(2, 10))


def test_the_second_call_replays_a_graph(gpu: device.Gpu, opened: Callable[..., Any]) -> None:
    with opened() as session:
        session.run(batch(2))
        assert (gpu.count("execute on 7"), gpu.count("capture"), gpu.count("replay")) == (1, 1, 0)
        bound = gpu.count("bind x")
        for value in range(5):
            np.testing.assert_array_equal(session.run(batch(2, value))["y"], batch(2, 2 * value))
        assert (gpu.count("execute on 7"), gpu.count("replay"), gpu.count("bind x")) == (1, 5, bound)


def test_without_graphs_it_executes_every_time(gpu: device.Gpu, opened: Callable[..., Any]) -> None:
    with opened(cuda_graph=False) as session:
        for size in (2, 2, 3, 2):  # and binds again when another shape was in between
            np.testing.assert_array_equal(session.run(batch(size))["y"], batch(size, 2))
        assert (gpu.count("execute on 7"), gpu.count("capture"), gpu.count("bind x")) == (4, 0, 3)


def test_what_cannot_be_recorded_is_executed(gpu: device.Gpu, opened: Callable[..., Any]) -> None:
    gpu.capturable = False
    with opened() as session:
        for value in range(4):
            np.testing.assert_array_equal(session.run(batch(2, value))["y"], batch(2, 2 * value))
        assert (gpu.count("capture"), gpu.count("replay"), gpu.count("execute on 7")) == (1, 0, 4)


def test_every_shape_has_its_own_graph(gpu: device.Gpu, opened: Callable[..., Any]) -> None:
    with opened() as session:
        for value, size in enumerate((1, 2, 3, 2, 1, 3, 1)):
            np.testing.assert_array_equal(session.run(batch(size, value))["y"], batch(size, 2 * value))
        assert (gpu.count("capture"), gpu.count("replay")) == (3, 4)


def test_only_so_many_shapes_are_kept(gpu: device.Gpu, opened: Callable[..., Any]) -> None:
    kept = 16
    with opened() as session:
        for size in range(1, kept + 4):
            np.testing.assert_array_equal(session.run(batch(size))["y"], batch(size, 2))
        assert len(gpu.graphs) == kept and gpu.count("destroy graph") == 3
        assert len(gpu.memory) == 2 * kept + 1  # and the context's scratch memory
        np.testing.assert_array_equal(session.run(batch(1, 3))["y"], batch(1, 6))  # bound anew


def test_the_least_recently_used_goes_first(gpu: device.Gpu, opened: Callable[..., Any]) -> None:
    kept = 16
    with opened() as session:
        for size in range(1, kept + 4):
            session.run(batch(size))
            session.run(batch(1))  # in use all the time
        captures = gpu.count("capture")
        session.run(batch(1))
        assert gpu.count("capture") == captures == kept + 3


def test_wrong_inputs_are_refused_before_anything_runs(gpu: device.Gpu, opened: Callable[..., Any]) -> None:
    with opened() as session:
        for inputs, said in (
            ({"z": batch(1)}, "has no input 'z'"),
            ({}, "needs input x"),
            (batch(1).astype(np.float64), r"\.astype\('float32'\)"),
            (np.zeros((0, 4), np.float32), "empty batch"),
            (batch(65), r"\(65, 4\) is outside the engine's profile, \(1, 4\) to \(32, 4\); \(33, 4\) to \(64, 4\)"),
        ):
            with pytest.raises(ModelError, match=said):
                session.run(inputs)
        assert len(gpu.memory) == 1 and not any(entry.startswith("execute") for entry in gpu.diary)
        np.testing.assert_array_equal(session.run(batch(2))["y"], batch(2, 2))


def test_a_profile_is_chosen(gpu: device.Gpu, opened: Callable[..., Any]) -> None:
    with opened(profile=1) as session:
        assert gpu.count("profile 1") == 1
        np.testing.assert_array_equal(session.run(batch(40))["y"], batch(40, 2))
        with pytest.raises(ModelError, match=r"\(33, 4\) to \(64, 4\)"):
            session.run(batch(1))


def test_a_failing_run_is_an_error(gpu: device.Gpu, opened: Callable[..., Any]) -> None:
    with opened() as session:
        gpu.fails = True
        with pytest.raises(EngineError, match="TensorRT failed while running 'net'"):
            session.run(batch(2))
        gpu.fails = False
        np.testing.assert_array_equal(session.run(batch(2, 3))["y"], batch(2, 6))


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_memory_that_runs_out_leaves_the_session_usable(
    gpu: device.Gpu, opened: Callable[..., Any], cuda_graph: bool
) -> None:
    with opened(cuda_graph=cuda_graph) as session:
        session.run(batch(2))
        gpu.full = True
        with pytest.raises(EngineError, match="no room for another"):
            session.run(batch(20))
        gpu.full = False
        np.testing.assert_array_equal(session.run(batch(2, 3))["y"], batch(2, 6))
        np.testing.assert_array_equal(session.run(batch(20, 4))["y"], batch(20, 8))


def test_a_plan_that_tensorrt_cannot_open(opened: Callable[..., Any]) -> None:
    with pytest.raises(EngineError, match="TensorRT cannot open the engine of 'net'"):
        opened(b"bad")


# Tensors


def test_tensors_are_read_where_they_lie(
    gpu: device.Gpu, opened: Callable[..., Any], tensor: Callable[..., device.Tensor]
) -> None:
    x = tensor(batch(2, 1))
    with opened() as session:
        y = session.run({"x": x})["y"]
        np.testing.assert_array_equal(y.numpy(), batch(2, 2))
        x.write(batch(2, 4))
        assert session.run(x)["y"] is y  # the next call with the same input overwrites it
        np.testing.assert_array_equal(y.numpy(), batch(2, 8))
        assert (gpu.count("replay"), gpu.count("synchronize")) == (1, 1)  # the latter to record the graph


def test_another_tensor_is_bound_anew(
    gpu: device.Gpu, opened: Callable[..., Any], tensor: Callable[..., device.Tensor]
) -> None:
    one, same_shape, other = tensor(batch(2, 1)), tensor(batch(2, 5)), tensor(batch(3, 10))
    with opened() as session:
        for _ in range(3):
            np.testing.assert_array_equal(session.run(one)["y"].numpy(), batch(2, 2))
            np.testing.assert_array_equal(session.run(same_shape)["y"].numpy(), batch(2, 10))
            np.testing.assert_array_equal(session.run(other)["y"].numpy(), batch(3, 20))
            np.testing.assert_array_equal(session.run(batch(2, 7))["y"], batch(2, 14))  # arrays in between
        assert gpu.count("capture") == 4


def test_a_stream_of_the_callers(
    gpu: device.Gpu, opened: Callable[..., Any], tensor: Callable[..., device.Tensor]
) -> None:
    with opened(cuda_graph=False) as session:
        session.run(tensor(batch(2)), stream=42)
        assert gpu.count("execute on 42") == 1


def test_tensors_that_do_not_fit(opened: Callable[..., Any], tensor: Callable[..., device.Tensor]) -> None:
    with opened() as session:
        for wrong, said in (
            (tensor(batch(2), device="cpu"), "got a cpu tensor"),
            (tensor(batch(2), index=1), "the engine runs on cuda:0"),
            (tensor(batch(2), contiguous=False), "got a strided tensor"),
            (tensor(batch(2).astype(np.float16)), r"\.astype\('float32'\)"),
            (tensor(np.zeros((2, 5), np.float32)), r"got float32 \(2, 5\)"),
            (tensor(batch(65)), "outside the engine's profile"),
        ):
            for _ in range(2):  # and no less the second time
                with pytest.raises(ModelError, match=said):
                    session.run(wrong)


# The end


def test_everything_is_freed_in_order(gpu: device.Gpu, opened: Callable[..., Any]) -> None:
    session = opened()
    for size in (1, 2, 3):
        session.run(batch(size))
    session.close()
    gc.collect()
    ends = [entry for entry in gpu.diary if entry.startswith("end of")]
    assert ends == ["end of Context", "end of Engine", "end of Cache", "end of Runtime"]
    assert gpu.memory == {} and gpu.graphs == {}
    assert gpu.diary.index("synchronize") < gpu.diary.index("destroy graph")
    session.close()  # a second time does nothing
    with pytest.raises(EngineError, match="closed"):
        session.run(batch(1))


def test_closed_for_tensors_too(opened: Callable[..., Any], tensor: Callable[..., device.Tensor]) -> None:
    session, x = opened(), tensor(batch(2))
    session.run(x)
    session.close()
    with pytest.raises(EngineError, match="closed"):
        session.run(x)


def test_compiled_kernels_are_kept_for_the_next_time(
    gpu: device.Gpu, opened: Callable[..., Any], tmp_path: Path
) -> None:
    opened().close()
    (file,) = tmp_path.rglob("*.runtime-cache")
    assert file.read_bytes().endswith(b"\ncompiled kernels") and file.parent == tmp_path / "trtkit"
    assert not any(entry.startswith("cache of") for entry in gpu.diary)
    opened().close()
    assert gpu.count("cache of 16 bytes") == 1 and gpu.count("cache set") == 2
    opened(b"another plan").close()  # has a file of its own
    assert gpu.count("cache of 16 bytes") == 1
    assert len(list(tmp_path.rglob("*.runtime-cache"))) == len(list((tmp_path / "trtkit").iterdir())) == 2


def test_the_cache_lies_in_the_users_cache_folder(
    opened: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "mine"))
    opened(cache_dir=None).close()
    assert len(list((tmp_path / "mine" / "trtkit").glob("*.runtime-cache"))) == 1


def test_a_cache_folder_that_cannot_be_written_is_no_disaster(opened: Callable[..., Any], tmp_path: Path) -> None:
    """Closing a session must free the GPU even where the user's cache folder is read-only."""
    (tmp_path / "trtkit").write_text("a file where the folder should be")
    session = opened()
    session.run(batch(1))
    try:
        session.close()
    except OSError:
        pytest.fail("close() raised and left the engine open")
    with pytest.raises(EngineError, match="closed"):
        session.run(batch(1))


def test_a_tensorrt_without_runtime_caches(
    gpu: device.Gpu, opened: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delattr(device.Engine, "create_runtime_config")
    with opened() as session:
        np.testing.assert_array_equal(session.run(batch(2))["y"], batch(2, 2))
    assert gpu.count("context with 0 config") == 1 and list(tmp_path.iterdir()) == []
