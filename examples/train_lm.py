#!/usr/bin/env python
"""Train a small character model on packed documents with AnchorAttention. Needs no GPU.

Run: python examples/train_lm.py                  about a minute; leaves demo_out/train_lm.png
     python examples/train_lm.py --backend dense  the same losses, from a dense mask

The text is small and soon known by heart: the loss on documents held out turns up near step 150.

How documents are packed, for a row of the anchor (^) and two documents that end with $:

    token      ^ a b $ c d e $       every document ends with its own end token
    doc_id     0 1 1 1 2 2 2 2       the anchor is document 0, alone, and everyone sees it
    position   0 1 2 3 1 2 3 4       counted anew in every document, so that its logits are
                                     the same wherever in a row it lies
    label      . b $ . d e $ .       the next token of the same document; `.` is no label: no
                                     document learns to guess where the next one begins
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

import maskwright as mw
from maskwright import patterns

TEXT = Path(__file__).parent / "data" / "harbour.txt"
BACKENDS = ("reference", "auto", "interpret", "triton", "dense")
MASK = patterns.anchor_document()  # k <= q and (doc(q) == doc(k) or doc(k) == 0)
ANCHOR, END = 0, 1  # tokens; the others are characters
NO_LABEL = -100
HELD_OUT = 3  # documents that are never trained on


# -- text -----------------------------------------------------------------------------------------
def read(path: Path = TEXT) -> tuple[list[Tensor], int]:
    """The documents as tokens, each with its end, and the number of different tokens."""
    texts = path.read_text(encoding="utf-8").rstrip("\n").split("\n---\n")
    number = {c: i for i, c in enumerate(sorted(set("".join(texts))), start=END + 1)}
    documents = [torch.tensor([*(number[c] for c in text), END]) for text in texts]
    return documents, END + 1 + len(number)


@dataclass(frozen=True)
class Batch:
    """Packed rows: int64 tensors of shape (batch, length)."""

    tokens: Tensor
    doc_id: Tensor
    labels: Tensor

    def to(self, device: str) -> Batch:
        """The same rows on another device."""
        return Batch(self.tokens.to(device), self.doc_id.to(device), self.labels.to(device))


def pack(rows: Sequence[Sequence[Tensor]], length: int) -> Batch:
    """Each row: the anchor, then its documents one after another, cut at ``length``."""
    tokens, ids = [], []
    for documents in rows:
        pieces = [torch.tensor([ANCHOR]), *documents]
        sizes = torch.tensor([len(piece) for piece in pieces])
        tokens.append(torch.cat(pieces)[:length])
        ids.append(torch.arange(len(pieces)).repeat_interleave(sizes)[:length])
    packed, doc_id = torch.stack(tokens), torch.stack(ids)
    labels = torch.full_like(packed, NO_LABEL)
    inside = doc_id[:, 1:] == doc_id[:, :-1]
    labels[:, :-1] = torch.where(inside, packed[:, 1:], NO_LABEL)
    return Batch(packed, doc_id, labels)


def batches(documents: list[Tensor], rows: int, length: int, seed: int) -> Iterator[Batch]:
    """Batches without end: every row takes the documents in an order of its own."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        orders = [torch.randperm(len(documents), generator=generator) for _ in range(rows)]
        yield pack([[documents[i] for i in order] for order in orders], length)


# -- model ----------------------------------------------------------------------------------------
Attend = Callable[[Tensor, Tensor, Tensor], Any]


def attend_with(backend: str, doc_id: Tensor) -> Attend:
    """Attention under MASK; ``dense`` is PyTorch's own, with the mask written out."""
    if backend != "dense":
        return partial(mw.attention, mask=MASK, doc_id=doc_id, backend=backend)
    rows, length = doc_id.shape
    keep = torch.tensor(mw.to_dense(MASK, length, batch=rows, doc_id=doc_id), device=doc_id.device)
    return partial(functional.scaled_dot_product_attention, attn_mask=keep, enable_gqa=True)


def rotate(x: Tensor, position: Tensor) -> Tensor:
    """Rotary position embedding of (batch, heads, length, head_dim)."""
    half = x.shape[-1] // 2
    speed = 10000.0 ** (-torch.arange(half, device=x.device) / half)
    angle = position[:, None, :, None] * speed
    low, high = x.chunk(2, -1)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([low * cos - high * sin, high * cos + low * sin], -1)


