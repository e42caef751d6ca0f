"""Where the course's files are: the folder that holds ``datasets/``, ``notebooks/`` and ``benchmarks/``."""

from __future__ import annotations

import os
from pathlib import Path

from trtkit.errors import DataError

HOME_VARIABLE = "TRTKIT_HOME"


def root() -> Path:
    """The course's folder.

    Looked for in the environment variable ``TRTKIT_HOME``, then in the folders above the package, then in the folders
    above the current one. Raises DataError when none of them holds ``datasets/``.

    >>> (root() / "datasets").is_dir()
    True
    """
    chosen = os.environ.get(HOME_VARIABLE)
    if chosen:
        if not _is_root(Path(chosen)):
            raise DataError(f"{HOME_VARIABLE} is {chosen!r}, but there is no folder 'datasets/photos' in it. "
                            "Set it to the folder you cloned trtkit into.")  # fmt: skip
        return Path(chosen).resolve()
    here = Path.cwd()
    for folder in (*Path(__file__).resolve().parents, here, *here.parents):
        if _is_root(folder):
            return folder
    raise DataError("The course's files (datasets/, notebooks/) are not beside the package that was imported. "
                    f"Clone the repository and set {HOME_VARIABLE} to its folder.")  # fmt: skip


def dataset(name: str) -> Path:
    """The path of one file or folder under ``datasets/``; raises DataError when it is not there.

    >>> dataset("photos/cat.png").name
    'cat.png'
    """
    path = root() / "datasets" / name
    if not path.exists():
        raise DataError(f"datasets/{name} is missing. Restore it with 'git checkout -- datasets' in the trtkit folder.")
    return path


def _is_root(folder: Path) -> bool:
    return (folder / "datasets" / "photos").is_dir()
