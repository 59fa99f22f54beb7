"""Holds the package to its layers, and each library to the one place that knows it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import cdcca_cli

PACKAGE = Path(cdcca_cli.__file__).parent
LAYERS = {
    "__main__": 6,
    "main": 5,
    "commands": 4,
    "loop": 3,
    "acceptance": 3,
    "uplink": 2,
    "teachers": 2,
    "distillation": 2,
    "downlink": 2,
    "export": 2,
    "scoring": 2,
    "models": 1,
    "datasets": 1,
    "payloads": 1,
    "formats": 1,
    "inspection": 3,
    "doctor": 3,
    "reporting": 3,
    "serving": 1,
    "numerics": 0,
    "families": 0,
    "packages": 0,
    "options": 3,
    "config": 2,
    "progress": 0,
    "skipped": 0,
    "streams": 0,
    "remote": 0,
    "byte_streams": 0,
    "files": 0,
    "memory": 0,
    "distributed": 0,
    "errors": 0,
    "settings": 0,
    "text": 0,
    "assets": 0,
    "__init__": 0,
}
# Within one layer: who may import whom.
WITHIN = {
    ("export", "uplink"),
    ("models", "formats"),
    ("datasets", "formats"),
    ("payloads", "formats"),
    ("payloads", "models"),
    ("models", "payloads"),
}
WITHIN |= {("progress", "streams"), ("streams", "errors"), ("text", "errors"), ("text", "files")}
WITHIN |= {("skipped", "streams"), ("skipped", "errors"), ("skipped", "text")}
WITHIN |= {
    ("streams", "files"),
    ("streams", "byte_streams"),
    ("byte_streams", "errors"),
    ("files", "errors"),
    ("settings", "errors"),
    ("numerics", "errors"),
}
WITHIN |= {("streams", "remote"), ("settings", "remote"), ("remote", "files"), ("remote", "errors")}
WITHIN |= {("loop", "acceptance"), ("doctor", "inspection"), ("distributed", "errors")}
WITHIN |= {("serving", "formats")}
WITHIN |= {("reporting", "inspection"), ("loop", "reporting")}
WITHIN |= {("distillation", "teachers"), ("teachers", "config")}
# A library, and the files that may import it.
ONLY_IN = {
    "transformers": ("models/", "families/"),
    "pycocoevalcap": ("scoring/captions/",),
}
UNSAFE = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}
# The parts that may spell options; the others name a setting in backticks (`SettingError`).
SPELLS = {"commands", "options", "main"}
FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every module that is imported, anywhere in the file, as a dotted name, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports name the package"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno


def spelled(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every option in a string that is no docstring, with its line."""
    docstrings = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            option = re.search(r"(?<![\w-])--[a-z][\w-]*", node.value)
            if option is not None and id(node) not in docstrings:
                yield option[0], node.lineno


def faults(path: Path, source: str) -> list[str]:
    """What is wrong with a file of the package."""
    found = []
    here = part_of(path)
    tree = ast.parse(source)
    for module, line in imports(tree):
        place = f"{name_of(path)}:{line}"
        top, *rest = module.split(".")
        if top in ONLY_IN and not name_of(path).startswith(ONLY_IN[top]):
            found.append(f"{place}: only {' and '.join(ONLY_IN[top])} knows {top}")
        if top in UNSAFE:
            found.append(f"{place}: {top} runs what it reads")
        if top == "sys" and rest and rest[0] in ("stdin", "stdout") and here != "streams":
            found.append(f"{place}: only streams touches sys.{rest[0]}")
        if top != "cdcca_cli" or not rest or rest[0] == "__version__":
            continue
        there = rest[0]
        if there not in LAYERS:
            found.append(f"{place}: {there} is in no layer")
        elif there != here and (here, there) not in WITHIN and LAYERS[there] >= LAYERS[here]:
            found.append(f"{place}: {here} may not import {there}")
    if here not in SPELLS:
        found += [f"{name_of(path)}:{line}: spells {text}" for text, line in spelled(tree)]
    for node in ast.walk(tree):
        place = f"{name_of(path)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in ("print", "input", "eval", "exec"):
                found.append(f"{place}: no {node.func.id}()")
            if node.func.id in ("exit", "quit"):
                found.append(f"{place}: only main exits")
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            called = f"{node.value.id}.{node.attr}"
            if called in ("sys.stdin", "sys.stdout", "sys.__stdout__") and here != "streams":
                found.append(f"{place}: only streams touches {called}")
            if called in ("sys.exit", "os._exit") and here not in ("main", "__main__"):
                found.append(f"{place}: only main exits")
            if called in ("torch.load", "torch.save"):
                found.append(f"{place}: {called} is a pickle")
        if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "trust_remote_code"):
            allowed = isinstance(node.value, ast.Constant) and node.value.value is False
            if not allowed:
                found.append(f"{place}: {node.arg} runs what it reads")
    return found


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_file_keeps_to_its_layer(path: Path) -> None:
    assert faults(path, path.read_text()) == []


