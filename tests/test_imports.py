"""Imports point one way, those inside of functions too; read from the sources, nothing is imported."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "groupmix_sam"
# Each imports from those above it, and nothing beside it or below.
LAYERS = (
    {"errors"},
    {"devices", "files", "images", "masks", "memory", "prompts"},
    {"encoders", "visualize"},
    {"annotations", "hub", "preprocess"},
    {"weights"},
    {"sam"},
    {"inference"},
    {"distill", "live"},
    {"evaluate"},
    {"batch", "demo", "reproduce", "serve"},
    {"cli"},
    {"__main__"},
)
FILES = {
    ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): file
    for file in PACKAGE.rglob("*.py")
}


def imported(name):
    """Return the package's modules that a module imports; the package itself, which has the version, is left out."""
    file = FILES[name]
    inside = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
    targets = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = inside[: len(inside) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            targets += [f"{base}.{alias.name}" for alias in node.names]
    found = {target if target in FILES else target.rpartition(".")[0] for target in targets}
    return {target for target in found if target in FILES} - {PACKAGE.name}


def unit(name):
    return name.split(".")[1]


def test_every_file_has_its_layer():
    assert {unit(name) for name in FILES if name != PACKAGE.name} == set().union(*LAYERS)


@pytest.mark.parametrize("name", sorted(FILES.keys() - {PACKAGE.name}))
def test_imports_point_one_way(name):
    depth = next(i for i, layer in enumerate(LAYERS) if unit(name) in layer)
    allowed = set().union(*LAYERS[:depth], {unit(name)})
    assert {target for target in imported(name) if unit(target) not in allowed} == set()


def test_no_cycles():
    TopologicalSorter({name: imported(name) for name in FILES}).prepare()  # it raises CycleError, which names them


def test_no_name_hides_a_module():
    """`import groupmix_sam.a.b` and `from groupmix_sam.a import b` are one."""
    for name, file in FILES.items():
        if file.name == "__init__.py":
            nodes = [n for n in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(n, ast.ImportFrom)]
            names = {alias.asname or alias.name for node in nodes if node.module for alias in node.names}
            assert {hidden for hidden in names if f"{name}.{hidden}" in FILES} == set(), name
