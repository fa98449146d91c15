"""Import rules between the parts of vidqa, checked on the syntax tree of every module.

errors records config common <- media encoders cache prompts tables <- model generate training <- pipeline <- cli
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "vidqa"
SHARED = {"errors", "records", "config", "common", "import_path"}
STAGES = {"media", "encoders", "cache", "prompts", "tables"}
HEADS = {"model", "conversion", "generate", "training"}
LAYERS = [SHARED, STAGES, HEADS, {"pipeline"}, {"cli"}]
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}

#: Heavy package -> the modules (or folders) that may import it.
PLACES: dict[str, tuple[str, ...]] = {
    "torch": ("vidqa.model", "vidqa.conversion", "vidqa.generate", "vidqa.training"),
    "transformers": ("vidqa.model", "vidqa.conversion", "vidqa.generate", "vidqa.training"),
    "peft": ("vidqa.model", "vidqa.conversion", "vidqa.generate", "vidqa.training"),
    "accelerate": ("vidqa.model", "vidqa.conversion", "vidqa.generate", "vidqa.training"),
    "onnxruntime": ("vidqa.encoders.onnx_session", "vidqa.model.onnx.export"),
    "onnx": ("vidqa.model.onnx.export",),
    "onnxscript": ("vidqa.model.onnx.export",),
    "decord": ("vidqa.media.backends.decord",),
    "av": (
        "vidqa.media.backends.gop_reader",
        "vidqa.media.backends.pyav",
        "vidqa.media.frame_index",
        "vidqa.media.color_matrix",
        "vidqa.media.pixels",
        "vidqa.media.container",
        "vidqa.media.synthetic",
    ),
    "polars": ("vidqa.tables", "vidqa.training"),  # training: its tables of rejects, samples in Parquet
    "click": ("vidqa.cli",),
}
#: Never at the top of an `__init__.py`: every import of the package would load it.
HEAVY = {*PLACES, "numpy", "PIL", "safetensors", "tokenizers", "pydantic"} - {"click"}

MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


TREES = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in MODULES.items()}


def imports(module: str, *, top_only: bool = False) -> Iterator[tuple[str, str]]:
    """Yield (dotted name, `file:line`) of every import; `from a import b` counts as `a.b` because b may be a module.

    Args:
        module: dotted name of the module to read.
        top_only: skip imports inside functions and classes.
    """
    waiting: list[ast.AST] = TREES[module].body[::-1]
    while waiting:
        node = waiting.pop()
        where = f"{MODULES[module].relative_to(PACKAGE.parent)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            yield from ((alias.name, where) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{where}: relative import; write the full module name"
            yield from ((f"{node.module}.{alias.name}", where) for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting.extend(node.orelse)
        elif not top_only:
            for block in ("body", "handlers", "cases", "orelse", "finalbody"):  # imports are statements
                waiting.extend(getattr(node, block, []))


def part_of(module: str) -> str | None:
    """Return the part of vidqa that holds a module: `vidqa.media.probe` -> `media`; None for the package itself."""
    pieces = module.split(".")
    return pieces[1] if len(pieces) > 1 and pieces[1] in LEVEL else None


def test_every_module_belongs_to_a_layer() -> None:
    assert len(MODULES) > 20
    unknown = [m for m in MODULES if m not in ("vidqa", "vidqa.__main__") and part_of(m) is None]
    assert not unknown, f"not in any layer: {unknown}"


def test_imports_point_one_way() -> None:
    wrong = []
    for module in MODULES:
        mine = part_of(module)
        for name, where in imports(module):
            other = part_of(name) if name.startswith("vidqa.") else None
            if mine is None or other is None or other == mine:
                continue
            if LEVEL[other] > LEVEL[mine] or LEVEL[other] == LEVEL[mine] == LEVEL["media"]:
                wrong.append(f"{where}: {mine} must not import {name}")
    assert not wrong, "\n".join(wrong)


def test_heavy_packages_are_imported_in_few_places() -> None:
    wrong = []
    for module in MODULES:
        for name, where in imports(module):
            allowed = PLACES.get(name.split(".")[0])
            if allowed and not any(module == one or module.startswith(f"{one}.") for one in allowed):
                wrong.append(f"{where}: {name} may be imported in {', '.join(allowed)} only")
    assert not wrong, "\n".join(wrong)


def test_packages_import_nothing_heavy() -> None:
    packages = [module for module, path in MODULES.items() if path.name == "__init__.py"]
    wrong = [
        f"{where}: {name} at the top of a package"
        for module in packages
        for name, where in imports(module, top_only=True)
        if name.split(".")[0] in HEAVY
    ]
    assert not wrong, "\n".join(wrong)


def test_the_bundle_module_does_not_import_torch() -> None:
    names = {name.split(".")[0] for name, _ in imports("vidqa.model.bundle.bundle", top_only=True)}
    assert not {"torch", "transformers"} & names


def test_sizes_are_reported() -> None:
    """Large modules and functions are a warning: a hint to look for a seam, not a reason to split at any price."""
    for module, tree in TREES.items():
        n_lines = len(MODULES[module].read_text(encoding="utf-8").splitlines())
        if n_lines > 300:
            warnings.warn(f"{module}: {n_lines} lines", stacklevel=1)
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > 60:
                warnings.warn(f"{module}.{node.name}: {lines} lines", stacklevel=1)
            if any(ast.unparse(decorator).startswith("triton.jit") for decorator in node.decorator_list):
                continue  # a kernel takes addresses and sizes as single parameters
            named = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            n_named = len(named) - (named[:1] in (["self"], ["cls"]))
            if n_named > 8:
                warnings.warn(f"{module}.{node.name}: {n_named} parameters", stacklevel=1)


def test_no_placeholders_and_no_prints() -> None:
    for root in (PACKAGE, PACKAGE.parent / "tools"):
        for path in root.rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            for word in ("NotImplementedError", "TODO", "FIXME"):
                assert word not in text, f"{path}: {word}"
    for module, tree in TREES.items():
        calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
        printed = [n.lineno for n in calls if isinstance(n.func, ast.Name) and n.func.id == "print"]
        assert not printed, f"{MODULES[module]}:{printed}: print"


def test_public_names() -> None:
    """Lazy exports, `__all__` and what a type checker sees are the same, and no package hides an export."""
    import vidqa

    (typed,) = (n for n in TREES["vidqa"].body if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test))
    seen = {
        (alias.name, node.module) for node in typed.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert seen == {(name, f"vidqa.{module}") for name, module in vidqa._EXPORTS.items()}
    assert set(vidqa.__all__) == {"__version__", *vidqa._EXPORTS}
    assert not set(vidqa.__all__) & {path.stem for path in PACKAGE.iterdir()}
    assert all(getattr(vidqa, name).__doc__ for name in vidqa._EXPORTS)
