"""The layout of the project: which folder may import which, what is installed, and beside what."""

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from recording import record_trace

ROOT = Path(__file__).parents[1]
FOLDERS = ("kernels", "tracer", "analyze")
HEAVY = {"cupy", "torch", "transformers", "llama_cpp", "onnx"}
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


@cache
def imports(path: Path) -> list[tuple[str, bool]]:
    """(module as `tracer.cli.app` or `numpy`, whether it is imported as soon as the file is)."""
    return list(_imports(ast.parse(path.read_text("utf-8")), path.relative_to(ROOT).parent.parts, True))


def _imports(node: ast.AST, package: tuple[str, ...], at_once: bool) -> Iterator[tuple[str, bool]]:
    for child in ast.iter_child_nodes(node):
        inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        if isinstance(child, ast.Import):
            yield from ((alias.name, at_once) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = package[: len(package) - child.level + 1] if child.level else ()
            module = (*base, *(child.module or "").split("."))
            for alias in child.names:
                yield ".".join(part for part in (*module, alias.name) if part), at_once
        yield from _imports(child, package, at_once and not inside and not for_types)


def offenders(folder: str, *forbidden: str, but: str = "\0") -> list[str]:
    """`file imports module` for the files of `folder`, those under `but` left out."""
    return [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in SOURCES
        if path.is_relative_to(ROOT / folder) and not path.is_relative_to(ROOT / but)
        for module, _ in imports(path)
        if any(module == name or module.startswith(f"{name}.") for name in forbidden)
    ]


def test_the_check_sees_imports() -> None:
    found = dict(imports(ROOT / "tracer" / "engines" / "cpu.py"))
    assert {"numpy", "tracer.graph.Graph", "tracer.errors.UserError"} <= set(found)
    assert ("analyze.cause.Injection", False) in imports(ROOT / "tracer" / "cli" / "record.py")


def test_kernels_know_neither_model_nor_file() -> None:
    assert offenders("kernels", "tracer", "analyze") == []


def test_only_the_command_line_knows_the_analysis() -> None:
    assert offenders("tracer", "analyze", but="tracer/cli") == []


def test_nobody_but_the_command_line_knows_the_command_line() -> None:
    assert offenders("tracer", "tracer.cli", but="tracer/cli") == []


def test_the_analysis_knows_no_engine() -> None:
    assert offenders("analyze", "tracer.cli", "tracer.engines", "tracer.engine") == []


def test_imports_inside_are_relative() -> None:
    for folder in FOLDERS:
        assert offenders(folder, "tensortrace") == []


def test_heavy_packages_are_imported_where_they_are_used() -> None:
    found = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in SOURCES
        for module, at_once in imports(path)
        if at_once and module.split(".")[0] in HEAVY
    ]
    assert found == []


def test_the_folders_are_namespace_packages() -> None:
    """A regular `kernels` or `tracer` at the root would hide the PyPI packages of these names."""
    assert [path for path in SOURCES if path.name == "__init__.py"] == []


def run(code: str, *arguments: object, **environment: str) -> str:
    """What a fresh Python prints, started at the root of the project."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_reading_and_judging_traces_is_light(tiny: Path, tmp_path: Path) -> None:
    record_trace(tiny, tmp_path / "a.h5", n_new=2)
    code = """
import sys
from importlib import import_module
from pathlib import Path
from tensortrace.tracer.trace import Trace

with Trace(sys.argv[1]) as trace:
    assert trace.complete and not list(trace.damaged())
for path in Path("analyze").rglob("*.py"):
    import_module("tensortrace." + ".".join(path.with_suffix("").parts))
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""
    assert not HEAVY & set(run(code, tmp_path / "a.h5").split())


@pytest.mark.cxx
@pytest.mark.slow
def test_the_wheel_holds_what_the_tree_holds(tmp_path: Path) -> None:
    copy = tmp_path / "tree"  # building leaves files behind
    copy.mkdir()
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    shutil.copytree(ROOT / "examples" / "engine", copy / "examples" / "engine")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(copy)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("tensortrace-*.whl")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    tree = {path.relative_to(copy).as_posix() for folder in FOLDERS for path in (copy / folder).rglob("*")}
    compiled = {name for name in inside if name.endswith((".so", ".pyd"))}
    modules = {name.partition(".")[0] for name in compiled}
    assert modules == {"tensortrace/kernels/_native", "tensortrace/tracer/_rows"}, "C code did not compile"
    header = "tensortrace/include/tensortrace.h"
    assert inside == {header, *compiled, *(f"tensortrace/{name}" for name in tree if (copy / name).is_file())}


@pytest.mark.slow
def test_hugging_faces_kernels_still_imports(tmp_path: Path) -> None:
    """Also from the root of the project, where our folder of the same name comes first."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(tmp_path), "kernels"]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    code = """
import kernels, tensortrace.kernels.rope as rope
print(kernels.__file__, callable(kernels.get_kernel), rope.__file__, sep="\\n")
"""
    theirs, works, ours = run(code, PYTHONPATH=str(tmp_path)).split()
    assert Path(theirs).is_relative_to(tmp_path)
    assert works == "True"
    assert Path(ours) == ROOT / "kernels" / "rope.py"
