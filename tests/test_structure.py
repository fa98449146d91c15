"""The package stays navigable: no import cycles, small folders, unambiguous names, and a map in every package."""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
try:
    from test_layers import MODULES, TREES, imports
finally:
    sys.path.pop(0)

PACKAGES = {module: TREES[module] for module, path in MODULES.items() if path.name == "__init__.py"}
MOST_MODULES = 15
#: Numbers of names that a package may export; `vidqa` itself exports the public API.
EXPORTS = range(1, 6)
#: Packages of interchangeable modules, which callers look up by name.
NO_EXPORTS = {"vidqa.cli.commands", "vidqa.conversion.formats"}


def imported_modules(module: str) -> Iterator[str]:
    """Yield the modules of vidqa that a module imports at its top level."""
    for name, _ in imports(module, top_only=True):
        if name in MODULES:
            yield name
        elif (parent := name.rpartition(".")[0]) in MODULES:
            yield parent


def test_no_import_cycles() -> None:
    graph = {module: {name for name in imported_modules(module) if name != module} for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(f"import cycle: {' -> '.join(error.args[1])}") from None


def test_folders_stay_small() -> None:
    folders: dict[Path, int] = defaultdict(int)
    for path in MODULES.values():
        folders[path.parent] += path.name != "__init__.py"
    assert {str(folder): n for folder, n in folders.items() if n > MOST_MODULES} == {}


def test_file_names_are_unique() -> None:
    """Only a command may share its name with the pipeline module that it calls."""
    stems: dict[str, list[str]] = defaultdict(list)
    for module, path in MODULES.items():
        if path.stem not in ("__init__", "__main__"):
            stems[path.stem].append(module)
    for stem, modules in stems.items():
        if set(modules) == {f"vidqa.cli.commands.{stem}", f"vidqa.pipeline.{stem}"}:
            stems[stem] = modules[:1]
    assert {stem: modules for stem, modules in stems.items() if len(modules) > 1} == {}


def test_public_class_names_are_unique() -> None:
    classes: dict[str, list[str]] = defaultdict(list)
    for module, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                classes[node.name].append(module)
    assert {name: modules for name, modules in classes.items() if len(modules) > 1} == {}


def test_packages_have_a_map_and_export_their_main_names() -> None:
    problems = []
    for package, tree in PACKAGES.items():
        if len((ast.get_docstring(tree) or "").splitlines()) < 3:
            problems.append(f"{package}: the docstring needs a map of at least three lines")
        exported = [
            ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        ]
        n_names = len(exported[0]) if exported else 0
        if n_names not in EXPORTS and package not in {"vidqa", *NO_EXPORTS}:
            problems.append(f"{package}: exports {n_names} names in __all__, not {EXPORTS[0]} to {EXPORTS[-1]}")
    assert not problems, "\n".join(problems)


def test_exported_names_exist() -> None:
    """Exports are resolved by name, so a lazy `__getattr__` cannot hide a typo."""
    from importlib import import_module

    for package in PACKAGES:
        module = import_module(package)
        for name in getattr(module, "__all__", []):
            assert hasattr(module, name), f"{package}.{name}"
