"""The shape of the tree: who imports whom, how long files are, and what an import may do."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "sgl_kernels"
MAX_LINES = 400

# package -> what it may import of sgl_kernels; "" is the package's top level
ALLOWED = {
    "core": {"core"},
    "ops": {"core", "ops"},
    "kernels": {"kernels"},
    "backends": {"core", "ops", "kernels", "backends"},
    "tools": {"", "core", "ops", "kernels", "tools"},  # kernels: doctor asks the loader why it could not
    "testing": {"", "core", "ops", "tools", "testing"},
    "integrations": {"core", "ops", "integrations", "tools"},
    "runtime": {"core", "integrations", "runtime", "ops", "tools"},
    "demo": {"", "core", "ops", "integrations", "tools", "demo"},
    "cli": {"", "core", "ops", "tools", "testing", "integrations", "runtime", "cli", "kernels", "demo"},
}


def _files(*suffixes: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    names = listed.stdout.splitlines() if listed.returncode == 0 else [str(p) for p in ROOT.rglob("*")]
    return [ROOT / n for n in names if n.endswith(suffixes) and (ROOT / n).is_file()]


def _imported(path: Path, typed: bool = True) -> Iterator[tuple[str, str]]:
    """(module, name) of all a file imports, inside functions too; name '' for `import module`.

    Without `typed`, what only a type checker sees is left out.
    """
    above = path.relative_to(ROOT).parent.parts
    pending: list[ast.AST] = [ast.parse(path.read_text())]
    while pending:
        node = pending.pop()
        if not typed and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            pending += node.orelse
            continue
        pending += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            yield from ((a.name, "") for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = above[: len(above) - node.level + 1] if node.level else ()
            module = ".".join((*base, *filter(None, [node.module])))
            yield from ((module, a.name) for a in node.names)


def _imports(path: Path) -> set[str]:
    """The sgl_kernels sub-packages a file imports."""
    found = set()
    for module, name in _imported(path):
        parts = f"{module}.{name}".rstrip(".").split(".")
        if parts[0] == "sgl_kernels":
            found.add(parts[1] if len(parts) > 1 and (PACKAGE / parts[1]).is_dir() else "")
    return found


def _sources() -> list[Path]:
    return [p for p in _files(".py") if PACKAGE in p.parents and p.parent != PACKAGE]


@pytest.mark.parametrize("path", _sources(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    package = path.relative_to(PACKAGE).parts[0]
    assert package in ALLOWED, f"{package} is a new sub-package: say in ALLOWED what it may import"
    extra = _imports(path) - ALLOWED[package]
    assert not extra, f"{path.relative_to(ROOT)} imports {sorted(extra)}"


def _run_time_imports(path: Path) -> Iterator[str]:
    """The modules that a file imports when it runs."""
    for module, name in _imported(path, typed=False):
        yield f"{module}.{name}" if name and _file_of(f"{module}.{name}") else module


def _file_of(module: str) -> Path | None:
    path = ROOT / Path(*module.split("."))
    found = (p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file())
    return next(found, None)


def test_no_import_goes_in_a_circle_not_even_a_lazy_one():
    files = [p for p in _files(".py") if PACKAGE in p.parents]
    graph = {path: {_file_of(m) for m in _run_time_imports(path)} - {None, path} for path in files}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" imports ".join(str(p.relative_to(ROOT)) for p in reversed(error.args[1])))


def test_no_module_takes_a_private_name_out_of_another():
    """A module called _x belongs to its folder, and its public names to whoever imports it; a name _y to its module."""
    found = [
        f"{path.name}: {module}.{name}"
        for path in _files(".py")
        if PACKAGE in path.parents
        for module, name in _imported(path)
        if module.startswith("sgl_kernels") and name.startswith("_") and not name.startswith("__")
        and not _file_of(f"{module}.{name}")
    ]  # fmt: skip
    assert found == [
        "__init__.py: sgl_kernels._problem"
    ]  # why torch cannot be used, asked before anything is imported


def test_the_package_imports_nothing_of_the_checkout_around_it():
    outside = ("benchmarks", "tests", "examples")
    found = {p.name: m for p in _files(".py") if PACKAGE in p.parents for m in _run_time_imports(p)
             if m.split(".")[0] in outside}  # fmt: skip
    assert not found


def _words(path: Path) -> Iterator[tuple[int, str]]:
    """The text constants of a file that are no docstrings."""
    tree = ast.parse(path.read_text())
    prose = {
        id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node.lineno, node.value


def test_core_names_no_backend_and_no_op():
    """Outside names/, which holds the words and does nothing with them."""
    from sgl_kernels.core.device import PLATFORMS
    from sgl_kernels.core.names.backends import ALIASES, CANONICAL
    from sgl_kernels.core.names.ops import OP_GROUPS, OPS
    from sgl_kernels.core.registry import registry

    names = {*CANONICAL, *ALIASES, *registry.backends(), *OPS, *OP_GROUPS} - {*PLATFORMS, "torch"}
    core = PACKAGE / "core"
    found = [
        f"{path.relative_to(ROOT)}:{line}: {word!r}"
        for path in _files(".py")
        if core in path.parents and core / "names" not in path.parents
        for line, word in _words(path)
        if word in names
    ]
    assert not found


def test_no_file_is_longer_than_400_lines():
    long = {
        str(p.relative_to(ROOT)): n
        for p in _files(".py", ".cpp", ".h", ".inl")
        if (n := len(p.read_text().splitlines())) > MAX_LINES
    }
    assert not long


def test_every_module_says_what_it_is_in_its_first_line():
    silent = []
    for path in _files(".py"):
        if PACKAGE in path.parents and path.read_text().strip():
            doc = ast.get_docstring(ast.parse(path.read_text()))
            if not doc or len(doc.splitlines()[0]) > 120:
                silent.append(str(path.relative_to(ROOT)))
    assert not silent


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


VENDORS = (
    "flash_attn flash_attn_interface sageattention flashinfer aiter mlx triton xformers torch_npu diffusers"
)


def test_importing_the_package_imports_no_vendor_and_reads_no_environment():
    _python(
        "import sys, os, torch\n"
        "before = set(sys.modules)\n"
        "class Watched(dict):\n"
        "    reads = []\n"
        "    def get(self, key, default=None):\n"
        "        Watched.reads.append(key); return super().get(key, default)\n"
        "    def __getitem__(self, key):\n"
        "        Watched.reads.append(key); return super().__getitem__(key)\n"
        "os.environ = Watched(os.environ)\n"
        "import sgl_kernels\n"
        "reads = [k for k in Watched.reads if k.startswith('SGL')]\n"
        "assert not reads, reads\n"
        f"loaded = (set(sys.modules) - before) & set('{VENDORS}'.split())\n"
        "assert not loaded, loaded\n"
        "assert not any(m.startswith('sgl_kernels.backends.') for m in sys.modules)\n"
        "from sgl_kernels.core import dispatch\n"
        "assert dispatch._default is None and not dispatch.registry._discovered\n"
    )


def test_one_module_reads_the_environment():
    words = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
    found = set()
    for path in (p for p in _files(".py") if PACKAGE in p.parents):
        for node in ast.walk(ast.parse(path.read_text())):
            of_os = (
                isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os"
            )
            from_os = isinstance(node, ast.ImportFrom) and node.module in ("os", "posix")
            if (of_os and node.attr in words) or (from_os and words & {a.name for a in node.names}):
                found.add(path.relative_to(PACKAGE).as_posix())
    assert found == {"core/environment.py"}
    compiled = [p.name for p in _files(".cpp", ".h") if "csrc" in p.parts and "getenv" in p.read_text()]
    assert not compiled, "settings tell the library what it must know (core/cpu_level.py)"


def test_one_place_chooses_by_instruction_set():
    """A family offers its tables to a Choice; only that asks which features are in force."""
    asks = {
        p.relative_to(ROOT / "csrc").as_posix()
        for p in _files(".cpp", ".h")
        if "csrc" in p.parts and any(w in p.read_text() for w in ("features_in_force", "__builtin_cpu_"))
    }
    assert asks == {"cpu/isa.h", "cpu/isa.cpp"}


def test_importing_every_backend_imports_no_vendor():
    _python(
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import sgl_kernels\n"
        "from sgl_kernels.core.registry import registry\n"
        "registry.backends()\n"
        f"loaded = (set(sys.modules) - before) & set('{VENDORS}'.split())\n"
        "assert not loaded, loaded\n"
    )


def test_the_package_adds_few_modules_to_torch():
    # time is measured by `sgl-kernels bench`; what costs time is what is imported
    out = _python(
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import sgl_kernels\n"
        "new = {m.split('.')[0] for m in set(sys.modules) - before} - {'sgl_kernels'}\n"
        "print(sorted(m for m in new if m in {'pydantic', 'yaml', 'rich', 'typer', 'matplotlib', 'numpy'}))"
    )
    assert out.strip() == "[]"


def test_nothing_names_a_machine_or_how_the_project_is_made():
    import re

    leak = re.compile(r"(^|[^.\w])/(work|farm|root)/")
    found = []
    for path in _files(
        ".py", ".md", ".cpp", ".h", ".toml", ".yaml", ".mk", "Makefile", ".json", ".txt", ".log"
    ):
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if leak.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}")
    assert not found