class Block(nn.Module):
    """Attention in groups of heads, then a GELU MLP; an RMSNorm before each."""

    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.sizes = [heads, kv_heads, kv_heads]
        self.head_dim = width // heads
        self.project = nn.Linear(width, sum(self.sizes) * self.head_dim, bias=False)
        self.merge = nn.Linear(width, width, bias=False)
        wide = 4 * width
        self.mlp = nn.Sequential(nn.Linear(width, wide), nn.GELU(), nn.Linear(wide, width))
        self.norms = nn.ModuleList([nn.RMSNorm(width), nn.RMSNorm(width)])

    def forward(self, x: Tensor, position: Tensor, attend: Attend) -> Tensor:
        """Of shape (batch, length, width), as the input."""
        projected = self.project(self.norms[0](x)).unflatten(-1, (-1, self.head_dim))
        query, key, value = projected.transpose(1, 2).split(self.sizes, 1)
        out = attend(rotate(query, position), rotate(key, position), value)
        x = x + self.merge(out.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norms[1](x))


class Model(nn.Module):
    """Two blocks, rotary positions; every token sees its document up to itself, and the anchor."""

    def __init__(self, n_tokens: int, width: int = 64, heads: int = 4, kv_heads: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(n_tokens, width)
        self.blocks = nn.ModuleList([Block(width, heads, kv_heads) for _ in range(2)])
        self.head = nn.Sequential(nn.RMSNorm(width), nn.Linear(width, n_tokens, bias=False))

    def forward(self, tokens: Tensor, doc_id: Tensor, backend: str = "reference") -> Tensor:
        """Logits, (batch, length, n_tokens)."""
        # doc_id is sorted: its first occurrence is where the document begins.
        first = torch.searchsorted(doc_id, doc_id)
        position = torch.arange(tokens.shape[1], device=tokens.device) - first + (doc_id > 0)
        attend = attend_with(backend, doc_id.int())
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, position, attend)
        return self.head(x)


def total_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The sum over labelled tokens: rows differ in their number, so the caller divides."""
    return functional.cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(), ignore_index=NO_LABEL, reduction="sum"
    )


# -- training -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Run:
    """A trained model, and losses in nats a token: of every step, and by step held out."""

    model: Model
    losses: list[float]
    held_out: dict[int, float]


def train(
    documents: list[Tensor],
    n_tokens: int,
    *,
    backend: str = "reference",
    steps: int = 250,
    length: int = 512,
    rows: int = 2,
    seed: int = 0,
) -> Run:
    """Train from scratch; the same seed gives the same losses with every backend."""
    on_gpu = backend in ("auto", "triton") and torch.cuda.is_available()
    device = "cuda" if on_gpu else "cpu"
    torch.manual_seed(seed)
    model = Model(n_tokens).to(device)
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps + 1)
    source = batches(documents[:-HELD_OUT], rows, length, seed)
    unseen = documents[-HELD_OUT:]
    test = pack([unseen], 1 + sum(len(d) for d in unseen)).to(device)
    run = Run(model, [], {})
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss = mean_loss(model, next(source).to(device), backend)
        loss.backward()
        optimizer.step()
        schedule.step()
        run.losses.append(loss.item())
        if step % 25 == 0 or step == steps:
            with torch.no_grad():
                run.held_out[step] = mean_loss(model, test, backend).item()
            print(f"step {step:4}  loss {loss.item():.4f}  held out {run.held_out[step]:.4f}")
    return run


def mean_loss(model: nn.Module, batch: Batch, backend: str) -> Tensor:
    """The loss of a labelled token."""
    logits = model(batch.tokens, batch.doc_id, backend)
    return total_loss(logits, batch.labels) / (batch.labels != NO_LABEL).sum()


def draw(run: Run, path: Path) -> None:
    """The loss curves as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="step", ylabel="loss, nats a token")
    axes.plot(range(1, len(run.losses) + 1), run.losses, label="training", linewidth=1)
    axes.plot(list(run.held_out), list(run.held_out.values()), "o-", label="held out")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main(arguments: Sequence[str] = ()) -> None:
    """Train, print the losses, draw them."""
    parser = argparse.ArgumentParser(description="Train a small model on packed documents.")
    parser.add_argument("--backend", choices=BACKENDS, default="reference")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--length", type=int, default=512, help="tokens of a row")
    parser.add_argument("--rows", type=int, default=2, help="rows of a batch")
    parser.add_argument("--threads", type=int, default=1, help="small tensors gain nothing by more")
    parser.add_argument("--out", type=Path, default=Path("demo_out"), help="folder of the PNG")
    options = vars(parser.parse_args(arguments))
    picture = options.pop("out") / "train_lm.png"
    torch.set_num_threads(options.pop("threads"))
    run = train(*read(), **options)
    draw(run, picture)
    print(f"loss {run.losses[0]:.4f} -> {run.losses[-1]:.4f}; {picture}")


if __name__ == "__main__":
    main(sys.argv[1:])
