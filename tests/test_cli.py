"""The command line: every verb on a small real file, and one clean message for whatever is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from matplotlib import pyplot as plt

import trtkit
from trtkit import cli
from trtkit.cli_inputs import parse_shapes, read_data
from trtkit.errors import BuildError, DataError, ModelError
from trtkit.graph.groups import groups_of


def small_network() -> onnx.ModelProto:
    """Conv + BatchNormalization + Relu on (n, 3, 8, 8), with an Identity to remove."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.normal(size=(4, 3, 3, 3)) / 5,
        "scale": rng.uniform(0.5, 2, 4),
        "bias": rng.normal(size=4),
        "mean": rng.normal(size=4) / 10,
        "variance": rng.uniform(0.5, 2, 4),
    }
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["": 20]>
        small (float[n, 3, 8, 8] x) => (float[n, 4, 8, 8] y) {
            a = Identity(x)
            b = Conv<pads = [1, 1, 1, 1]>(a, w)
            c = BatchNormalization(b, scale, bias, mean, variance)
            y = Relu(c)
        }""")
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.float32(a), name) for name, a in weights.items())
    return model


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: small.onnx and 16 samples for it in images.npy, two.onnx (two inputs); a wide terminal."""
    onnx.save(small_network(), tmp_path / "small.onnx")
    images = np.random.default_rng(1).normal(size=(16, 3, 8, 8)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    np.savez(tmp_path / "images.npz", x=images)
    text = "two (float[1, 3] a, float[1, 3] b) => (float[1, 3] y) {y = Add(a, b)}"
    onnx.save(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 20]> {text}'), tmp_path / "two.onnx")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    return tmp_path


def run(*argv: str) -> int:
    return cli.main(argv)


# --- every verb ------------------------------------------------------------------------------------------------------


def test_doctor(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor") == 0
    assert "live or recalled" in capsys.readouterr().out
    assert run("doctor", "--line") == 0
    assert capsys.readouterr().out.startswith("trtkit ")


def test_optimize(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("optimize", "small.onnx", "-o", "out.onnx") == 0
    assert trtkit.load("out.onnx").op_counts == {"Conv": 1, "Relu": 1}
    printed = capsys.readouterr().out
    assert "saved: out.onnx" in printed and "->" in printed


def test_optimize_level_0_changes_nothing(folder: Path) -> None:
    assert run("optimize", "small.onnx", "--level", "0") == 0
    assert trtkit.load("small-optimized.onnx").node_count == 4


def test_optimize_for_one_shape_and_for_single_requests(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("optimize", "small.onnx", "--fix", "1x3x8x8", "--level", "3", "--low-latency") == 0
    assert trtkit.load("small-optimized.onnx").inputs[0].shape == (1, 3, 8, 8)
    assert run("optimize", "small.onnx", "--fix", "1x3x9x8") == 1
    assert "cannot have the shape (1, 3, 9, 8)" in capsys.readouterr().err


def test_groups(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("optimize", "small.onnx", "-o", "out.onnx") == 0
    capsys.readouterr()
    assert run("groups", "out.onnx") == 0
    printed = capsys.readouterr().out
    assert "1 x Conv+Relu" in printed and "TensorRT" not in printed
    marked = trtkit.load("out-groups.onnx")
    assert [group.label for group in groups_of(marked)] == ["Conv+Relu"]


def test_groups_against_an_engine(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("optimize", "small.onnx", "-o", "out.onnx") == 0
    assert run("groups", "out.onnx", "--compare", "--map", "map.png") == 0
    printed = capsys.readouterr().out
    assert "1 of TensorRT's 1 multi-node kernels are in a group of ours (1 equal to it)" in printed
    assert plt.imread("map.png").std() > 0.01
    with pytest.raises(SystemExit):
        run("groups", "out.onnx", "--nothing")
    assert run("groups", "out.onnx", "--map", "map.xyz") == 1
    assert "map.xyz" in capsys.readouterr().err


def test_autocast(folder: Path) -> None:
    assert run("autocast", "small.onnx", "fp16") == 0
    half = trtkit.load("small-fp16.onnx")
    weights = {tensor.dtype.name for tensor in half.ir.graph.initializers.values() if tensor.dtype is not None}
    assert "FLOAT16" in weights
    assert half.inputs[0].dtype == np.float32


@pytest.mark.parametrize("data", ["images.npy", "images.npz"])
def test_quantize(folder: Path, data: str) -> None:
    assert run("optimize", "small.onnx", "-o", "out.onnx") == 0
    assert run("quantize", "out.onnx", "--data", data, "--method", "entropy", "-o", "int8.onnx") == 0
    counts = trtkit.load("int8.onnx").op_counts
    assert counts["QuantizeLinear"] >= 1 and counts["DequantizeLinear"] >= 2


def test_lint(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("lint", "small.onnx") == 1
    assert "has no QuantizeLinear" in capsys.readouterr().err
    assert run("optimize", "small.onnx", "-o", "out.onnx") == 0
    assert run("quantize", "out.onnx", "--data", "images.npy", "-o", "int8.onnx") == 0
    capsys.readouterr()
    assert run("lint", "int8.onnx") == 0
    assert "1 quantised products; 1 explained" in capsys.readouterr().out
    proto = onnx.load("int8.onnx")
    weight = next(node for node in proto.graph.node if node.input[0].startswith("w"))
    proto.graph.node.remove(weight)
    dtype = onnx.TensorProto.FLOAT
    proto.graph.initializer.append(onnx.helper.make_tensor(weight.output[0], dtype, [4, 3, 3, 3], [1.0] * 108))
    onnx.save(proto, "one-sided.onnx")
    assert run("lint", "one-sided.onnx") == 1  # there is something to mend
    assert "costly: one-sided (1)" in capsys.readouterr().out


def test_lint_of_an_engine(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorrt_rtx")
    assert run("optimize", "small.onnx", "-o", "out.onnx") == 0
    assert run("quantize", "out.onnx", "--data", "images.npy", "-o", "int8.onnx") == 0
    assert run("lint", "int8.onnx", "--engine", "--shapes", "8x3x8x8") == 0
    assert "Conv: 1 of 1 in Int8" in capsys.readouterr().out


def test_build(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorrt_rtx")
    shapes = "1x3x8x8,4x3x8x8,16x3x8x8"  # the only input need not be named
    assert run("build", "small.onnx", "--shapes", shapes, "-o", "small.engine", "--map", "map.png") == 0
    engine = trtkit.open_engine("small.engine")
    assert engine.manifest["profiles"] == [{"x": [[1, 3, 8, 8], [4, 3, 8, 8], [16, 3, 8, 8]]}]
    assert (folder / "map.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "saved: small.engine" in printed and "layers" in printed
    if not engine.runs_here:
        assert "verified:" not in printed
        assert "NOT compared: nothing to compare with; give --reference model.onnx" in printed


def test_build_refuses_what_is_not_a_number(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorrt_rtx")
    text = '<ir_version: 10, opset_import: ["": 20]> g (float[n, 4] x) => (float[n, 4] y) {a = Sub(x, x) y = Div(a, a)}'
    onnx.save(onnx.parser.parse_model(text), "nan.onnx")
    assert run("build", "nan.onnx") == 1
    errors = capsys.readouterr().err
    assert errors.startswith("trtkit: ") and "not a number" in errors and "Traceback" not in errors
    assert not (folder / "nan.engine").exists()


def test_a_parser_that_fails_leads_to_optimize(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = iter(["parse", "build"])

    def refuse(*_: object, **__: object) -> None:
        raise BuildError("TensorRT refuses 'small'", next(stages))

    monkeypatch.setattr(trtkit, "build", refuse, raising=False)
    for told in (True, False):
        assert run("build", "small.onnx") == 1
        assert ("Run `trtkit optimize small.onnx` on it first" in capsys.readouterr().err) == told


def test_build_against_the_model_it_was_made_from(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorrt_rtx")
    assert run("optimize", "small.onnx", "-o", "out.onnx") == 0
    assert run("build", "out.onnx", "--reference", "small.onnx", "--data", "images.npy", "-o", "out.engine") == 0
    assert "against the model as loaded" in capsys.readouterr().out


def test_build_refuses_what_differs_from_its_reference(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorrt_rtx")
    other = small_network()
    other.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w"))
    onnx.save(other, "other.onnx")
    assert run("build", "other.onnx", "--reference", "small.onnx", "-o", "other.engine") == 1
    assert "refused" in capsys.readouterr().err
    assert not (folder / "other.engine").exists()


def test_compare(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("optimize", "small.onnx", "-o", "out.onnx") == 0
    assert run("compare", "small.onnx", "out.onnx", "--data", "images.npy", "--plot", "compare.png") == 0
    printed = capsys.readouterr().out
    assert "small" in printed and "out" in printed
    picture = plt.imread("compare.png")
    edges = (picture[0], picture[-1], picture[:, 0], picture[:, -1])
    assert all((edge == 1).all() for edge in edges)  # nothing is cut off: all around it is white


def test_compare_on_random_inputs(folder: Path) -> None:
    (folder / "other").mkdir()
    onnx.save(small_network(), "other/small.onnx")
    assert run("compare", "small.onnx", "other/small.onnx", "--batch", "2") == 0


def test_bench(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("bench", "small.onnx", "--data", "images.npy") == 0
    printed = capsys.readouterr().out
    assert "fp16" in printed and "int8" in printed


def test_lab_starts_jupyterlab_on_the_course_map(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jupyterlab")
    started: list[list[str]] = []
    settings: list[str] = []

    def execve(program: str, command: list[str], environment: dict[str, str]) -> None:
        started.append(command)
        settings.append(environment["JUPYTER_CONFIG_PATH"].split(":")[0])

    monkeypatch.setattr(cli.os, "execve", execve)
    assert run("lab", "--no-browser", "--port", "9000") == 0
    (command,) = started
    assert command[1:3] == ["-m", "jupyterlab"] and command[-3:] == ["--no-browser", "--port", "9000"]
    assert "--LabApp.default_url=/lab/tree/notebooks/README.md" in command
    overrides = json.loads((Path(settings[0]) / "labconfig" / "default_setting_overrides.json").read_text())
    assert "Markdown Preview" in str(overrides)


# --- what can be wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["optimize", "absent.onnx"], "No such file"),
        (["optimize", "images.npy"], "not an ONNX model"),
        (["quantize", "small.onnx", "--data", "absent.npy"], "No such file"),
        (["quantize", "small.onnx", "--data", "small.onnx"], "neither a .npy nor a .npz"),
        (["build", "small.onnx", "--shapes", "x:1x3xa"], "cannot be read"),
        (["build", "small.onnx", "--shapes", "z:1x3x8x8"], "'z'"),
        (["build", "two.onnx", "--shapes", "1x3"], "--shapes a:1x3"),
        (["optimize", "small.onnx", "-o", "."], ". is a folder"),
        (["autocast", "small.onnx", "fp16", "-o", "nowhere/out.onnx"], "the folder nowhere does not exist"),
        (["build", "small.onnx", "--map", "map.what"], "ends in one of ."),
        (["build", "small.onnx", "--map", "nowhere/map.png"], "the folder nowhere does not exist"),
        (["compare", "small.onnx", "--plot", "map"], "ends in one of ."),
        (["compare", "small.onnx", "half.engine"], "half.engine is an engine, and `trtkit compare` takes ONNX models"),
        (["compare", "two.onnx", "--batch", "8"], "takes batches of 1 only"),
        (["bench", "two.onnx", "--batch", "8"], "takes batches of 1 only"),
        (["bench", "small.onnx", "--batch", "0"], "holds nothing"),
    ],
)
def test_one_clean_message_and_nothing_written(
    folder: Path, capsys: pytest.CaptureFixture[str], argv: list[str], said: str
) -> None:
    before = sorted(folder.iterdir())
    assert run(*argv) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("trtkit: ") and said in errors and "Traceback" not in errors
    assert sorted(folder.iterdir()) == before


def test_an_unknown_network_of_torchvision(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torchvision")
    assert run("bench", "torchvision:no_such_network") == 1
    assert "no model 'no_such_network'" in capsys.readouterr().err


def test_debug_shows_where(folder: Path) -> None:
    with pytest.raises(ModelError):
        run("--debug", "optimize", "absent.onnx")


def test_ctrl_c(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trtkit, "optimize", interrupted, raising=False)
    assert run("optimize", "small.onnx") == 130


@pytest.mark.parametrize("argv", [[], ["fly"], ["optimize"], ["quantize", "m.onnx"], ["doctor", "--fast"]])
def test_wrong_arguments_end_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(*argv)
    assert ended.value.code == 2
    assert "usage: trtkit" in capsys.readouterr().err


def test_as_a_program_head_may_stop_reading() -> None:
    command = f"{sys.executable} -m trtkit.cli doctor | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=Path(cli.__file__).parents[1])
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr


@pytest.mark.parametrize("text", ["x", "x:", ":1x3", "x:1x3,2x3", "x:0x3", "x:1,2,3,4", "x:1x-3"])
def test_shapes_that_cannot_be_read(text: str) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        parse_shapes(text)


def test_names_may_hold_a_colon() -> None:
    assert parse_shapes("input:0:2x4") == ("input:0", [(2, 4)] * 3)


def test_data_comes_in_batches(folder: Path) -> None:
    batches = read_data("images.npy", trtkit.load("small.onnx"), batch=6)
    assert [batch["x"].shape[0] for batch in batches] == [6, 6, 4]


def test_few_samples_are_a_small_batch_unless_the_batch_is_fixed(folder: Path) -> None:
    np.save("few.npy", np.zeros((3, 3, 8, 8), np.float32))
    assert [batch["x"].shape[0] for batch in read_data("few.npy", trtkit.load("small.onnx"))] == [3]
    proto = small_network()
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    assert [batch["x"].shape[0] for batch in read_data("few.npy", trtkit.load(proto))] == [2]
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    with pytest.raises(DataError, match="too few samples: 3, and 'small' takes batches of 4"):
        read_data("few.npy", trtkit.load(proto))


def test_data_that_does_not_fit(folder: Path) -> None:
    model = trtkit.load("small.onnx")
    np.savez("named.npz", z=np.zeros((2, 3)))
    np.save("empty.npy", np.zeros((0, 3, 8, 8), np.float32))
    np.save("objects.npy", np.array([{"a": 1}], dtype=object))
    np.savez("objects.npz", x=np.array([{"a": 1}], dtype=object))
    np.save("scalar.npy", np.float32(1))
    whole = (folder / "images.npz").read_bytes()
    (folder / "cut.npz").write_bytes(whole[: len(whole) // 2])
    for file, said in (
        ("named.npz", "'z'"), ("empty.npy", "at least one"), ("objects.npy", "plain arrays"),
        ("objects.npz", "plain arrays"), ("scalar.npy", "x is a single number"), ("cut.npz", "cut off"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=said):
            read_data(file, model)
