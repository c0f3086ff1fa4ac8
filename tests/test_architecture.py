"""What the code promises about itself: imports go one way, functions stay short, DVC knows what a stage depends on."""

import ast
import os
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ruamel.yaml import YAML

from selfsup.evaluation import protocols
from selfsup.imports import DECIDES_NOTHING, closure, files_of, imports

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "ssl" / "selfsup"
STAGES = ROOT / "stages"
SOURCES = sorted([*PACKAGE.rglob("*.py"), *STAGES.glob("*.py")])
METHODS = sorted(path.stem for path in (PACKAGE / "methods").glob("*.py") if not path.stem.startswith("_"))
PROTOCOLS = sorted(
    path.stem for path in (PACKAGE / "evaluation/protocols").glob("*.py") if not path.stem.startswith("_")
)
CHOICES = {"methods": METHODS, "protocols": PROTOCOLS}  # what `import_module` chooses from by a name in params.yaml
INSIDE = [name for name in PROTOCOLS if protocols.find(name).inside]
OF_STAGE = {"evaluate": {*PROTOCOLS} - {*INSIDE}, "examine": INSIDE}  # protocols that a stage runs; others know all
GROUND = {
    *(
        "about",
        "blocks",
        "config",
        "digests",
        "draw",
        "epochs",
        "errors",
        "files",
        "imports",
        "kinds",
        "logs",
        "needs",
        "params",
    ),
}
MAY_IMPORT = {  # room of the package: the other rooms it may import
    "__init__": set(),
    "logs": set(),
    "errors": {"logs"},
    "files": set(),
    "imports": set(),
    "draw": set(),
    "epochs": set(),
    "config": {"errors"},
    "about": {"config"},
    "blocks": {"errors", "config", "kinds"},
    "params": {"errors", "blocks", "config", "epochs"},
    "needs": {"blocks", "config", "errors", "files", "params"},
    "digests": {"params"},  # for types only
    "nn": {"errors", "params"},
    "kinds": {"errors"},
    "views": {"blocks", "draw", "kinds", "params"},
    "nets": {"blocks", "errors", "kinds", "params", "nn"},
    "task": {"about", "draw", "params", "nn", "nets"},  # the last for types only
    "data": GROUND,
    "features": GROUND | {"data", "nn", "views"},
    "families": GROUND | {"task", "nn", "views"},
    "methods": GROUND | {"task", "families", "nn", "views", "nets"},
    "processes": GROUND | {"nn"},
    "tracking": GROUND | {"processes"},
    "evaluation": GROUND | {"data", "features"},
    "training": GROUND
    | {"task", "methods", "nn", "nets", "views", "data", "features", "processes", "tracking", "evaluation"},
    "report": GROUND | {"task", "nn", "views", "nets", "data", "features", "methods", "evaluation", "training"},
    "compare": GROUND
    | {"task", "nets", "data", "features", "methods", "evaluation", "report", "training", "processes"},
}
# Code that a stage's script imports and that DVC need not know of, because it decides nothing there.
WAIVED = {
    "check": ("ssl/selfsup/",),  # its out says that params.yaml was valid, nothing else
    # the script's other half trains
    "pixels": tuple(f"ssl/selfsup/{name}" for name in ("training/", "methods/", "epochs.py", "task.py", "families/")),
    # the network comes from models/pretrained
    "extract": (
        "ssl/selfsup/task.py",
        *(f"ssl/selfsup/training/{name}.py" for name in ("build", "checkpoint", "chunks", "curves", "health", "loop")),
        *(f"ssl/selfsup/training/{name}.py" for name in ("monitors", "optimizers", "schedule", "session", "stage")),
    ),
    "baseline": ("ssl/selfsup/families/",),  # not of the supervised method
    "examine": (
        "ssl/selfsup/training/build.py",
        "ssl/selfsup/training/schedule.py",
    ),  # as in extract
}


