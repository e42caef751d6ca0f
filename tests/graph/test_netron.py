"""The page that netron serves, fetched as a browser would; and what is left after it was stopped."""

from __future__ import annotations

import logging
import sys
import urllib.request
from pathlib import Path

import onnx
import pytest

from tests.passes.graphs import parse
from trtkit import graph
from trtkit.errors import MissingError
from trtkit.graph.netron import Viewer

MODEL = parse("a = Neg(x)  y = Relu(a)")


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return bytes(answer.read())


def test_the_page_and_the_model_are_served_until_it_is_stopped() -> None:
    pytest.importorskip("netron")
    with graph.netron(MODEL) as viewer:
        folder = Path(viewer._folder.name)
        assert viewer.running and viewer.url.startswith("http://localhost:") and folder.is_dir()
        page = fetch(viewer.url)
        assert b"netron" in page.lower()
        served = onnx.load_from_string(fetch(f"{viewer.url}/data/{next(folder.iterdir()).name}"))
        assert [node.op_type for node in served.graph.node] == ["Neg", "Relu"]
        assert f'src="{viewer.url}"' in viewer._repr_html_() and "title=" in viewer._repr_html_()
    assert not viewer.running and not folder.exists()
    assert "stopped" in repr(viewer) and "iframe" not in viewer._repr_html_()
    with pytest.raises(OSError):
        fetch(viewer.url)
    viewer.stop()  # again: nothing happens


def test_netron_does_not_change_the_logging_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("netron")
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    level = root.level
    graph.netron(MODEL).stop()
    assert root.handlers == [] and root.level == level


def test_two_models_at_once_and_a_lost_reference() -> None:
    pytest.importorskip("netron")
    with graph.netron(MODEL) as one:
        two: Viewer | None = graph.netron(MODEL)
        assert two is not None and one.url != two.url
        folder, url = Path(two._folder.name), two.url
        two = None
        assert not folder.exists()
        with pytest.raises(OSError):
            fetch(url)
        assert fetch(one.url)


def test_without_netron_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "netron", None)
    with pytest.raises(MissingError, match="netron"):
        graph.netron(MODEL)
