"""What an attention class of transformers asks for: read from its code, and proven on a probe.

A class calls an attention function with keywords of its own, and hands on whatever its caller gave the model. The
first kind belongs to attention; of the second, transformers' own functions swallow what they do not name. So an
argument is harmless when the class does not pass it by itself and no attention function of transformers names it.

Two sets of rules exist. Under "sdpa" a missing mask means what the causal flag says; under "eager" a missing mask
hides nothing, masks are additive, and the function of the class itself may do anything: softcap, sinks, a bias. A
class that transformers certifies (`_supports_sdpa`) has the first. Any other is served only if its function is
found to compute what ours does.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
import types
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sgl_kernels.integrations.proofs import attempt

NAME = "sgl_kernels"

OURS = frozenset({
    "module", "query", "key", "value", "attention_mask", "scaling", "dropout", "is_causal", "sliding_window",
    "softcap", "position_bias", "output_attentions",
})  # fmt: skip
"""The parameters that the function we give transformers serves by name."""

HARMLESS: set[str] = {
    "cache_position", "cu_seq_lens_k", "cu_seq_lens_q", "deterministic", "max_length_k", "max_length_q",
    "num_items_in_batch", "output_hidden_states", "output_router_logits", "position_embeddings", "position_ids",
    "return_dict", "seq_idx", "use_cache",
}  # fmt: skip
"""Keyword arguments that never change what attention computes, whoever passes them. Add a name to accept it."""

_READ = frozenset({"num_key_value_groups", "training", "head_dim", "scaling", "layer_idx", "is_causal"})
"""What an eager function may read from its module and still be proven on another one."""


class Contract(NamedTuple):
    """What is known of one attention class."""

    known: bool
    """Whether its call of the attention function was found; without it every argument is suspect."""
    eager: Callable[..., Any] | None
    """The function transformers runs for it under "eager"."""
    plain: bool
    """Whether that function was proven to be plain attention."""
    odd: frozenset[str]
    """Arguments that belong to attention and that we do not serve."""
    branches: bool
    """Whether its code asks which implementation is set: then it must see the real one."""

    def oddity(self, kwargs: dict[str, Any]) -> str | None:
        """The first argument that keeps us from serving a call."""
        for name, given in kwargs.items():
            if given is None or given is False or name in HARMLESS:
                continue
            if name in self.odd or not self.known:
                return name
        return None


UNKNOWN = Contract(False, None, False, frozenset(), False)
CONTRACTS: dict[type, Contract] = {}


def contract_of(cls: type) -> Contract:
    """The contract of a module's class, read once."""
    known = CONTRACTS.get(cls)
    if known is None:
        known = CONTRACTS[cls] = _read(cls)
    return known


def asks_interface(module: nn.Module) -> bool:
    """Whether a module's code asks transformers for its attention function."""
    if "transformers" not in sys.modules:
        return False
    return contract_of(type(module)).known


def _read(cls: type) -> Contract:
    calls = [function for function in _methods(cls) if _ASKS & _named(function.__code__)]
    if not calls:
        return UNKNOWN
    eager = {
        name: value
        for function in calls
        for name in _named(function.__code__)
        if "eager" in name and isinstance(value := function.__globals__.get(name), types.FunctionType)
    }
    one = next(iter(eager.values())) if len(eager) == 1 else None
    trees = [_tree(function) for function in calls]
    if any(tree is None for tree in trees):
        return Contract(True, one, False, frozenset(), True)
    own = {name for tree in trees if tree is not None for name in _keywords(tree)}
    consumed = _consumed() | (_parameters(one) if one is not None else set())
    everything = (tree for function in _methods(cls) if (tree := _tree(function)) is not None)
    return Contract(
        True, one, is_plain(one), frozenset((own | consumed) - OURS), any(map(_compares, everything))
    )


_LIBRARY = "transformers.modeling_utils"
_ASKS = frozenset({"get_interface", "ALL_ATTENTION_FUNCTIONS"})


def _methods(cls: type) -> Iterator[types.FunctionType]:
    seen: set[str] = set()
    for base in cls.__mro__:
        if base in (nn.Module, object) or base.__module__ == _LIBRARY:
            continue
        for name, member in vars(base).items():
            if name in seen or not isinstance(member, types.FunctionType):
                continue
            seen.add(name)
            inner = inspect.unwrap(member)
            if isinstance(inner, types.FunctionType):
                yield inner


def _named(code: types.CodeType) -> set[str]:
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return set(code.co_names).union(*map(_named, inner))


def _tree(function: Any) -> ast.AST | None:
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return None


def _keywords(tree: ast.AST) -> Iterator[str]:
    """The keywords of calls whose first argument is `self`: `attention_interface(self, query, ..., s_aux=...)`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
            first = node.args[0]
            if isinstance(first, ast.Name) and first.id == "self":
                yield from (k.arg for k in node.keywords if k.arg is not None)


def _parameters(function: Callable[..., Any]) -> set[str]:
    """The named parameters of an attention function behind module, query, key, value and mask."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {p.name for p in list(inspect.signature(function).parameters.values())[5:] if p.kind in kinds}


def _consumed() -> set[str]:
    """What any attention function that transformers has names: it may change the result."""
    from transformers import AttentionInterface

    functions = AttentionInterface._global_mapping
    return set().union(*(_parameters(f) for name, f in functions.items() if name != NAME))