def area(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def modules(path: Path) -> frozenset[str]:
    return imports(path.read_text())


def files(module: str) -> list[Path]:
    """The files that an import of `module` runs, by a stage or the package."""
    return files_of(module, STAGES, CHOICES)


def test_imports_are_found():
    source = "import a.b\ndef f():\n    from c import d\n    importlib.import_module(f'selfsup.methods.{name}')\n"
    assert imports(source) == {"a.b", "c", "c.d", "selfsup.methods.{name}"}
    assert {path.stem for path in files("selfsup.methods.{name}")} == {"__init__", *METHODS}
    assert files("selfsup.params") == [PACKAGE / "params.py"]
    assert files("pretrain") == [STAGES / "pretrain.py"]
    assert files("json") == files_of("queue", PACKAGE / "nn", CHOICES) == []


@pytest.mark.parametrize(
    "source",
    ["from . import a", "import_module(name)", "import_module(f'{a}.b')", "import_module('a' + b)", "__import__(a)"],
)
def test_imports_that_cannot_be_read_off_are_refused(source):
    with pytest.raises(ValueError, match=r"imports are absolute|read off"):
        imports(source)


def test_the_source_root_is_no_package():
    assert not (ROOT / "ssl" / "__init__.py").exists(), "it would shadow the standard library's ssl"


def test_the_ci_script_can_be_run():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


@pytest.mark.parametrize("path", [path for path in SOURCES if PACKAGE in path.parents], ids=lambda path: path.name)
def test_imports_go_one_way(path):
    own, found = area(path), modules(path)
    assert own in MAY_IMPORT, f"say in MAY_IMPORT what {own} may import"
    for module in found:
        for file in files(module):
            assert file.is_relative_to(PACKAGE), f"{path}: the package imports no stage"
            other = area(file)
            assert other == own or other in MAY_IMPORT[own], f"{path}: {own} must not import {other}"
    assert "stages" not in {module.partition(".")[0] for module in found}


@pytest.mark.parametrize(("folder", "libraries"), [("nn", {"torch", "timm"}), ("views", {"torch"})])
def test_networks_and_views_need_torch_only(folder, libraries):
    for path in (PACKAGE / folder).glob("*.py"):
        outside = {module.partition(".")[0] for module in modules(path)} - sys.stdlib_module_names
        assert outside <= {"selfsup"} | libraries, path  # timm for its own kind of batch norm


def circles(graph: dict[str, set[str]]) -> list[str]:
    """The nodes that can be reached from themselves."""
    found = []
    for start in graph:
        seen: set[str] = set()
        waiting = list(graph[start])
        while waiting:
            node = waiting.pop()
            if node not in seen:
                seen.add(node)
                waiting += graph.get(node, set())
        found += [start] if start in seen else []
    return found


def test_no_file_imports_itself_by_way_of_others():
    graph = {
        str(path): {str(file) for module in modules(path) for file in files(module)} - {str(path)} for path in SOURCES
    }
    assert circles(graph) == []


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == ["b", "c"]


def test_methods_do_not_import_each_other():
    for path in (PACKAGE / "methods").glob("*.py"):
        others = {f"selfsup.methods.{name}" for name in METHODS if name != path.stem}
        assert not modules(path) & others, path


def test_one_file_knows_mlflow_and_one_knows_dvc():
    users = {tool: [] for tool in ("mlflow", "dvc")}
    for path in SOURCES:
        for tool in {module.partition(".")[0] for module in modules(path)} & set(users):
            users[tool].append(path.name)
    assert users == {"mlflow": ["store.py"], "dvc": ["by_dvc.py"]}


SUPERVISED = {"baselines.py", "check.py", "encoders.py"}  # a baseline that is a method
LOOP = sorted(path for path in (PACKAGE / "training").glob("*.py") if path.name not in SUPERVISED)


@pytest.mark.parametrize("path", LOOP, ids=lambda path: path.name)
def test_the_loop_knows_no_method(path):
    source = path.read_text()
    assert not re.findall(rf"\b({'|'.join(METHODS)})\b", source, re.IGNORECASE)
    tasks = {
        node.name
        for name in METHODS
        for node in ast.parse((PACKAGE / "methods" / f"{name}.py").read_text()).body
        if isinstance(node, ast.ClassDef)
    }
    assert tasks
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
            assert not {name.id for name in ast.walk(node.args[1]) if isinstance(name, ast.Name)} & tasks - {"Params"}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_does_not_spell_its_own_name(name):
    """Its file alone names it: parameters in errors are relative, and whoever builds the method adds the block."""
    tree = ast.parse((PACKAGE / "methods" / f"{name}.py").read_text())
    strings = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    assert not [text for text in strings if text == name or re.search(r"\bmethods\.\w", text)]


LONGEST = 60  # lines of a function


def long_functions(source: str) -> list[str]:
    """The functions of a source that have more than LONGEST lines, with their number."""
    found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lines = [(node.name, (node.end_lineno or 0) - node.lineno + 1) for node in found]
    return [f"{name}: {count} lines" for name, count in lines if count > LONGEST]


@pytest.mark.parametrize("folder", ["ssl", "stages", "benchmarks", "docs", "tests"])
def test_functions_are_short(folder):
    found = {
        path.relative_to(ROOT).as_posix(): long_functions(path.read_text()) for path in (ROOT / folder).rglob("*.py")
    }
    assert {path: names for path, names in found.items() if names} == {}


def test_long_functions_are_found():
    source = (
        "class A:\n    async def f(self):\n"
        + "        x = 1\n" * LONGEST
        + "def g():\n"
        + "    x = 1\n" * (LONGEST - 1)
    )
    assert long_functions(source) == ["f: 61 lines"]


def unsafe(source: str) -> list[str]:
    """Calls and imports that can run code hidden in a file that is only meant to be read."""
    found = sorted(imports(source) & {"pickle", "cPickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"})
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name, given = ast.unparse(node.func), {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        bad_torch = name in ("torch.load", "load_state") and given.get("weights_only") != "True"
        if bad_torch or given.get("allow_pickle", "False") != "False" or "unsafe" in given.get("typ", ""):
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_files_are_read_safely(path):
    assert unsafe(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=trusted)",
        "import pickle",
        "from joblib import load",
        "YAML(typ='unsafe')",
    ],
)
def test_unsafe_reading_is_found(source):
    assert unsafe(source)


