"""torch's own samples of its functions, which come inside its wheel, and what two results must share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_utils import noncontiguous_like

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3, torch.float64: 1e-10}


def info(name: str) -> Any:
    """The OpInfo of torch.nn.functional.<name>."""
    return next(o for o in op_db if o.name == f"nn.functional.{name}" and not o.variant_test_name)


def samples(name: str, dtype: torch.dtype, requires_grad: bool = False) -> Iterator[Any]:
    """Every sample of a function, with contiguous tensors and again with others."""
    torch.manual_seed(0)
    for sample in info(name).sample_inputs("cpu", dtype, requires_grad=requires_grad):
        yield sample
        if sample.input.numel() > 1:
            yield sample.transform(
                lambda t: noncontiguous_like(t) if isinstance(t, Tensor) and t.numel() > 1 else t
            )


def outcome(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What a call gives: a result, or the error it raises."""
    try:
        return function(*args, **kwargs)
    except Exception as error:  # whatever it is, both must raise it
        return error


def assert_same(have: Any, want: Any, strides: bool = True, said: bool = True, factor: float = 1.0) -> None:
    """Equal results in dtype, shape, strides and value; or the same error in the same words."""
    if isinstance(want, Exception) or isinstance(have, Exception):
        assert type(have) is type(want), f"{have!r}, torch: {want!r}"
        assert not said or str(have).splitlines()[:1] == str(want).splitlines()[:1]
        return
    assert (have.dtype, have.shape, have.layout, have.device) == (
        want.dtype,
        want.shape,
        want.layout,
        want.device,
    )
    assert have.requires_grad == want.requires_grad
    assert not strides or have.stride() == want.stride(), f"strides {have.stride()}, torch {want.stride()}"
    tolerance = TOLERANCE.get(want.dtype, 0.0) * factor
    torch.testing.assert_close(have, want, atol=tolerance, rtol=tolerance, equal_nan=True, check_stride=False)
