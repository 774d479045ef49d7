"""Packages: asked without importing them."""

from __future__ import annotations

import subprocess
import sys

from packaging.version import Version

from sgl_kernels.core.selection.packages import installed_version, missing


def test_versions_of_what_is_and_is_not_installed():
    assert installed_version("torch") is not None
    assert installed_version("no-such-package-anywhere") is None


def test_missing_says_why():
    def versions(name: str) -> Version | None:
        return {"acme": Version("1.0")}.get(name)

    assert missing("acme", versions) is None
    assert missing("acme>=1.0,<2", versions) is None
    assert missing("acme>=1.2", versions) == "acme is 1.0, needs >=1.2"
    assert missing("other>=1", versions) == "other is not installed"


def test_a_module_without_metadata_counts_as_version_zero(tmp_path, monkeypatch):
    (tmp_path / "source_checkout_xyz.py").write_text("raise SystemError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert installed_version("source_checkout_xyz") == Version("0")
    assert "source_checkout_xyz" not in sys.modules


def test_asking_imports_nothing():
    code = (
        "import sys; from sgl_kernels.core.selection.packages import installed_version as v\n"
        "v('matplotlib'); v('diffusers')\n"
        "assert not {'matplotlib', 'diffusers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