def stages() -> dict[str, dict]:
    return YAML(typ="safe", pure=True).load(ROOT / "dvc.yaml")["stages"]


def covered(file: str, deps: list[str]) -> bool:
    """Whether a dependency is the file or a folder that holds it; `${...}` stands for any one choice."""
    patterns = [re.sub(r"\\\$\\\{[^}]*\\\}", "[a-z][^/]*", re.escape(dep)) for dep in deps]
    return any(re.fullmatch(rf"{pattern}(/.*)?", file) for pattern in patterns)


def test_coverage_by_dependencies():
    deps = ["a/b", "c/${item.name}.py", "d.py"]
    assert all(covered(file, deps) for file in ("a/b/c/d.py", "c/x.py", "d.py"))
    assert not any(covered(file, deps) for file in ("a/bc.py", "c/x/y.py", "e/d.py", "c/.py", "c/__init__.py"))


def stage(name: str) -> tuple[set[str], list[str]]:
    """The project's files that decide what a stage writes, and the files and folders that DVC knows it depends on."""
    entry = stages()[name]
    (script,) = re.findall(r"stages/\w+\.py", entry["cmd"])
    choices = CHOICES | {"protocols": sorted(OF_STAGE.get(name, PROTOCOLS))}
    used = {path.relative_to(ROOT).as_posix() for path in closure([ROOT / script], choices)}
    used = {file for file in used if not file.startswith(WAIVED.get(name, "none"))}
    return used, [dep for dep in entry["deps"] if isinstance(dep, str)]


@pytest.mark.parametrize("name", sorted(stages()))
def test_dvc_knows_what_a_stage_depends_on(name):
    used, deps = stage(name)
    chosen = {file for file in used if by_name(file, used)}
    missing = [file for file in sorted(used - chosen) if not covered(file, deps) and (ROOT / file).stat().st_size]
    assert not missing, f"dvc.yaml: stage {name} lacks deps: {', '.join(missing)}"
    if any(file.startswith("ssl/selfsup/methods/") for file in used) and name not in ("check", "pixels"):
        assert any(dep.startswith("ssl/selfsup/methods/") and "__init__" not in dep for dep in deps)
    idle = [dep for dep in deps if dep.startswith(("ssl", "stages")) and not any(covered(file, [dep]) for file in used)]
    assert name == "check" or not idle, f"dvc.yaml: stage {name} imports nothing of {', '.join(idle)}"
    for dep in deps:
        if dep.startswith(("ssl", "stages")) and "${" not in dep:
            assert (ROOT / dep).exists(), f"dvc.yaml: stage {name} depends on {dep}, which is not there"


