"""Who tells whom: the loader of the C++ kernels imports nothing of the package, so it is told what settings say."""

from __future__ import annotations

from sgl_kernels.core import cpu_level, environment
from sgl_kernels.kernels.cpu import loader

loader.ask(
    library=lambda: environment.variable(loader.LIBRARY_VARIABLE),
    level=cpu_level.named,
)
cpu_level.follow(loader.follow)
