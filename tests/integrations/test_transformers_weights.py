"""Attention weights of applied models, and probes that nothing of the caller's surroundings reaches."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import sgl_kernels

transformers = pytest.importorskip("transformers")

IDS = torch.arange(14).reshape(2, 7)
SIZES = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=50)


def _eager(name, **extra):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SIZES, **extra)
    return getattr(transformers, f"{name}Model")._from_config(config, attn_implementation="eager").eval()


@torch.no_grad()
@pytest.mark.parametrize("how", ["argument", "config"])
@pytest.mark.parametrize("name", ["Llama", "Bert"])
def test_an_eager_model_returns_the_weights_it_is_asked_for(name, how):
    model = _eager(name)
    asked = {"output_attentions": True} if how == "argument" else {}
    model.config.output_attentions = how == "config"
    want = model(IDS, **asked)
    with sgl_kernels.apply(model):
        have = model(IDS, **asked)
    assert len(have.attentions) == len(want.attentions) == 2
    for ours, theirs in zip(have.attentions, want.attentions, strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(have[0], want[0])


@torch.no_grad()
def test_a_hook_on_eager_attention_sees_the_weights():
    model = _eager("Llama")
    seen = []
    handle = model.layers[0].self_attn.register_forward_hook(lambda module, args, out: seen.append(out[1]))
    model(IDS)
    with sgl_kernels.apply(model):
        model(IDS)
    handle.remove()
    torch.testing.assert_close(seen[1], seen[0])


CODE = """
import torch, transformers
torch.set_default_device("meta")
import sgl_kernels
config = transformers.LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)
model = transformers.LlamaModel._from_config(config, attn_implementation="eager")
sgl_kernels.apply(model)
sgl_kernels.install("transformers")
transformers.LlamaModel(config).set_attn_implementation("sgl_kernels")
from sgl_kernels.integrations.transformers_contract import contract_of
assert contract_of(type(model.layers[0].self_attn)).plain
"""


def test_a_default_device_of_meta_reaches_no_probe():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