@pytest.mark.parametrize("name", sorted(WAIVED))
def test_what_is_waived_is_imported(name):
    (script,) = re.findall(r"stages/\w+\.py", stages()[name]["cmd"])
    used = {path.relative_to(ROOT).as_posix() for path in closure([ROOT / script], CHOICES)}
    assert all(any(file.startswith(waived) for file in used) for waived in WAIVED[name])


def test_what_decides_nothing_is_there():
    assert all(files(module) for module in DECIDES_NOTHING)


@pytest.mark.parametrize("name", ["pretrain", "baseline"])
def test_dvc_trains_again_for_code_that_trains_alone(name):
    """Methods that cluster their own features learn from `encode`; no protocol and no page has a say."""
    _, deps = stage(name)
    assert covered("ssl/selfsup/features/encode.py", deps)
    judging = [path.relative_to(ROOT).as_posix() for path in (PACKAGE / "evaluation").rglob("*.py")]
    judging += [path.relative_to(ROOT).as_posix() for path in (PACKAGE / "report").iterdir()]
    assert len(judging) > 15 and not [file for file in judging if covered(file, deps)]


def by_name(file: str, used: set[str]) -> bool:
    """Whether a method or protocol is run only if a name in `params.yaml` says so."""
    folder, stem = Path(file).parent.name, Path(file).stem
    module = ".".join(Path(file).with_suffix("").parts[1:])
    return stem in CHOICES.get(folder, []) and not any(module in modules(ROOT / other) for other in used)


def locked() -> dict[str, str]:
    pins = re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in pins}


def undeclared(sources: list[Path], declared: list[str]) -> set[str]:
    """Third-party modules that are imported although no requirement in `declared` is of their distribution."""
    names = {canonicalize_name(Requirement(line).name) for line in declared}
    found = set()
    for node in [node for path in sources for node in ast.walk(ast.parse(path.read_text()))]:
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module).partition(".")[0])
    found -= sys.stdlib_module_names
    here = {path.stem for path in [*SOURCES, *(ROOT / "benchmarks").glob("*.py")]} | {"selfsup", "tests", "benchmarks"}
    of = packages_distributions()
    variants = {name.partition("-")[0]: [name] for name in names}  # faiss of faiss-cpu, which need not be installed
    providers = {one: of.get(one) or [one, *variants.get(one, [])] for one in found - here}
    return {one for one, own in providers.items() if not names & {canonicalize_name(name) for name in own}}


@pytest.mark.parametrize(
    ("folders", "extras"),
    [("ssl stages", ""), ("tests", "dev docs"), ("docs/hooks", "docs"), ("benchmarks", "bench")],
)
def test_what_is_imported_is_declared(folders, extras):
    """A package that only comes along with another one may be gone with that one's next version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"]]
    for extra in extras.split():
        declared += project["optional-dependencies"][extra]
    sources = [path for folder in folders.split() for path in (ROOT / folder).rglob("*.py")]
    assert undeclared(sources, declared) == set()


def test_undeclared_imports_are_found(tmp_path):
    (tmp_path / "a.py").write_text("import json, yaml, sklearn.svm, selfsup.draw\nfrom ruamel.yaml import YAML\n")
    assert undeclared([tmp_path / "a.py"], ["scikit_learn>=1"]) == {"yaml", "ruamel"}


def test_the_lock_holds_what_the_project_asks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = locked()
    extras = project["optional-dependencies"]
    for line in [*project["dependencies"], *extras["dev"], *extras["docs"]]:
        asked = Requirement(line)
        assert asked.specifier.contains(pins[canonicalize_name(asked.name)]), f"{line}: run `make lock`"


def test_the_lock_names_hashes_and_no_index():
    text = (ROOT / "requirements.lock").read_text()
    entries = re.split(r"^(?=[\w.-]+==)", text, flags=re.MULTILINE)[1:]
    assert len(entries) >= len(locked()) > 50
    assert all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in text
    assert "--index" not in text
