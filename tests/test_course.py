"""The course's photographs and networks: what the lessons rest on."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from trtkit.course import nets, notebook, paths, photos
from trtkit.course.checks import NotSolved
from trtkit.course.checks import lesson00 as checks
from trtkit.course.notebook_guard import images
from trtkit.course.pictures import lesson00 as pictures
from trtkit.errors import DataError, MissingError

PHOTOS = photos.photos()


def test_every_photo_has_its_card(repository: Path) -> None:
    card = (repository / "datasets/photos/README.md").read_text()
    for name in PHOTOS:
        assert f"| {name} |" in card
    files = {path.name for path in (repository / "datasets/photos").iterdir()} - {"README.md"}
    assert files == {f"{name}.png" for name in PHOTOS}


def test_the_cards_name_the_weights_they_describe(repository: Path) -> None:
    digest = hashlib.sha256((repository / "datasets/mobilenet_v2/model.safetensors").read_bytes()).hexdigest()
    assert digest == nets.WEIGHTS_SHA256
    assert digest in (repository / "datasets/mobilenet_v2/README.md").read_text()


@pytest.mark.parametrize("name", PHOTOS)
def test_preprocess_is_torchvisions(name: str) -> None:
    models = pytest.importorskip("torchvision.models")
    transform = models.MobileNet_V2_Weights.IMAGENET1K_V1.transforms()
    expected = transform(Image.fromarray(PHOTOS[name]))[None].numpy()
    assert np.abs(photos.preprocess(PHOTOS[name]) - expected).max() < 1e-6


@pytest.mark.parametrize("shape", [(300, 300), (225, 700), (700, 225), (256, 256), (100, 90), (301, 333)])
def test_preprocess_is_torchvisions_at_odd_sizes(shape: tuple[int, int]) -> None:
    models = pytest.importorskip("torchvision.models")
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    expected = models.MobileNet_V2_Weights.IMAGENET1K_V1.transforms()(Image.fromarray(image))[None].numpy()
    assert np.abs(photos.preprocess(image) - expected).max() < 1e-6


NO_IMAGES = [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]


@pytest.mark.parametrize("bad", NO_IMAGES)
def test_preprocess_refuses_what_is_no_image(bad: np.ndarray) -> None:
    with pytest.raises(DataError, match="uint8 array, got"):
        photos.preprocess(bad)


def test_read_image_refuses_a_broken_file(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    with pytest.raises(DataError, match="cannot be read as an image"):
        photos.read_image(tmp_path / "x.png")
    with pytest.raises(DataError, match="cannot be read as an image"):
        photos.read_image(tmp_path / "missing.png")


def test_read_image_refuses_a_huge_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (20, 20)).save(tmp_path / "big.png")
    monkeypatch.setattr(photos, "MAX_PIXELS", 399)
    with pytest.raises(DataError, match="20 x 20 pixels"):
        photos.read_image(tmp_path / "big.png")


def test_views_come_from_their_seed() -> None:
    first, again, other = photos.views(4, seed=1), photos.views(4, seed=1), photos.views(4, seed=2)
    assert first.dtype == np.float32 and first.shape == (4, 3, 224, 224)
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert np.array_equal(photos.views(2, seed=1), first[:2])
    with pytest.raises(DataError, match="at least 1"):
        photos.views(0)


def test_top_sorts_and_checks_the_shape() -> None:
    guesses = photos.top(np.array([[1.0, 3.0, 2.0]], np.float32), k=2, names=["a", "b", "c"])
    assert [guess.label for guess in guesses] == ["b", "c"]
    assert guesses[0].probability == pytest.approx(np.exp(3) / np.exp([1, 2, 3]).sum())
    with pytest.raises(DataError, match="one image"):
        photos.top(np.zeros((2, 3), np.float32), names=["a", "b", "c"])


def test_mobilenet_knows_the_cat_and_the_coffee() -> None:
    torch = pytest.importorskip("torch")
    net = nets.mobilenet_v2()
    with torch.no_grad():
        answers = {n: photos.top(net(torch.from_numpy(photos.preprocess(PHOTOS[n]))).numpy(), 1)[0] for n in PHOTOS}
    for name in ("cat", "coffee", "camera"):
        assert answers[name].label in photos.TRUTH[name]
        assert answers[name].probability > 0.7
    assert answers["raccoon"].label == "badger"  # ImageNet's 1000 classes have no raccoon


def test_mobilenet_refuses_damaged_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    (tmp_path / "datasets/photos").mkdir(parents=True)
    (tmp_path / "datasets/mobilenet_v2").mkdir()
    monkeypatch.setenv(paths.HOME_VARIABLE, str(tmp_path))
    with pytest.raises(DataError, match="is missing"):
        nets.mobilenet_v2()
    (tmp_path / "datasets" / nets.WEIGHTS).write_bytes(b"half")
    with pytest.raises(DataError, match="damaged"):
        nets.mobilenet_v2()


def test_resnet50_is_seeded_and_its_batch_norms_do_something() -> None:
    torch = pytest.importorskip("torch")
    before = torch.get_rng_state()
    net, same = nets.resnet50(seed=3), nets.resnet50(seed=3)
    assert torch.equal(before, torch.get_rng_state())  # the reader's own random state is left alone
    x = torch.from_numpy(photos.views(2, seed=5))
    with torch.no_grad():
        y = net(x)
    assert torch.equal(y, same(x).detach())
    assert 0.01 < float(y.std()) < 100 and bool(torch.isfinite(y).all())
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert not torch.allclose(module.running_var, torch.ones_like(module.running_var))
            assert not torch.allclose(module.weight, torch.ones_like(module.weight))


def test_missing_torch_is_said_clearly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(MissingError, match="pip install torch"):
        nets.mobilenet_v2()


def test_root_says_how_to_find_the_course(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(paths.HOME_VARIABLE, str(tmp_path))
    with pytest.raises(DataError, match="TRTKIT_HOME"):
        paths.root()
    monkeypatch.delenv(paths.HOME_VARIABLE)
    monkeypatch.setattr(paths, "__file__", str(tmp_path / "trtkit/course/paths.py"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="Clone the repository"):
        paths.root()


# The checks of the exercises: every usual mistake gets its own hint, and the right answer passes.


class Fusion:
    """As much of a FusionMap as the check looks at."""

    groups: ClassVar = {0: ("Conv", "Relu"), 1: ("Conv", "Relu"), 2: ("MaxPool",), 3: ("Conv", "Add", "Relu")}


def fold(weight: Any, gamma: Any, beta: Any, mean: Any, var: Any, eps: float) -> Any:
    factor = gamma / np.sqrt(var + eps)
    return weight * factor[:, None, None, None], beta - factor * mean


def fold_forgets_mean(weight: Any, gamma: Any, beta: Any, mean: Any, var: Any, eps: float) -> Any:
    return fold(weight, gamma, beta, 0 * mean, var, eps)


def fold_forgets_root(weight: Any, gamma: Any, beta: Any, mean: Any, var: Any, eps: float) -> Any:
    return fold(weight, gamma, beta, mean, var**2, eps)


def patterns(fusion: Any) -> Counter[str]:
    return Counter("+".join(ops) for ops in fusion.groups.values() if len(ops) > 1)


RIGHT = [
    (checks.check_scale, (lambda x: np.abs(x).max() / 127,)),
    (checks.check_overall, (lambda share, factor: 1 / (1 - share + share / factor),)),
    (checks.check_fold, (fold,)),
    (checks.check_patterns, (patterns, Fusion)),
]
WRONG = [
    (checks.check_scale, (lambda x: None,), "returned nothing yet"),
    (checks.check_scale, (lambda x: "big",), "one number"),
    (checks.check_scale, (lambda x: -0.1,), "positive"),
    (checks.check_scale, (lambda x: x.max() / 127,), "negative"),
    (checks.check_scale, (lambda x: np.abs(x).max() / 64,), "wider than they need"),
    (checks.check_overall, (lambda share, factor: None,), "returned nothing yet"),
    (checks.check_overall, (lambda share, factor: share * factor,), "10 ms"),
    (checks.check_scale, (lambda x: float("nan"),), "finite"),
    (checks.check_overall, (lambda *a: float("nan"),), "finite"),
    (checks.check_fold, (lambda *a: None,), "two arrays"),
    (checks.check_fold, (lambda w, g, *a: (w * np.nan, g),), "in the weight"),
    (checks.check_fold, (lambda w, g, *a: (w[0], g),), "output channel"),
    (checks.check_fold, (fold_forgets_mean,), "in the bias"),
    (checks.check_fold, (fold_forgets_root,), "in the weight"),
    (checks.check_patterns, (lambda fusion: None, Fusion), "Counter"),
    (checks.check_patterns, (lambda fusion: {"Conv+Relu": 1}, Fusion), "Not quite"),
    (checks.check_patterns, (lambda fusion: Counter(fusion.groups.values()), Fusion), "makes a name of one"),
    (checks.check_patterns, (lambda fusion: {"Conv+Relu": None}, Fusion), "returns a Counter"),
    (checks.check_patterns, (lambda f: Counter("+".join(o) for o in f.groups.values()), Fusion), "not a fusion"),
]


@pytest.mark.parametrize(("check", "answer"), RIGHT, ids=[check.__name__ for check, _ in RIGHT])
def test_check_accepts_the_right_answer(check: Any, answer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    check(*answer)
    printed = capsys.readouterr().out
    assert "[figure: " in printed and "Right" in printed


@pytest.mark.parametrize(("check", "answer", "hint"), WRONG, ids=[f"{c.__name__}-{hint}" for c, _, hint in WRONG])
def test_check_gives_a_hint(check: Any, answer: Any, hint: str) -> None:
    with pytest.raises(NotSolved, match=hint):
        check(*answer)


def test_every_figure_needs_alt_text() -> None:
    with pytest.raises(DataError, match="alt text"):
        notebook.figure(pictures.bars({"a": 1.0}, "ms"), alt=" ")
    shown = notebook.figure(pictures.bars({"a": 1.0}, "ms"), alt='One "bar" <wide>.')
    assert images(shown._repr_html_()) == ['One "bar" <wide>.']


def test_show_source_shows_the_real_thing() -> None:
    shown = notebook.show_source(photos.preprocess)
    assert "def preprocess" in repr(shown) and ">>>" not in repr(shown)
    assert "trtkit/course/photos.py" in shown._repr_html_()
    assert repr(notebook.show_source(notebook.Rich)).startswith("class Rich")


def test_show_part_shows_what_cannot_be_imported_everywhere() -> None:
    shown = notebook.show_part("trtkit.engine.overlap", "Overlap._start")
    assert repr(shown).startswith("def _start(self") and "trtkit/engine/overlap.py" in shown._repr_html_()
    assert repr(notebook.show_part("trtkit.engine.loaded", "_Scratch.turn")).startswith("@contextmanager")
    assert ">>>" not in repr(notebook.show_part("trtkit.engine.pool", "Pool"))
    for module, name in (("trtkit.engine.nowhere", "f"), ("trtkit.engine.pool", "Pool.nothing")):
        with pytest.raises(DataError):
            notebook.show_part(module, name)
