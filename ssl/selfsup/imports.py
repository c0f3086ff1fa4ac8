"""The project's files that a file imports, directly or through other files, found by parsing import statements.

Two things are derived from them: the dependencies in dvc.yaml, which tests/test_architecture.py compares with them, and
the digest of the code that wrote a checkpoint. An import inside a function counts like one at the top. Modules in
`DECIDES_NOTHING`, those of the packages in it and their imports do not count.
"""

import ast
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

PACKAGE = Path(__file__).parent
DECIDES_NOTHING = {
    # values reach DVC and the resume checksum as parameters
    "selfsup.params",
    "selfsup.blocks",
    "selfsup.config",
    # what a method declares lies in its own file
    "selfsup.about",
    "selfsup.needs",
    # lines for a reader, and the log
    "selfsup.logs",
    # lists and deletes checkpoints; no run reads it
    "selfsup.training.resume",
    # runs are recorded outside the stage's outputs
    "selfsup.tracking",
    # kNN readings during training are only displayed: a change of how they are taken must not retrain
    "selfsup.training.probe",
    # these only find modules, and list files
    "selfsup.kinds",
    "selfsup.imports",
}


@functools.cache
def imports(source: str) -> frozenset[str]:
    """All modules that a source imports, wherever it does: `from a.b import c` gives `a.b` and `a.b.c`.

    An `import_module` of an f-string gives its text, such as `selfsup.methods.{name}`. Raises `ValueError` for imports
    that cannot be read off the source.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"from {'.' * node.level}{node.module or ''}: imports are absolute here")
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            name = ast.unparse(node.args[0])
            if not re.fullmatch(r"f?(['\"])\w[\w.]*(\.\{\w+\})?\1", name):
                raise ValueError(
                    f"{ast.unparse(node)}: the imported module cannot be read off; name the package and folder"
                )
            found.add(name.removeprefix("f").strip("'\""))
    return frozenset(found)


def files_of(module: str, beside: Path, choices: Mapping[str, Sequence[str]], package: Path = PACKAGE) -> list[Path]:
    """The project's files that an import of `module` runs, none for other modules.

    `choices` are the modules of a folder of the package that `{...}` stands for, all of them where a folder has none.
    Outside the package, a module may lie `beside` the file that imports it, as the stages' do.
    """
    if not module.startswith("selfsup."):
        inside = beside.is_relative_to(package)
        return [path for path in [beside / f"{module}.py"] if path.exists() and not inside]
    place = module.removeprefix("selfsup.").replace(".", "/")
    if "{" in place:
        folder = package / place.rpartition("/")[0]
        names = choices.get(folder.name) or sorted(path.stem for path in folder.iterdir() if path.stem[0] not in "_.")
        places = [folder / "__init__.py", *(each for name in names for each in _places(folder / name))]
        return list(filter(Path.exists, places))
    return list(filter(Path.exists, _places(package / place)))


def _places(module: Path) -> tuple[Path, Path]:
    """The files of which one is the module."""
    return module.with_suffix(".py"), module / "__init__.py"


def _decides_nothing(module: str) -> bool:
    """Whether the module, or a package that it is of, is in `DECIDES_NOTHING`."""
    return any(module == name or module.startswith(f"{name}.") for name in DECIDES_NOTHING)


def closure(starts: Iterable[Path], choices: Mapping[str, Sequence[str]], package: Path = PACKAGE) -> set[Path]:
    """The files that run when `starts` run, themselves included."""
    found: set[Path] = set()
    waiting = list(starts)
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            modules = {module for module in imports(path.read_text()) if not _decides_nothing(module)}
            waiting += [file for module in modules for file in files_of(module, path.parent, choices, package)]
    return found
