"""What docstrings name is there: whoever renames code renames it in them, too."""

import ast
import re

from tests.test_imports import MODULES, name_of

TREES = {name_of(path): ast.parse(path.read_text()) for path in MODULES}
FOREIGN = {"AppError", "Sam2Processor", "torchrun"}
SECTION = re.compile(r"^(Args|Attributes):\n((?: {4}.*\n?|\n)+)", re.M)
ENTRY = re.compile(r"^ {4}([a-z_]\w*(?:, [a-z_]\w*)*): ", re.M)
BACKTICKED = re.compile(r"`([A-Za-z]{2}\w*(?:\.\w+)*)(?:\([^`]*\))?`", re.A)


def words(code: ast.AST) -> set[str]:
    """Every name of a piece of code, and every string that is one word."""
    found = set()
    for node in ast.walk(code):
        found |= {getattr(node, key, None) for key in ("id", "attr", "arg", "name", "value")}
    return {name for text in found if isinstance(text, str) for name in text.split(".")}


def documented_names(node: ast.AST, section: str) -> set[str]:
    """What may stand in a section of the docstring of a class or function."""
    if isinstance(node, ast.ClassDef) and section == "Args":
        node = next((n for n in node.body if getattr(n, "name", "") == "__init__"), node)
    if isinstance(node, ast.ClassDef):
        return words(node)
    return {n.arg for n in ast.walk(node.args) if isinstance(n, ast.arg)}


def test_arguments_and_attributes_in_docstrings_exist():
    wrong = [
        f"{module}.{node.name} has no {name}"
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        for section, entries in SECTION.findall(ast.get_docstring(node) or "")
        for line in ENTRY.findall(entries)
        for name in line.split(", ")
        if name not in documented_names(node, section)
    ]
    assert not wrong, "\n".join(wrong)


def test_names_in_backticks_exist():
    known = set().union(*map(words, TREES.values()), *(name.split(".") for name in TREES), FOREIGN)
    inside = {  # what may follow `module.`; a function's own names may not
        module: {name for n in tree.body for name in ([n.name] if hasattr(n, "name") else words(n))}
        for module, tree in TREES.items()
    }

    parameters = {
        module: {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
        for module, tree in TREES.items()
    }

    def is_known(parts: list[str], here: str) -> bool:
        if parts[0] in parameters[here]:  # `photo.size` is of an argument, not of the module
            return True
        for i in range(len(parts), 0, -1):
            end = "." + ".".join(parts[:i])
            if modules := [module for module in inside if f".{module}".endswith(end)]:
                return i == len(parts) or any(parts[i] in inside[module] for module in modules)
        return len(parts) > 1 or parts[0] in known  # `torch.x` and `result.json` are not ours

    wrong = [
        f"{module}, line {node.lineno}: {name}"
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        for name in BACKTICKED.findall(node.value)
        if not is_known(name.split("."), module)
    ]
    assert not wrong, "\n".join(wrong)
