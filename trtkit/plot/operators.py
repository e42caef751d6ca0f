"""One colour for each family of operators, the same in every picture, and short names that fit into a box."""

from __future__ import annotations

from trtkit.plot.style import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, YELLOW

FAMILIES = (  # colour, what it stands for, operators
    (BLUE, "convolution", {"Conv", "ConvTranspose"}),
    (PURPLE, "matrix product", {"Gemm", "MatMul", "Einsum", "Attention"}),
    (ORANGE, "activation", {"Relu", "Clip", "Gelu", "Erf", "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "Softmax",
     "LeakyRelu", "Elu", "PRelu", "Softplus", "Mish", "Swish"}),
    (GREEN, "normalisation, reduction, pooling", {"BatchNormalization", "LayerNormalization", "InstanceNormalization",
     "ReduceMean", "ReduceSum", "ReduceMax", "GlobalAveragePool", "MaxPool", "AveragePool"}),
    (YELLOW, "quantise, cast", {"QuantizeLinear", "DequantizeLinear", "Cast", "CastLike"}),
    (SKY, "element by element", {"Add", "Sub", "Mul", "Div", "Sqrt", "Pow", "Exp", "Neg", "Where", "Min", "Max",
     "Abs"}),
)  # fmt: skip
OTHER = ("#C9CDD2", "moves or reads data, shapes")
_SHORT = {"Normalization": "Norm", "Average": "Avg", "GlobalAvgPool": "GlobalPool", "Elements": "Elem", "Linear": ""}


def colour(op: str) -> str:
    """The colour of an operator's family.

    >>> colour("Conv") == BLUE, colour("MyOwnOperator") == OTHER[0]
    (True, True)
    """
    return next((colour for colour, _, ops in FAMILIES if op in ops), OTHER[0])


def ink(ground: str) -> str:
    """The colour in which text can be read on `ground`."""
    return "white" if ground in (BLUE, VERMILION) else "black"


def families(colours: set[str]) -> list[tuple[str, str]]:
    """Colour and name of those families whose colour is among `colours`, for a legend."""
    known = [(colour, what) for colour, what, _ in FAMILIES] + [OTHER]
    return [(colour, what) for colour, what in known if colour in colours]


def abbreviated(op: str, length: int = 12) -> str:
    """An operator's name in at most `length` characters.

    >>> abbreviated("GlobalAveragePool"), abbreviated("MyVeryOwnOperator")
    ('GlobalPool', 'MyVeryOwnOp…')
    """
    for long, short in _SHORT.items():
        op = op.replace(long, short)
    return clipped(op, length)


def clipped(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