def _compares(tree: ast.AST, values: frozenset[str] = frozenset({"sdpa", "eager"})) -> bool:
    """Whether code compares the name of the implementation with one of `values`, or looks it up in its own table."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and _implementation(node.left):
            constants = {
                c.value for side in node.comparators for c in ast.walk(side) if isinstance(c, ast.Constant)
            }
            if constants & values:
                return True
        if (
            isinstance(node, ast.Subscript)
            and _implementation(node.slice)
            and not (isinstance(node.value, ast.Name) and node.value.id.startswith("ALL_"))
        ):
            return True
    return False


def _implementation(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "_attn_implementation"


# --- which rules ------------------------------------------------------------------------------------

RULES: dict[type, str] = {}


def rules_of(config: Any) -> str:
    """'sdpa' or 'eager': what masks and flags mean to the models of a configuration class."""
    cls = type(config)
    known = RULES.get(cls)
    if known is None:
        known = RULES[cls] = "sdpa" if all(c._supports_sdpa for c in _models_of(cls)) else "eager"
    return known


def set_rules(cls: type, rules: str) -> None:
    """Fix the rules of a configuration class: those of a view, which knows what its model was set to."""
    RULES[cls] = rules


def _models_of(config: type) -> Iterator[Any]:
    library = sys.modules.get(_LIBRARY)
    pending = [library.PreTrainedModel] if library is not None else []
    while pending:
        cls = pending.pop()
        pending += cls.__subclasses__()
        if getattr(cls, "config_class", None) is config:
            yield cls


_takes: dict[type, bool] = {}


def takes_name(cls: type) -> bool:
    """Whether a model class can be set to our name: not where its code asks for "sdpa" by name, or has a table."""
    known = _takes.get(cls)
    if known is None:
        modules = {base.__module__ for base in cls.__mro__ if hasattr(base, "_supports_sdpa")}
        modules.discard(_LIBRARY)
        values = frozenset({"sdpa"} if getattr(cls, "_supports_sdpa", False) else {"sdpa", "eager"})
        trees = [_tree(sys.modules[name]) for name in modules if name in sys.modules]
        known = _takes[cls] = not any(tree is not None and _compares(tree, values) for tree in trees)
    return known


def read_ahead(cls: type, config: Any) -> None:
    """Read what the attention of a model class asks for, so that compiled code finds it known."""
    rules_of(config)
    for name in {base.__module__ for base in cls.__mro__ if hasattr(base, "_supports_sdpa")} - {_LIBRARY}:
        for member in list(vars(sys.modules[name]).values()) if name in sys.modules else ():
            if isinstance(member, type) and issubclass(member, nn.Module):
                contract_of(member)


# --- the probe --------------------------------------------------------------------------------------

_proven: dict[Any, bool] = {}


def is_plain(eager: Callable[..., Any] | None) -> bool:
    """Whether an eager function computes softmax(cap(q k' * scaling) + bias + mask) v and nothing else."""
    if eager is None:
        return False
    known = _proven.get(eager)
    if known is None:
        known = _proven[eager] = _reads_little(eager) and bool(attempt(lambda: _passes_probe(eager)))
    return known


def _reads_little(eager: Callable[..., Any]) -> bool:
    """Whether the function reads nothing from its module that a probe on another module would miss."""
    tree = _tree(eager)
    if tree is None:
        return False
    first = next(iter(inspect.signature(eager).parameters))
    owners = (
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and node.id == first and isinstance(node.ctx, ast.Load)
    )
    read = [
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == first
    ]
    return set(read) <= _READ and len(read) == len(list(owners))  # nothing but `module.<attribute>`


@torch.no_grad()
def _passes_probe(eager: Callable[..., Any]) -> bool:
    """Small inputs in double precision that tell every other formula apart: each is a product of these choices."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64) * 1.7

    names = _parameters(eager)
    tree = _tree(eager)
    grouped = tree is not None and any(
        isinstance(n, ast.Attribute) and n.attr == "num_key_value_groups" for n in ast.walk(tree)
    )
    mask = noise(2, 1, 5, 7).masked_fill(noise(2, 1, 5, 7) > 1.5, torch.finfo(torch.float64).min)
    for groups in (1, 2) if grouped else (1,):
        q, k, v = noise(2, 4, 5, 8), noise(2, 4 // groups, 7, 8), noise(2, 4 // groups, 7, 8)
        module = SimpleNamespace(
            num_key_value_groups=groups, training=False, head_dim=8, scaling=0.9, layer_idx=0, is_causal=True
        )
        for softcap in (None, 1.3) if "softcap" in names else (None,):
            for bias in (None, noise(1, 4, 5, 7)) if "position_bias" in names else (None,):
                for given in (None, mask):
                    more: dict[str, Any] = {"softcap": softcap} if softcap else {}
                    more |= {} if bias is None else {"position_bias": bias}
                    try:
                        out = eager(
                            module,
                            q,
                            k,
                            v,
                            given,
                            scaling=0.37,
                            dropout=0.0,
                            sliding_window=2,
                            is_causal=True,
                            **more,
                        )
                    except (
                        Exception
                    ):  # whatever a foreign function raises on the probe, it is not ours to serve
                        return False
                    want = _oracle(q, k, v, given, 0.37, softcap, bias)
                    have = out[0] if isinstance(out, tuple) else None
                    if not isinstance(have, Tensor) or have.shape != want.shape:
                        return False
                    if not torch.allclose(have, want, rtol=1e-5, atol=1e-5):
                        return False
    return True


def _oracle(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scaling: float,
    softcap: float | None,
    bias: Tensor | None,
) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    scores = q @ k.repeat_interleave(groups, 1).mT * scaling
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    for term in (bias, mask):
        scores = scores if term is None else scores + term
    return (scores.softmax(-1) @ v.repeat_interleave(groups, 1)).transpose(1, 2)