def test_every_part_of_the_package_is_in_a_layer() -> None:
    assert {part_of(path) for path in FILES} <= LAYERS.keys()


def test_no_file_has_a_name_that_says_nothing() -> None:
    empty = {"utils", "util", "helpers", "base", "core", "misc", "common"}
    assert [name_of(path) for path in FILES if path.stem in empty] == []


@pytest.mark.parametrize(
    ("place", "source", "words"),
    [
        ("uplink/a.py", "from cdcca_cli.downlink import nf4", "uplink may not import downlink"),
        ("formats/a.py", "from cdcca_cli import datasets", "formats may not import datasets"),
        ("datasets/a.py", "from cdcca_cli.models import qformer", "datasets may not import models"),
        ("streams.py", "from cdcca_cli import progress", "streams may not import progress"),
        ("errors.py", "import cdcca_cli.streams", "errors may not import streams"),
        ("scoring/a.py", "def f():\n  import cdcca_cli.main", "scoring may not import main"),
        ("formats/a.py", "from cdcca_cli.elsewhere import x", "in no layer"),
        ("commands/a.py", "from transformers import AutoModel", "only models/ and families/"),
        ("scoring/vqa.py", "from pycocoevalcap.bleu.bleu import Bleu", "scoring/captions/"),
        ("main.py", "import sys\nsys.stdout.flush()", "only streams"),
        ("uplink/a.py", "from sys import stdin", "only streams"),
        ("uplink/a.py", "print(1)", "no print()"),
        ("uplink/a.py", "import sys\nsys.exit(1)", "only main exits"),
        ("models/a.py", "import torch\ntorch.load('x')", "pickle"),
        ("models/a.py", "import pickle", "runs what it reads"),
        ("models/a.py", "f(trust_remote_code=True)", "runs what it reads"),
        ("loop/a.py", "def f(x):\n  return f'give --force {x}'", "spells --force"),
        ("config.py", "x = '--set'", "spells --set"),
    ],
)
def test_the_check_finds_each_fault(place: str, source: str, words: str) -> None:
    found = faults(PACKAGE / place, source)
    assert len(found) == 1 and words in found[0]


@pytest.mark.parametrize(
    ("place", "source"),
    [
        ("models/a.py", "from cdcca_cli.formats import digest\nimport transformers"),
        ("loop/a.py", "from cdcca_cli import uplink, downlink"),
        ("uplink/a.py", "from cdcca_cli.uplink import answers\nmodel.eval()"),
        ("models/a.py", "f(trust_remote_code=False)"),
        ("loop/a.py", '"""As --force."""\nx = \'`force` -- or not\'\ny = \'a---b\''),
        ("commands/a.py", "x = '--set'"),
    ],
)
def test_the_check_allows_what_is_allowed(place: str, source: str) -> None:
    assert faults(PACKAGE / place, source) == []
