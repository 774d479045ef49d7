"""The whole suite of a backend: one line."""

from acme_sgl import IMPLEMENTATIONS

from sgl_kernels.testing import check_backend


def test_acme():
    check_backend(IMPLEMENTATIONS)
