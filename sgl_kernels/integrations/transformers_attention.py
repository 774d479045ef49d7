"""The attention function and the mask function that transformers calls under our name.

Whatever we do not serve goes to the function the model would have run without us: transformers' "sdpa" under its
rules, the function of the class itself under "eager". Only where that function is not known is it an error.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from sgl_kernels.core.log import warn_once
from sgl_kernels.integrations.transformers_contract import (
    CONTRACTS,
    RULES,
    UNKNOWN,
    Contract,
    contract_of,
    rules_of,
)
from sgl_kernels.ops.attention.api import attention, attention_varlen


def attention_interface(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    position_bias: Tensor | None = None,
    output_attentions: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The function transformers calls: query (B, H, S, D), key and value with their own heads -> (B, S, H, D), None.

    Under the rules of "sdpa" a mask says everything by itself; without one, is_causal (the argument, else the
    module's flag) holds, aligned top-left, unless there is a single query. Under those of "eager" (classes that
    transformers does not certify for SDPA) a missing mask hides nothing. Calls that are not served run the function
    the model would have run without us: attention weights asked for (then they come second), dropout, sinks, block
    indices, a paged cache. Raises ValueError for these where that function is not known.
    """
    contract = CONTRACTS.get(type(module)) or _contract(module)
    rules = "sdpa" if contract is UNKNOWN else RULES.get(type(module.config)) or _rules_of(module.config)
    odd = None
    if kwargs and not (contract.known and contract.odd.isdisjoint(kwargs)):
        odd = contract.oddity(kwargs)
    drops = dropout > 0.0 and module.training
    if rules != "sdpa" and not output_attentions:
        output_attentions = _is_recorded(module, contract)
    if (
        odd is not None
        or output_attentions
        or (contract.known and (drops or (rules != "sdpa" and not _fits(contract, attention_mask))))
    ):
        named = dict(
            is_causal=is_causal, sliding_window=sliding_window, softcap=softcap, position_bias=position_bias
        )
        given = {name: value for name, value in named.items() if value is not None} | kwargs
        return _stock(
            module,
            contract,
            rules,
            odd,
            bool(output_attentions),
            (query, key, value, attention_mask),
            scaling,
            dropout,
            given,
        )
    if key.shape[:2] != value.shape[:2] or query.shape[0] != key.shape[0]:
        query, key, value = _alike(query, key, value)
    sq, sk = query.shape[2], key.shape[2]
    mask = attention_mask
    causal = False
    if rules == "sdpa":
        causal = is_causal if is_causal is not None else bool(getattr(module, "is_causal", True))
        causal = mask is None and sq > 1 and causal
    if mask is None and cu_lengths(kwargs) > 1:
        if _is_packed(query, kwargs) and position_bias is None and not drops:
            return _packed(query, key, value, kwargs, causal, scaling, sliding_window, softcap), None
        raise ValueError(
            "sgl_kernels in transformers: cu_seq_lens_q packs several sequences but no attention mask came with "
            "it; pass position_ids that restart at 0, from which transformers builds the mask, or all four of "
            "cu_seq_lens_q, cu_seq_lens_k, max_length_q and max_length_k, with batch 1 and without dropout"
        )
    window: tuple[int, int] | None = None
    if mask is None and sliding_window is not None and sk > sliding_window and rules == "sdpa":
        if causal:
            window = (sliding_window - 1, -1)
        elif not contract.known:
            raise ValueError(
                f"sgl_kernels in transformers: sliding_window={sliding_window} over {sk} keys without a mask and "
                "without causal order has no single meaning; pass the attention mask"
            )
    if causal and sk > sq:  # an empty static cache behind the prompt: those keys are not visible
        key, value = key[:, :, :sq], value[:, :, :sq]
        position_bias = None if position_bias is None else position_bias[..., :sq]
        sk = sq
    if position_bias is not None:
        mask = _biased(position_bias, mask)
    if drops:
        return _with_dropout(query, key, value, mask, dropout, causal, scaling, softcap, window), None
    out = attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        attn_mask=mask,
        is_causal=causal,
        causal_alignment="top_left",
        scale=scaling,
        window_size=window,
        softcap=softcap or 0.0,
    )
    return out, None


