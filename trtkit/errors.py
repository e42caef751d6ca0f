"""The errors trtkit raises. Every message names the thing, the cause and the way out."""


class TrtkitError(Exception):
    """Base of all errors that trtkit raises on purpose; catch this one to catch them all."""


class ModelError(TrtkitError):
    """A model, or what was fed to it, is not what it should be: file, operator, input name, shape or dtype."""


class DataError(TrtkitError):
    """Calibration or evaluation data is missing, empty, of the wrong shape or not finite."""


class BuildError(TrtkitError):
    """TensorRT refused to parse a model or to build an engine; carries TensorRT's own words and the ONNX node.

    `stage` says where it stopped: "parse", "target", "profile", "build" or "crash"; empty before TensorRT was asked.
    """

    def __init__(self, message: str, stage: str = "") -> None:
        super().__init__(message)
        self.stage = stage


class VerificationError(TrtkitError):
    """An engine (or the graph it is built from) does not compute what its reference computes."""


class EngineError(TrtkitError):
    """An engine cannot be loaded, opened or run: other version, damaged file, no GPU, wrong device."""


class MissingError(TrtkitError):
    """An optional package, TensorRT or a GPU is needed for this and is not there; says how to get it."""


class RecordError(TrtkitError):
    """A recorded measurement is absent or damaged."""


def extra(name: str) -> str:
    """How to install one of the extras of pyproject.toml: trtkit comes as a checkout, not from a package index."""
    return f"pip install -e '.[{name}]' in trtkit's folder"
