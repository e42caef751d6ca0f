"""Composing: several models in one graph, one model in several parts, one backbone with many heads, classical models.

| module | what it does |
|---|---|
| `merge` | several models in one graph, outputs of one feeding inputs of another |
| `split` | one model cut at tensors into parts that run one after the other |
| `trunk` | what several models compute alike, computed once |
| `multi_head` | one backbone with many heads |
| `sklearn` | a scikit-learn estimator appended to a network |
"""
