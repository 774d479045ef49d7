"""install("torch"): process-wide, reversible, never recursing, and exact where torch must serve."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sgl_kernels
from sgl_kernels.integrations import torch_hook

TORCH_SDPA = torch._C._nn.scaled_dot_product_attention


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    yield
    sgl_kernels.uninstall("torch")


def qkv(
    *heads: int, seq: int = 6, keys: int = 6, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    hq, hk = heads or (2, 2)
    g = torch.Generator().manual_seed(0)
    shapes = ((2, hq, seq, 8), (2, hk, keys, 8), (2, hk, keys, 8))
    return tuple(torch.randn(s, generator=g).to(dtype) for s in shapes)  # type: ignore[return-value]


CASES = {
    "plain": ({}, {}),
    "causal": ({}, {"is_causal": True}),
    "causal, more keys": ({"keys": 9}, {"is_causal": True}),
    "scale": ({}, {"scale": 0.3}),
    "bool mask": ({}, {"attn_mask": torch.rand(6, 6) > 0.3}),
    "float mask": ({}, {"attn_mask": torch.randn(2, 1, 6, 6)}),
    "padding": ({}, {"attn_mask": torch.tensor([True] * 4 + [False] * 2)[None, None, None]}),
}


@pytest.mark.parametrize("name", CASES)
def test_serves_what_torch_would(name: str) -> None:
    shape, options = CASES[name]
    args = qkv(**shape)
    want = F.scaled_dot_product_attention(*args, **options)
    with sgl_kernels.install("torch"), sgl_kernels.record() as recorder:
        have = F.scaled_dot_product_attention(*args, **options)
    assert torch.allclose(have, want, atol=1e-5)
    assert [e.calls for e in recorder.report().entries] == [1]


def test_grouped_heads_need_the_flag() -> None:
    args = qkv(4, 2)
    want = F.scaled_dot_product_attention(*args, enable_gqa=True)
    with sgl_kernels.install("torch"):
        assert torch.allclose(F.scaled_dot_product_attention(*args, enable_gqa=True), want, atol=1e-5)
        with pytest.raises(RuntimeError, match="must match the size"):  # torch's words
            F.scaled_dot_product_attention(*args)


def test_install_and_uninstall_are_idempotent_and_restore_the_object() -> None:
    for _ in range(2):
        sgl_kernels.install("torch")
    assert torch_hook.is_installed() and F.scaled_dot_product_attention is not TORCH_SDPA
    for _ in range(2):
        sgl_kernels.uninstall("torch")
    assert not torch_hook.is_installed() and F.scaled_dot_product_attention is TORCH_SDPA


def test_all_threads_are_served() -> None:
    counts = []

    def work() -> None:
        with sgl_kernels.record() as recorder:
            F.scaled_dot_product_attention(*qkv())
        counts.append(sum(e.calls for e in recorder.report().entries))

    with sgl_kernels.install("torch"):
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert counts == [1] * 4


def test_a_scope_serves_this_thread_only() -> None:
    seen = {}

    def other() -> None:
        with sgl_kernels.record() as recorder:
            F.scaled_dot_product_attention(*qkv())
        seen["other"] = len(recorder.report().entries)

    with torch_hook.serving(), sgl_kernels.record() as recorder:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        F.scaled_dot_product_attention(*qkv())
        with torch_hook.serving(False):
            F.scaled_dot_product_attention(*qkv())
    seen["here"] = sum(e.calls for e in recorder.report().entries)
    assert seen == {"other": 0, "here": 1}
    assert F.scaled_dot_product_attention is TORCH_SDPA


def test_a_backend_that_calls_the_name_in_torch_reaches_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    from sgl_kernels.backends import torch_native

    monkeypatch.setattr(torch_native, "_sdpa", lambda *a, **k: F.scaled_dot_product_attention(*a, **k))
    args = qkv()
    want = TORCH_SDPA(*args)
    with sgl_kernels.install("torch"), sgl_kernels.use(backend="torch", strict=True):
        assert torch.allclose(F.scaled_dot_product_attention(*args), want, atol=1e-6)
        q, k, v = (t.transpose(1, 2) for t in args)
        assert torch.allclose(sgl_kernels.attention(q, k, v).transpose(1, 2), want, atol=1e-6)


def test_gradients_dropout_and_transforms_go_to_torch() -> None:
    q, k, v = qkv()
    with sgl_kernels.install("torch"), sgl_kernels.record() as recorder:
        q.requires_grad_()
        F.scaled_dot_product_attention(q, k, v).sum().backward()
        assert q.grad is not None
        F.scaled_dot_product_attention(k, k, v, dropout_p=0.5)
        torch.func.vmap(F.scaled_dot_product_attention)(*(t[None].detach() for t in (q, k, v)))
        torch.func.jacrev(lambda x: F.scaled_dot_product_attention(x, k, v))(k)
    assert recorder.report().entries == ()


def test_tensor_subclasses_go_to_torch() -> None:
    class Logged(Tensor):
        pass

    q, k, v = qkv()
    with sgl_kernels.install("torch"), sgl_kernels.record() as recorder:
        F.scaled_dot_product_attention(q.as_subclass(Logged), k, v)
    assert recorder.report().entries == ()


def test_a_patch_put_on_before_us_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def theirs(*args: object, **kwargs: object) -> Tensor:
        return TORCH_SDPA(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", theirs)
    sgl_kernels.install("torch")
    sgl_kernels.uninstall("torch")
    assert F.scaled_dot_product_attention is theirs


def test_a_patch_put_on_after_us_keeps_working(monkeypatch: pytest.MonkeyPatch) -> None:
    args = qkv()
    want = TORCH_SDPA(*args)
    sgl_kernels.install("torch")
    ours = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: ours(*a, **k))
    sgl_kernels.uninstall("torch")
    with sgl_kernels.record() as recorder:
        assert torch.equal(F.scaled_dot_product_attention(*args), want)
    assert recorder.report().entries == ()
    sgl_kernels.install("torch")  # now each of the two stands behind the other
    with torch_hook.serving(False):
        assert torch.equal(F.scaled_dot_product_attention(*args), want)
    sgl_kernels.uninstall("torch")
    assert torch.equal(F.scaled_dot_product_attention(*args), want)
    monkeypatch.undo()


def test_the_same_call_through_torch_modules() -> None:
    layer = torch.nn.MultiheadAttention(16, 2, batch_first=True)
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        layer.train()  # eval takes torch's fused C++ path, which no Python name reaches
        want = layer(x, x, x, need_weights=False)[0]
        with sgl_kernels.install("torch"), sgl_kernels.record() as recorder:
            have = layer(x, x, x, need_weights=False)[0]
    assert torch.allclose(have, want, atol=1e-5) and len(recorder.report().entries) == 1


def test_compiled_code_is_served_in_one_graph() -> None:
    def f(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True) * 2

    args = qkv()
    want = f(*args)
    with sgl_kernels.install("torch"), sgl_kernels.record() as recorder:
        have = torch.compile(f, backend="aot_eager", fullgraph=True)(*args)
    assert torch.allclose(have, want, atol=1e-5)
    assert [e.op for e in recorder.report().entries] == ["attention"]
    torch._dynamo.reset()


def test_unknown_names_and_missing_packages_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from sgl_kernels.integrations import diffusers, transformers

    with pytest.raises(
        sgl_kernels.ConfigError, match=r"diffuser.*expected one of torch, diffusers, transformers"
    ):
        sgl_kernels.install("diffuser")
    for module, extra in ((diffusers, "diffusers"), (transformers, "transformers")):
        monkeypatch.setattr(module, "installed_version", lambda name: None)
        with pytest.raises(sgl_kernels.ConfigError, match=rf"pip install 'sgl_kernels\[{extra}\]'"):
            sgl_kernels.install(extra)


def test_what_is_not_served_goes_on_to_the_patch_that_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, list[str]]] = []

    def theirs(*args: object, **kwargs: object) -> Tensor:
        seen.append((len(args), sorted(kwargs)))
        return TORCH_SDPA(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", theirs)
    q, k, v = qkv()
    with sgl_kernels.install("torch"):
        F.scaled_dot_product_attention(q, k, v)
        assert seen == []
        F.scaled_dot_product_attention(q.requires_grad_(), k, v, is_causal=True)
        assert seen == [(3, ["is_causal"])]


def test_uninstall_during_a_call_and_while_a_subclass_answers() -> None:
    class Uninstalls(Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func is TORCH_SDPA:
                sgl_kernels.uninstall("torch")
                return "answered"
            return super().__torch_function__(func, types, args, kwargs or {})

    q, k, v = qkv()
    sgl_kernels.install("torch")
    assert F.scaled_dot_product_attention(q.as_subclass(Uninstalls), k, v) == "answered"
    assert F.scaled_dot_product_attention is TORCH_SDPA and not torch_hook.is_installed()


def test_threads_with_subclasses_leave_the_name_as_it_was() -> None:
    class Plain(Tensor):
        pass

    q, k, v = qkv()
    want, wrong = TORCH_SDPA(q, k, v), []

    def work(args: tuple[Tensor, ...]) -> None:
        for _ in range(50):
            if not torch.allclose(F.scaled_dot_product_attention(*args), want, atol=1e-5):
                wrong.append(1)

    with sgl_kernels.install("torch"):
        ours = F.scaled_dot_product_attention
        threads = [threading.Thread(target=work, args=((x, k, v),)) for x in (q, q.as_subclass(Plain)) * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert F.scaled_dot_product_attention is ours and not wrong
    assert F.scaled_dot_product_attention is TORCH_SDPA
