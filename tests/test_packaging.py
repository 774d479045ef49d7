"""What is shipped can be built: the sdist holds every source, and no build ends in an empty library without a word.

The whole way, with a real compiler into a bare environment, is `make sdist-check`: minutes.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NATIVE = {p.relative_to(ROOT).as_posix() for p in (ROOT / "csrc").rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def names(sdist):
    return {p.relative_to(sdist).as_posix() for p in sdist.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The sdist of this checkout, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    command = [
        sys.executable,
        "setup.py",
        "-q",
        "egg_info",
        "--egg-base",
        str(folder),
        "sdist",
        "-d",
        str(folder),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    (tree,) = (p for p in folder.iterdir() if (p / "setup.py").is_file())
    return tree


def build(tree: Path, compiler: str, **more: str) -> subprocess.CompletedProcess:
    hidden = ("CXXFLAGS", "LDFLAGS", "SGL_KERNELS_REQUIRE_EXTENSION", "SGL_KERNELS_CPU_LIBRARY")
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", "out", "--build-temp", "temp"]
    return subprocess.run(
        command, cwd=tree, capture_output=True, text=True, env={**environment, "CXX": compiler, **more}
    )


@pytest.fixture
def tree(sdist, tmp_path):
    """A copy of the unpacked sdist that a test may spoil."""
    return Path(shutil.copytree(sdist, tmp_path / "tree"))


def test_the_sdist_holds_what_a_build_needs_and_nothing_that_was_built(names):
    assert NATIVE and names >= NATIVE
    assert {"setup.py", "pyproject.toml", "make/sgl_kernels_build.py", "README.md", "LICENSE"} <= names
    package = {p.relative_to(ROOT).as_posix() for p in (ROOT / "sgl_kernels").rglob("*.py")}
    assert package <= names
    data = {f"sgl_kernels/data/{p.name}" for p in (ROOT / "sgl_kernels" / "data").iterdir()}
    assert data | {"sgl_kernels/py.typed", "sgl_kernels/configs/default.yaml"} <= names
    built = [n for n in names if n.endswith((".so", ".o", ".pyc", ".not-built.txt"))]
    assert not built and not any(n.startswith("tests/") for n in names)


def test_a_build_from_the_sdist_compiles_every_source_and_refuses_a_library_without_operations(
    tree, tmp_path
):
    log, stub = tmp_path / "log", tmp_path / "stub"
    # makes what it is asked for, empty, and writes down from what
    stub.write_text(
        f"#!{sys.executable}\nimport sys\nout = sys.argv[sys.argv.index('-o') + 1]\nopen(out, 'w').write('')\n"
        "if '-MF' in sys.argv: open(sys.argv[sys.argv.index('-MF') + 1], 'w').write('a: b')\n"
        f"if '-c' in sys.argv: open({str(log)!r}, 'a').write(sys.argv[sys.argv.index('-c') + 1] + '\\n')\n"
    )
    stub.chmod(0o755)
    done = build(tree, str(stub))
    assert done.returncode == 0, done.stderr
    compiled = {Path(line).relative_to(tree.resolve()).as_posix() for line in log.read_text().splitlines()}
    neon = "arm64" in os.uname().machine or "aarch64" in os.uname().machine
    foreign = re.compile(r"_(avx\w*|amx)\.cpp$" if neon else r"_neon\.cpp$")
    built = {n for n in NATIVE if n.endswith(".cpp") and not n.startswith("csrc/skeleton/")}
    assert compiled == {n for n in built if not foreign.search(n)}
    assert not list((tree / "out").rglob("_cpu*.so"))
    note = (tree / "out" / "sgl_kernels" / "_cpu.not-built.txt").read_text()
    assert "was built and cannot be used" in note and "_cpu was not built" in done.stderr


@pytest.mark.parametrize(
    "gone, said", [("csrc", "csrc/cpu"), ("csrc/cpu", "csrc/cpu"), ("csrc/python", "csrc/python")]
)
def test_a_tree_without_sources_is_an_error_and_no_empty_library(gone, said, tree):
    shutil.rmtree(tree / gone)
    # Without csrc/python the other library comes first, and may be missing for a reason of its own.
    done = build(tree, "/nonexistent/g++")
    assert done.returncode != 0, "an incomplete tree builds"
    assert "no C++ sources" in done.stderr and said in done.stderr and "incomplete" in done.stderr
    assert not list((tree / "out").rglob("*.so"))


def test_without_a_compiler_the_reason_and_the_cost_are_said_and_kept(tree):
    old = tree / "out" / "sgl_kernels" / "_cpu.abi3.so"
    old.parent.mkdir(parents=True)
    old.write_text("of an older build")
    done = build(tree, "/nonexistent/g++")
    assert done.returncode == 0 and not old.exists()
    assert "no C++ compiler: '/nonexistent/g++'" in done.stderr and "torch serves every call" in done.stderr
    assert "no C++ compiler" in (old.parent / "_cpu.not-built.txt").read_text()
    required = build(tree, "/nonexistent/g++", SGL_KERNELS_REQUIRE_EXTENSION="1")
    assert required.returncode != 0 and "_cpu was not built: no C++ compiler" in required.stderr


@pytest.mark.parametrize(
    "setuptools, said",
    [
        ("sys.modules['setuptools'] = None", "setuptools is not there"),
        ("sys.modules['setuptools'] = types.SimpleNamespace(__version__='65.5.0')", "setuptools is 65.5.0"),
    ],
    ids=("absent", "old"),
)
@pytest.mark.parametrize("hook", ["build_wheel", "prepare_metadata_for_build_wheel", "build_editable"])
def test_a_build_without_isolation_names_what_it_lacks(setuptools, said, hook):
    code = f"import sys, types\nsys.path.insert(0, 'make')\n{setuptools}\nimport sgl_kernels_build as b\nb.{hook}('x')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and said in done.stderr and "pip install 'setuptools>=77'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_backend_is_setuptools_own_where_that_will_do():
    code = (
        "import sys; sys.path.insert(0, 'make'); import sgl_kernels_build as b, setuptools.build_meta as s\n"
    )
    code += "assert all(getattr(b, n) is getattr(s, n) for n in s.__all__ if n.startswith(('build_', 'get_', 'prep')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_loader_asks_for_what_the_sources_define():
    from sgl_kernels.kernels.cpu import loader

    text = "\n".join(p.read_text() for p in (ROOT / "csrc" / "cpu").rglob("*.cpp"))
    assert set(re.findall(r'm\.def\(\s*"(\w+)\(', text)) == set(loader.OPS)