def mask_interface(*args: Any, **kwargs: Any) -> Tensor | None:
    """The mask function transformers calls: that of "sdpa" or of "eager", as the rules of the configuration are."""
    from transformers.masking_utils import AttentionMaskInterface

    config = kwargs.get("config")
    rules = "sdpa" if config is None else rules_of(config)
    functions: Any = AttentionMaskInterface._global_mapping
    return functions[rules](*args, **kwargs)  # type: ignore[no-any-return]


def _is_recorded(module: nn.Module, contract: Contract) -> bool:
    """Whether somebody collects the weights that eager attention returns: an argument that asks for them ends in
    transformers' recorder and never comes here, and a hook of a user's sees whatever the module returns."""
    if not contract.known or contract.eager is None:
        return False
    if module._forward_hooks and any(
        getattr(h, "__module__", "") != _CAPTURE for h in module._forward_hooks.values()
    ):
        return True
    if getattr(module.config, "output_attentions", False):
        return True
    collector = getattr(sys.modules.get(_CAPTURE), "_active_collector", None)
    if collector is None or (is_compiling() and not collector.compiling):
        return False  # dynamo reads no ContextVar; a whole model that is compiled has set a plain one
    asked = collector.get()
    return bool(asked) and any("attentions" in name for name in asked)


_CAPTURE = "transformers.utils.output_capturing"


def _contract(module: nn.Module) -> Contract:
    return UNKNOWN if is_compiling() else contract_of(type(module))  # dynamo cannot read sources


def _rules_of(config: Any) -> str:
    return "sdpa" if is_compiling() else rules_of(config)


