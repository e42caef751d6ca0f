"""Which cells of a notebook have to run for some of them: what those read, and what that was made of."""

from __future__ import annotations

import ast
import symtable
from collections.abc import Collection
from typing import Any


def needed(cells: list[Any], wanted: Collection[int]) -> set[int]:
    """The code cells among which `wanted` can run without the others, by number; read backwards from the last.

    A cell is needed if a name that is read later is assigned in it, or what it stands for is changed there by an
    assignment to a part or a method called for its effect.

    >>> from nbformat.v4 import new_code_cell as code
    >>> sources = ["import os", "a = 1", "b = [a]", "b.append(2)", "c = os.sep", "print(b)", "b = 0"]
    >>> sorted(needed([code(source) for source in sources], [5]))
    [1, 2, 3, 5]
    """
    found, names = set[int](), set[str]()
    for number in reversed(range(len(cells))):
        cell = cells[number]
        if cell.cell_type != "code":
            continue
        tree = ast.parse(cell.source)
        if number in wanted or _changed(tree) & names:
            found.add(number)
            names = (names - _assigned(tree)) | _read(symtable.symtable(cell.source, f"cell {number}", "exec"))
    return found


def _changed(tree: ast.Module) -> set[str]:
    """Names that a cell may assign, or whose objects it may change."""
    names = _assigned(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute | ast.Subscript) and not isinstance(node.ctx, ast.Load):
            names |= _base(node)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            names |= _base(node.value) if isinstance(node.value.func, ast.Attribute) else set()
    return names


def _assigned(tree: ast.Module) -> set[str]:
    """Names that a cell gives a new value whatever happens."""
    names = set[str]()
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            inside = [each for target in targets for each in ast.walk(target)]
            names |= {each.id for each in inside if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    return names


def _read(table: symtable.SymbolTable) -> set[str]:
    """Names that a cell reads from outside its functions, or they do."""
    top = table.get_type() == "module"
    names = {s.get_name() for s in table.get_symbols() if s.is_referenced() and (top or s.is_global())}
    return names.union(*(_read(inner) for inner in table.get_children()))


def _base(node: ast.expr) -> set[str]:
    """The name at the left end of `name.part[place].method()`."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return {node.id} if isinstance(node, ast.Name) else set()
