"""README is true: its Python runs, its commands run, its links and files exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from trtkit import cli

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    """Every line of the bash blocks as words, without its comment."""
    return [shlex.split(line, comments=True) for block in blocks("bash") for line in block.splitlines() if line.strip()]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the model.onnx and images.npy that README speaks of; the network is a small one."""
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["": 20]>
        model (float[n, 3, 224, 224] x) => (float[n, 4] y) {
            a = Conv<strides = [8, 8]>(x, w)
            b = BatchNormalization(a, scale, bias, mean, variance)
            c = Relu(b)
            d = GlobalAveragePool(c)
            y = Flatten(d)
        }""")
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(4, 3, 8, 8)), "scale": rng.uniform(0.5, 2, 4), "bias": rng.normal(size=4)}
    weights |= {"mean": rng.normal(size=4), "variance": rng.uniform(0.5, 2, 4)}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.float32(a), name) for name, a in weights.items())
    onnx.save(model, tmp_path / "model.onnx")
    np.save(tmp_path / "images.npy", rng.normal(size=(8, 3, 224, 224)).astype(np.float32))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_two_commands_come_first() -> None:
    first = blocks("bash")[0].splitlines()
    assert [line.split("#")[0].strip() for line in first] == ["python3 start.py", "python3 start.py test"]
    assert README.index("python3 start.py") < 200


def test_python_blocks_run(folder: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    (block,) = blocks("python")
    names: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), names)
    outputs = names["outputs"]
    assert isinstance(outputs, dict) and outputs["y"].shape == (8, 4)
    lines = [line for line in block.splitlines() if line.strip() and "import" not in line and "np.load" not in line]
    assert len(lines) == 8  # "in eight lines"


def test_trtkit_commands_run(folder: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    ours = [words for words in commands() if words[0] == "trtkit" and words[1] != "lab"]
    verbs = {"doctor", "optimize", "groups", "autocast", "quantize", "lint", "build", "compare", "bench"}
    assert {words[1] for words in ours} == verbs
    for words in ours:
        assert cli.main(words[1:]) == 0, words


def test_start_commands_are_known() -> None:
    for words in commands():
        if words[:2] == ["python3", "start.py"]:
            done = subprocess.run([sys.executable, ROOT / "start.py", *words[2:], "--help"], capture_output=True)
            assert done.returncode == 0, words


def test_every_command_is_one_of_ours() -> None:
    assert {words[0] for words in commands()} <= {"python3", "trtkit", "conda"}
    for words in commands():
        for word in words:
            if word.endswith((".py", ".yml")):
                assert (ROOT / word).is_file(), word


def test_links_and_extras_exist() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    for extra in re.findall(r"\.\[(\w+)\]", README):
        assert f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text(), extra


def test_listed_lessons_are_here() -> None:
    """A lesson that the table calls "here" is a notebook; one that is a notebook is not called "planned"."""
    rows = re.findall(r"^\| (\d\d)(?:–(\d\d))? ?[^|]*\|[^|]*\| (here|planned) \|$", README, re.MULTILINE)
    assert rows
    for first, last, state in rows:
        for number in range(int(first), int(last or first) + 1):
            found = list((ROOT / "notebooks").glob(f"{number:02d}_*.ipynb"))
            assert bool(found) == (state == "here"), f"lesson {number:02d} is {state}, and there is {found}"


def test_table_of_latencies_is_what_the_records_say() -> None:
    sys.path.insert(0, str(ROOT))
    from benchmarks import readme_table

    assert readme_table.table() in README


def test_table_of_engine_effects_is_what_the_records_say() -> None:
    sys.path.insert(0, str(ROOT))
    from benchmarks import engine_effects

    assert engine_effects.table() in (ROOT / "benchmarks" / "README.md").read_text()


def test_tables_of_quantisation_on_a_gpu_are_what_the_records_say() -> None:
    sys.path.insert(0, str(ROOT))
    from benchmarks import gpu_quant

    times, heaps = gpu_quant.tables().split("\n\n")
    text = (ROOT / "benchmarks" / "README.md").read_text()
    assert times in text
    assert heaps in text


def test_tables_of_quantisation_are_what_the_records_say() -> None:
    sys.path.insert(0, str(ROOT))
    from benchmarks import ptq

    assert ptq.tables() in (ROOT / "benchmarks" / "README.md").read_text()
