"""Rules that no single file can hold: what is imported, what ships, and how it is written."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pathspec
import pytest

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "esd_core"
NODES = ROOT / "nodes"
HOST = NODES / "host"

HOST_MODULES = {"comfy", "comfy_extras", "execution", "folder_paths", "nodes", "server"}
BANNED_MODULES = {
    *("subprocess", "pickle", "cPickle", "dill", "marshal", "shelve", "ctypes", "runpy"),
    *("socket", "ssl", "urllib", "urllib3", "http", "requests", "aiohttp", "httpx"),
}
# As the registry's scanner reads: in the whole text, comments and docstrings included.
BANNED_TEXT = {
    r"\beval\(": "a call of eval",
    r"\bexec\(": "a call of exec",
    r"\bsubprocess\b": "subprocess",
    r"\bos\.(environ|getenv|putenv|system|popen|exec|spawn)": "the environment, or a process",
    r"\bimport_module\b": "importlib.import_module",
    r"\b__import__\b": "__import__",
    r"\bpickle\.\w": "pickle",
    r"\btorch\.load\b": "torch.load",
    r"\.(connect|bind)\(": "what looks like a network call",
}
ALLOWED_TEXT = {
    # A launcher says in the environment which rank a process is. Of the command alone.
    "esd_core/cli/launch.py": {"the environment, or a process"},
}
LONGEST_FUNCTION = 60


def sources(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def shipped() -> list[Path]:
    """The Python files of the published archive: what .comfyignore leaves."""
    lines = (ROOT / ".comfyignore").read_text(encoding="ascii").splitlines()
    ignored = pathspec.GitIgnoreSpec.from_lines(lines)
    files = [*ROOT.glob("*.py"), *sources(CORE), *sources(NODES)]
    return [file for file in files if not ignored.match_file(file.relative_to(ROOT))]


def by_path(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


every_source = pytest.mark.parametrize("file", [*sources(CORE), *sources(NODES)], ids=by_path)
every_shipped = pytest.mark.parametrize("file", shipped(), ids=by_path)


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """(level, module) of every import in a file, wherever it stands; level 0 is absolute."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""


def absolute(file: Path) -> set[str]:
    """The top-level names of the modules that a file imports absolutely."""
    return {module.partition(".")[0] for level, module in imports(file) if level == 0}


@pytest.mark.parametrize("file", sources(CORE), ids=by_path)
def test_the_core_knows_no_host(file: Path) -> None:
    assert not absolute(file) & {*HOST_MODULES, "comfy_api"}


@pytest.mark.parametrize("file", sources(CORE), ids=by_path)
def test_the_core_imports_itself_relatively_and_nothing_above(file: Path) -> None:
    assert "esd_core" not in absolute(file), "ComfyUI loads it under another name"
    depth = len(file.relative_to(CORE).parts)
    assert all(level <= depth for level, _ in imports(file))


def test_only_the_host_folder_touches_the_host() -> None:
    files = [file for file in sources(NODES) if HOST not in file.parents]
    assert not {by_path(file) for file in files if absolute(file) & HOST_MODULES}
    assert not {by_path(file) for file in sources(NODES) if "esd_core" in absolute(file)}


@every_shipped
def test_a_shipped_file_has_nothing_that_the_registry_flags(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    found = {why for pattern, why in BANNED_TEXT.items() if re.search(pattern, text)}
    assert found == ALLOWED_TEXT.get(by_path(file), set())
    assert not absolute(file) & BANNED_MODULES


def test_the_archive_holds_the_code_and_no_tools() -> None:
    names = {by_path(file) for file in shipped()}
    assert {"esd_core/config/settings.py", "esd_core/config/concepts.py"} <= names
    assert not {name for name in names if name.startswith(("tests/", "esd_core/pocket/build"))}


def test_one_process_comes_by_nothing_of_several() -> None:
    """Only `training/ranks.py` has torch.distributed, and it is imported where ranks are made."""
    users = {by_path(f) for f in sources(CORE) if "distributed" in f.read_text(encoding="utf-8")}
    assert users == {"esd_core/training/ranks.py"}
    at_the_top = [
        by_path(file)
        for file in [*sources(CORE), *sources(NODES)]
        for node in ast.parse(file.read_bytes()).body
        if isinstance(node, ast.ImportFrom) and (node.module or "").endswith("ranks")
    ]
    assert not at_the_top


@every_source
def test_a_source_is_ascii(file: Path) -> None:
    assert file.read_bytes().isascii()


@every_source
def test_no_function_is_longer_than_a_screen(file: Path) -> None:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [n for n in ast.walk(ast.parse(file.read_bytes())) if isinstance(n, functions)]
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in nodes}
    assert not {name: lines for name, lines in lengths.items() if lines > LONGEST_FUNCTION}


def test_tests_are_no_package() -> None:
    """The root is one, for ComfyUI: pytest would take tests/ for its part and import it. The
    benchmarks are imported by a name of their own, and are not tests."""
    packages = list((ROOT / "tests").rglob("__init__.py"))
    assert packages == [ROOT / "tests" / "benchmarks" / "__init__.py"]
    assert not list((ROOT / "tests" / "benchmarks").glob("test_*"))


def test_an_install_keeps_the_repository_root_off_the_path(tmp_path: Path) -> None:
    """`nodes` is ComfyUI's own name: ours must not answer to it. See pyproject.toml."""
    code = (
        "import sys, esd_core, pathlib\n"
        "print(pathlib.Path(esd_core.__file__).resolve().parents[1])\n"
        "print(*{pathlib.Path(p).resolve() for p in sys.path}, sep='\\n')\n"
    )
    isolated = [sys.executable, "-I", "-c", code]
    result = subprocess.run(isolated, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    home, *path = result.stdout.splitlines()
    assert home == str(ROOT)
    assert str(ROOT) not in path
