"""Netron, the viewer that everybody uses for ONNX files, on a model in memory and from a notebook."""

from __future__ import annotations

import html
import logging
import tempfile
import weakref
from pathlib import Path
from types import TracebackType
from typing import Any

from trtkit.errors import MissingError, extra
from trtkit.model import Model, save

HEIGHT = 480  # pixels of the frame in a notebook


class Viewer:
    """A running netron server for one model; shown in a notebook as a frame and a link.

    It serves a copy in a temporary folder on this machine alone. `stop`, the end of a `with` block, the end of the
    process or the loss of the last reference to it end the server and remove the copy.
    """

    def __init__(self, model: Model) -> None:
        server = _server()
        self._folder = tempfile.TemporaryDirectory(prefix="trtkit-netron-")
        path = save(model, Path(self._folder.name) / f"{_file_name(model.name)}.onnx")
        self._address = _quietly(server, str(path))
        self.url = f"http://{self._address[0]}:{self._address[1]}"
        self.name = model.name
        self._end = weakref.finalize(self, _stop, server, self._address, self._folder)

    def stop(self) -> None:
        """End the server and remove the copy; a second call does nothing."""
        self._end()

    @property
    def running(self) -> bool:
        return self._end.alive

    def __enter__(self) -> Viewer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"netron shows {self.name!r} at {self.url}" if self.running else f"netron of {self.name!r}, stopped"

    def _repr_html_(self) -> str:
        if not self.running:
            return html.escape(repr(self))
        title = html.escape(f"netron: {self.name}", quote=True)
        link = f'<a href="{self.url}" target="_blank">{self.url}</a>'
        return f'<iframe src="{self.url}" title="{title}" width="100%" height="{HEIGHT}"></iframe><br>{link}'


def netron(model: Model) -> Viewer:
    """Open a model in netron: in a notebook the last expression of a cell shows it, elsewhere open its `url`.

    Raises:
        MissingError: the netron package is not installed.
    """
    return Viewer(model)


def _server() -> Any:
    try:
        import netron as package
    except ImportError as error:
        raise MissingError(f"Showing a model in netron needs the netron package: {extra('course')}") from error
    return package


def _quietly(server: Any, path: str) -> tuple[str, int]:
    """Start the server. Where nobody logs, netron would make the whole process log to the screen from then on."""
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)
    try:
        address: tuple[str, int] = server.start(path, address=("localhost", 0), browse=False)
        return address
    finally:
        root.removeHandler(handler)


def _stop(server: Any, address: tuple[str, int], folder: tempfile.TemporaryDirectory[str]) -> None:
    server.stop(address)
    folder.cleanup()


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)[:60] or "model"
