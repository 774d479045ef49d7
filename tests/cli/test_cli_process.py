"""The command line as a process: pipes that close, disks that are full, terminals of ASCII, Ctrl-C, and no torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STREAMS = ROOT / "sgl_kernels" / "cli" / "_streams.py"


def _environment(**more: str) -> dict[str, str]:
    hidden = ("PYTHONIOENCODING", "COLUMNS", "FORCE_COLOR", "NO_COLOR")
    kept = {k: v for k, v in os.environ.items() if k not in hidden}
    return {**kept, "PYTHONPATH": str(ROOT), **more}


def run(shell: str, **environment: str) -> subprocess.CompletedProcess:
    """A line of bash in which $S is the command line; the exit code of every part of a pipe is echoed last."""
    script = f'S="{sys.executable} -m sgl_kernels"; {shell}'
    return subprocess.run(
        ["bash", "-c", script], capture_output=True, env=_environment(**environment), timeout=240
    )


def test_a_reader_that_leaves_changes_nothing():
    done = run("$S list --json | head -1; echo ${PIPESTATUS[0]}")
    assert done.stdout.split() == [b"{", b"0"] and not done.stderr


def test_a_full_disk_is_one_message_and_2():
    done = run("$S list cases > /dev/full")
    assert done.returncode == 2
    assert done.stderr.decode().strip() == "error: standard output cannot be written: No space left on device"


def test_a_terminal_of_ascii_gets_plain_letters():
    done = run("$S explain rms_norm --shape 4,64", PYTHONIOENCODING="ascii", LANG="C")
    assert done.returncode == 0 and done.stdout.isascii() and b"-> cpu" in done.stdout and not done.stderr


@pytest.mark.parametrize("script, said", [
    # the streams alone, without torch: `_streams` is plain Python
    ("prepare(); print('x' * 100000)", "{} | head -c 1 > /dev/null; echo ${{PIPESTATUS[0]}}"),
    ("prepare(); print('x')", "{} > /dev/full; echo $?"),
    ("prepare(); print('x')", "{} >&-; echo $?"),
    ("prepare(); print('x', file=sys.stderr)", "{} 2>&-; echo $?"),
    ("prepare(); print('x', file=sys.stderr)", "{} 2>/dev/full; echo $?"),
], ids=["head", "full", "closed", "no errors", "errors full"])  # fmt: skip
def test_streams(script, said, tmp_path):
    file = tmp_path / "script.py"
    file.write_text(
        f"import runpy, sys\nm = runpy.run_path({str(STREAMS)!r})\nprepare = m['prepare']\n{script}\n"
        "sys.exit(m['finish'](0))\n"
    )
    done = subprocess.run(
        ["bash", "-c", said.format(f"{sys.executable} {file}")], capture_output=True, env=_environment()
    )
    code = b"2" if "full; echo" in said and "2>/dev" not in said else b"0"
    assert done.stdout.strip().endswith(code) and b"Traceback" not in done.stderr, (done.stdout, done.stderr)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_letters_that_an_encoding_lacks(encoding, tmp_path):
    code = f"import runpy\nrunpy.run_path({str(STREAMS)!r})['prepare']()\nprint('\\u2192 4\\u00d74 \\u65e5 \\udcff')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=_environment(PYTHONIOENCODING=encoding)
    )
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode(encoding)
    assert text.rstrip().endswith("\\udcff") and ("->" in text) == (encoding != "utf-8")


def test_ctrl_c_ends_with_130_and_a_word(tmp_path):
    command = [sys.executable, "-m", "sgl_kernels", "parity", "--op", "attention", "--backend", "torch"]
    code = textwrap.dedent(
        """
        import os, signal, sys
        import sgl_kernels.tools.parity.cell as parity
        parity.run_cell = lambda *a, **k: os.kill(os.getpid(), signal.SIGINT)
        from sgl_kernels.cli import main
        main()
        """
    )
    done = subprocess.run([sys.executable, "-c", code, *command[3:]], capture_output=True, env=_environment())
    assert done.returncode == 130 and b"interrupted" in done.stderr and b"Traceback" not in done.stderr


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    """Runs the command line where `torch` is the given source, or no module at all."""

    def start(torch: str | None, *arguments: str, hide: str = "") -> subprocess.CompletedProcess:
        folder = tmp_path_factory.mktemp("bare")
        if torch is not None:
            (folder / "torch").mkdir()
            (folder / "torch" / "__init__.py").write_text(torch)
        hidden = ["torch"] if torch is None else []
        hidden += [hide] if hide else []
        code = textwrap.dedent(
            f"""
            import sys
            sys.path.insert(0, {str(folder)!r})
            class Hide:
                def find_spec(self, name, path=None, target=None):
                    if name.split(".")[0] in {hidden!r}:
                        raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
            sys.meta_path.insert(0, Hide())
            sys.argv = ["sgl-kernels", *sys.argv[1:]]
            from sgl_kernels.cli import main
            main()
            """
        )
        return subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=_environment()
        )

    return start


BROKEN = {
    "absent": (None, "torch is not installed"),
    "no library": ('raise OSError("libtorch_cpu.so: cannot open shared object file")', "libtorch_cpu.so"),
    "no reason": ("raise RuntimeError", "torch cannot be imported: RuntimeError"),
    "lacks a module": ("import surely_not_there", "surely_not_there"),
    "another torch": ("x = 1", "is not PyTorch"),
    "old": ('__version__ = "2.3.1"', "torch is 2.3.1, and 2.10 is the oldest"),
}


@pytest.mark.parametrize("torch, said", BROKEN.values(), ids=BROKEN)
def test_doctor_says_what_is_wrong_with_torch(torch, said, without):
    done = without(torch, "doctor")
    assert done.returncode == 1 and said in done.stdout and "pip install" in done.stdout, done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_without_torch_the_rest_says_so_too(without):
    from sgl_kernels._version import __version__

    assert without(None, "--version").stdout.strip() == f"sgl_kernels {__version__}"
    help_ = without(None, "--help")
    assert help_.returncode == 0 and "torch is not installed" in help_.stdout
    other = without(None, "list", "ops")
    assert other.returncode == 2 and "error: torch is not installed" in other.stderr and not other.stdout
    data = json.loads(without(None, "doctor", "--json").stdout)
    assert data["healthy"] is False and "torch is not installed" in data["problems"][0]


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_doctor_says_what_the_command_line_lacks(package, without):
    done = without(
        '__version__ = "2.13.0"\nraise ImportError("not needed to see this")', "doctor", hide=package
    )
    assert done.returncode == 1 and f"{package} is not installed" in done.stdout, done.stdout


def test_a_name_of_the_package_without_torch_is_an_import_error(without, tmp_path):
    code = "import sys; sys.modules['torch'] = None\nimport sgl_kernels\nfrom sgl_kernels import attention\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=_environment())
    assert "ImportError: sgl_kernels.attention needs torch" in done.stderr, done.stderr


def test_what_must_be_installed_is_the_list_of_pyproject():
    from packaging.requirements import Requirement

    from sgl_kernels._needs import PACKAGES

    text = (ROOT / "pyproject.toml").read_text()
    block = text.split("dependencies = [", 1)[1].split("]", 1)[0]
    wanted = {
        r.name: str(r.specifier).removeprefix(">=")
        for r in map(Requirement, json.loads(f"[{block.strip().rstrip(',')}]"))
    }
    assert {name: oldest for name, (_, oldest) in PACKAGES.items()} == wanted
