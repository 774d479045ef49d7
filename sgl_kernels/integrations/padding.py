"""apply(model, padding="skip"): text encoders run on the tokens that are there, not on the padding between them.

The encoder of a BERT works on each token alone, but for attention. So its input is packed, sequence after sequence,
attention runs in its variable-length form, and the result is put back; rows of padding are zero. That is the one
difference to stock, which computes states for padding too: read the result under the attention mask, as pooling does.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from sgl_kernels.integrations.modules import is_ours
from sgl_kernels.integrations.norms import stock
from sgl_kernels.integrations.transformers_apply import serves

ENCODERS = frozenset({"BertEncoder", "RobertaEncoder", "XLMRobertaEncoder"})
"""Classes of transformers whose layers mix tokens by nothing but attention without positions."""
_CAPTURE = "transformers.utils.output_capturing"


def packs(module: nn.Module) -> bool:
    """Whether the padding of a module's input can be skipped."""
    cls = type(module)
    return cls.__name__ in ENCODERS and cls.__module__.startswith("transformers.")


def choose(module: nn.Module) -> Any:
    """The replacement of a module's forward, or None."""
    return packed_encoder if packs(module) else None


def packed_encoder(
    self: Any, hidden_states: Tensor, attention_mask: Any = None, *args: Any, **kwargs: Any
) -> Any:
    """An encoder's forward on the real tokens alone; stock where the mask is no padding mask, or somebody watches."""
    keep = None if args else _real_tokens(hidden_states, attention_mask)
    if keep is None or is_compiling() or not _plain_call(self, hidden_states, kwargs):
        return stock(self, hidden_states, attention_mask, *args, **kwargs)
    batch, length, width = hidden_states.shape
    where = keep.flatten().nonzero().squeeze(1)
    lengths = keep.sum(1)
    ends = torch.zeros(batch + 1, dtype=torch.int32, device=keep.device)
    ends[1:] = lengths.cumsum(0)
    longest = int(lengths.max())
    packing = dict(cu_seq_lens_q=ends, cu_seq_lens_k=ends, max_length_q=longest, max_length_k=longest)
    kwargs.pop("position_ids", None)  # used by the embeddings, before
    packed = hidden_states.reshape(batch * length, width)[where][None]
    result = stock(self, packed, None, **kwargs, **packing)
    states = result.last_hidden_state
    whole = states.new_zeros(batch * length, width)
    whole[where] = states[0]
    result.last_hidden_state = whole.view(batch, length, width)
    return result


def _real_tokens(hidden_states: Tensor, mask: Any) -> Tensor | None:
    """(batch, length) True for real tokens, if the mask is the same for all queries and some token is not real."""
    if not isinstance(mask, Tensor) or mask.dtype is not torch.bool or mask.ndim != 4:
        return None
    batch, length, _ = hidden_states.shape
    if mask.shape[:2] != (batch, 1) or mask.shape[3] != length:
        return None
    keep = mask[:, 0, 0]
    one_for_all = mask.stride(2) == 0 or torch.equal(mask, keep[:, None, None].expand_as(mask))
    return keep if one_for_all and bool(keep.any(1).all()) and not bool(keep.all()) else None


def _plain_call(encoder: Any, hidden_states: Tensor, kwargs: dict[str, Any]) -> bool:
    """No gradients, cross-attention, cache, chunks, attention weights or hidden states asked for, and no hooks."""
    config = encoder.config
    asked = [name for name, given in kwargs.items() if given is not None and given is not False]
    if any(name != "position_ids" for name in asked) or torch.is_grad_enabled():
        return False
    if not serves(encoder) or getattr(config, "chunk_size_feed_forward", False):
        return False
    if getattr(config, "output_hidden_states", False) or getattr(config, "output_attentions", False):
        return False
    collector = getattr(sys.modules.get(_CAPTURE), "_active_collector", None)
    if collector is not None and collector.get():
        return False
    return not any(_watched(m) for m in encoder.modules() if m is not encoder)


def _watched(module: nn.Module) -> bool:
    """Whether somebody but transformers' own recorder would see the packed tensors."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    if any(getattr(h, "__module__", "") != _CAPTURE for h in hooks):
        return True
    return "forward" in module.__dict__ and not is_ours(module)