def _alike(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
    """One batch for all and one number of heads for key and value, as torch's function broadcasts and repeats them."""
    heads = max(key.shape[1], value.shape[1])
    key, value = (
        t if t.shape[1] == 0 or heads % t.shape[1] else t.repeat_interleave(heads // t.shape[1], 1)
        for t in (key, value)
    )
    batch = max(t.shape[0] for t in (query, key, value))
    return tuple(t.expand(batch, -1, -1, -1) if t.shape[0] == 1 else t for t in (query, key, value))


def _fits(contract: Contract, mask: Tensor | None) -> bool:
    """Whether a call under the rules of "eager" is plain attention with a mask that is added."""
    return contract.plain and (mask is None or mask.is_floating_point())


def _stock(
    module: nn.Module, contract: Contract, rules: str, odd: str | None, weights: bool,
    tensors: tuple[Tensor, Tensor, Tensor, Tensor | None], scaling: float | None, dropout: float, given: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """What the model does without us."""
    name = type(module).__name__
    eager = weights or rules != "sdpa"
    if not contract.known or (eager and contract.eager is None) or (odd is not None and contract.branches):
        _refuse(name, odd, weights, dropout)
    query, key, value, mask = tensors
    if not eager:
        from transformers import AttentionInterface

        if odd is not None:
            _say(
                f"{name} passes {odd}=, which sgl_kernels does not serve; transformers' sdpa runs these calls"
            )
        function = AttentionInterface._global_mapping["sdpa"]
        return function(module, query, key, value, mask, scaling=scaling, dropout=dropout, **given)  # type: ignore[no-any-return]
    if weights:
        _say(
            "output_attentions=True asks for weights, which are never formed; these calls run the model's eager code"
        )
    elif not contract.plain:
        _say(
            f"{name} computes attention of its own kind, which sgl_kernels does not serve; its eager code runs"
        )
    if rules == "sdpa":
        mask = _additive(module, query, key, mask, given.pop("is_causal", None))
    assert contract.eager is not None
    return contract.eager(module, query, key, value, mask, scaling=scaling, dropout=dropout, **given)  # type: ignore[no-any-return]


def _say(text: str) -> None:
    if not is_compiling():
        warn_once(f"integrations.transformers: {text}", f"sgl_kernels in transformers: {text}")


def _additive(
    module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool | None
) -> Tensor | None:
    """A mask of "sdpa" in the form that an eager function adds: lowest finite value where hidden."""
    sq, sk = query.shape[2], key.shape[2]
    if mask is None:
        causal = is_causal if is_causal is not None else bool(getattr(module, "is_causal", True))
        if not causal or sq == 1:
            return None
        mask = torch.ones(sq, sk, dtype=torch.bool, device=query.device).tril()[None, None]
    if mask.dtype is not torch.bool:
        return mask
    hidden = torch.finfo(query.dtype).min
    return torch.zeros(mask.shape, dtype=query.dtype, device=mask.device).masked_fill(~mask, hidden)


def _refuse(name: str, odd: str | None, weights: bool, dropout: float) -> None:
    if weights:
        raise ValueError(
            "sgl_kernels in transformers: output_attentions=True asks for the weights, which are never formed; "
            'use model.set_attn_implementation("eager")'
        )
    if odd is not None:
        raise ValueError(
            f"sgl_kernels in transformers: {name} passes {odd}=, which is not served and may "
            'change the result; use model.set_attn_implementation("sdpa") or "eager" for this model, or, if it '
            f"cannot matter, sgl_kernels.integrations.transformers.HARMLESS.add({odd!r})"
        )
    raise ValueError(
        f"sgl_kernels in transformers: {name} is not known to compute plain attention and its own code was not "
        f'found (dropout {dropout}); use model.set_attn_implementation("eager")'
    )


def cu_lengths(kwargs: dict[str, Any]) -> int:
    """How many packed sequences the FlashAttention arguments speak of; 1 without them."""
    lengths = kwargs.get("cu_seq_lens_q")
    return 1 if lengths is None else int(lengths.shape[0]) - 1


PACKING = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


def _is_packed(query: Tensor, kwargs: dict[str, Any]) -> bool:
    return query.shape[0] == 1 and all(kwargs.get(name) is not None for name in PACKING)


def _packed(
    query: Tensor, key: Tensor, value: Tensor, kwargs: dict[str, Any], causal: bool, scaling: float | None,
    sliding_window: int | None, softcap: float | None,
) -> Tensor:  # fmt: skip
    """Sequences end to end in one row, (1, H, T, D): each attends to itself alone -> (1, T, H, D)."""
    if sliding_window is not None and not causal and kwargs["max_length_k"] > sliding_window:
        raise ValueError(
            f"sgl_kernels in transformers: sliding_window={sliding_window} over packed sequences without causal order "
            "has no single meaning; pass the attention mask"
        )
    q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))
    lengths: list[Any] = [kwargs[name] for name in PACKING]
    out = attention_varlen(
        q,
        k,
        v,
        *lengths,
        is_causal=causal,
        scale=scaling,
        window_size=(sliding_window - 1, -1) if causal and sliding_window is not None else None,
        softcap=softcap or 0.0,
    )
    return out[None]


def _biased(bias: Tensor, mask: Tensor | None) -> Tensor:
    """A position bias and a mask as one additive mask."""
    if mask is None:
        return bias
    if mask.dtype is torch.bool:
        return torch.where(mask, bias, float("-inf"))
    return bias + mask


def _with_dropout(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, causal: bool,
    scaling: float | None, softcap: float | None, window: tuple[int, int] | None,
) -> Tensor:  # fmt: skip
    from sgl_kernels.ops.attention import compat

    if softcap or window is not None:
        raise ValueError(
            f"sgl_kernels in transformers: dropout {dropout} together with softcap or a sliding window is not "
            'served; train with attn_implementation="eager"'
        )
    out = compat.TORCH_SDPA(
        query, key, value, mask, dropout, causal, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
    return out.transpose(1, 2)
