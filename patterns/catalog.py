"""Every pattern once, with representative parameters and runtime tensors.

Tests, documentation, benchmarks and the command line's examples all walk this list.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal
from typing import TypeAlias

import numpy as np

from maskwright import patterns as p
from maskwright.dsl.errors import MaskError
from maskwright.dsl.expr import Expr
from maskwright.dsl.symbols import by_head
from maskwright.dsl.symbols import param
from maskwright.patterns import bindings as values
from maskwright.patterns.bindings import Bindings
from maskwright.patterns.bindings import Call
from maskwright.patterns.bindings import Maker

ScaleName: TypeAlias = Literal["small", "paper"]


@dataclass(frozen=True, eq=False)
class CatalogEntry:
    """One mask of the catalogue.

    Args:
        name: the pattern's function name, with a suffix for a second variant.
        mask: the expression.
        make: builds its runtime values; call ``bindings`` instead.
        closed_form: whether loop bounds are expected without a tile list.
        note: where it comes from, a few words.
    """

    name: str
    mask: Expr
    make: Maker
    closed_form: bool
    note: str

    def bindings(
        self, batch: int, heads: int, kv_heads: int, q_len: int, kv_len: int, seed: int = 0
    ) -> Bindings:
        """Random runtime values for one call: int32 (or bool) arrays and ints, by name."""
        call = Call(batch, heads, kv_heads, q_len, kv_len)
        return self.make(call, np.random.default_rng(seed))


@dataclass(frozen=True)
class Scale:
    """Sizes of the representative parameters; documents and frames are mean lengths."""

    sink: int
    window: int
    last: int
    chunk: int
    block: int
    local_blocks: int
    stride: int
    big_block: int
    group: int
    n_global: int
    document: int
    frame: int
    columns: int
    diagonals: int
    run: int
    top_blocks: int
    nodes: int


SCALES: dict[ScaleName, Scale] = {
    # For sequences of 256 to 1000: every branch of every formula is met there.
    "small": Scale(
        sink=16,
        window=64,
        last=24,
        chunk=96,
        block=16,
        local_blocks=3,
        stride=4,
        big_block=48,
        group=64,
        n_global=8,
        document=48,
        frame=20,
        columns=16,
        diagonals=12,
        run=3,
        top_blocks=4,
        nodes=24,
    ),
    # As published, or the middle of the published range.
    "paper": Scale(
        sink=128,
        window=2048,
        last=128,
        chunk=8192,
        block=64,
        local_blocks=32,
        stride=8,
        big_block=1024,
        group=2048,
        n_global=64,
        document=4096,
        frame=256,
        columns=1000,
        diagonals=6096,
        run=300,
        top_blocks=100,
        nodes=68,
    ),
}


def entries(
    scale: ScaleName = "small", *, heads: int = 4, kv_heads: int | None = None
) -> list[CatalogEntry]:
    """All entries.

    Args:
        scale: "small" for sequences of 256 to 1000, "paper" for 8K and more.
        heads: query heads the calls will have; a few patterns depend on it.
        kv_heads: KV heads of the calls; defaults to ``heads``.

    Raises:
        MaskError: for an unknown scale.

    >>> [e.name for e in entries()][:3]
    ['full', 'causal', 'sliding_window']
    """
    if scale not in SCALES:
        raise MaskError('scale is "small" or "paper"', expression=repr(scale))
    sizes = SCALES[scale]
    groups = heads if kv_heads is None else kv_heads
    return [
        *_windows(sizes),
        *_documents(sizes),
        *_blocks(sizes, heads, groups),
        *_lists(sizes),
        _per_head(sizes, heads, groups),
    ]


def entry(name: str, scale: ScaleName = "small", **heads: int) -> CatalogEntry:
    """The entry of that name; arguments as in ``entries``.

    Raises:
        MaskError: if there is none.
    """
    found = {e.name: e for e in entries(scale, **heads)}
    if name not in found:
        raise MaskError(
            "no such catalogue entry", expression=name, fix=f"one of {', '.join(found)}"
        )
    return found[name]


def _closed(name: str, mask: Expr, note: str, make: Maker = values.nothing) -> CatalogEntry:
    return CatalogEntry(name, mask, make, closed_form=True, note=note)


def _listed(name: str, mask: Expr, note: str, make: Maker) -> CatalogEntry:
    return CatalogEntry(name, mask, make, closed_form=False, note=note)


def _windows(z: Scale) -> Iterator[CatalogEntry]:
    window, sink = z.window, z.sink
    yield _closed("full", p.full(), "encoders")
    yield _closed("causal", p.causal(), "decoders")
    yield _closed("sliding_window", p.sliding_window(window, window // 2), "LongCA-bench")
    yield _closed("sliding_window_causal", p.sliding_window(window, 0), "LongCA-bench, NSA")
    yield _closed("a_shape", p.a_shape(sink, window), "StreamingLLM, MInference")
    yield _closed(
        "a_shape_runtime",
        p.a_shape(param("sink", min=0), param("window", min=1)),
        "a_shape whose sizes are runtime values",
        values.scalars(sink=sink, window=window),
    )
    yield _closed("tri_shape", p.tri_shape(sink, window, z.last), "SCBench, TriangleMix")
    yield _closed(
        "chunk_anchored_a_shape",
        p.chunk_anchored_a_shape(sink, window, z.chunk),
        "DuoAttention, chunked prefill",
    )
    yield _closed(
        "dilated_window",
        p.dilated_window(3 * window, 2, dense=window, sink=sink),
        "MInference's dilated baseline",
    )
    yield _closed("global_window", p.global_window(window, window, z.n_global), "Longformer")
    yield _closed("prefix_lm", p.prefix_lm(), "LongCA-bench", values.prefix())


def _documents(z: Scale) -> Iterator[CatalogEntry]:
    ids = values.documents(z.document)
    yield _closed("document", p.document(), "packing, ProLong", ids)
    yield _closed("document_full", p.document(causal=False), "LongCA-bench", ids)
    yield _listed(
        "document_interleaved",
        p.document(contiguous=False),
        "AnchorAttention's interleaved packing",
        values.interleaved(z.document),
    )
    anchored = values.anchored(z.document)
    yield _closed("anchor_document", p.anchor_document(), "AnchorAttention", anchored)
    yield _closed("share_question", p.share_question(), "LongCA-bench", ids)
    yield _closed("causal_blockwise", p.causal_blockwise(), "LongCA-bench", ids)
    yield _closed(
        "prefix_lm_document",
        p.prefix_lm_document(),
        "LongCA-bench",
        values.document_prefix(z.document),
    )
    frames = values.documents(z.frame, name="frame_id")
    yield _closed("frame_causal", p.frame_causal(), "FAR", frames)
    yield _closed(
        "block_causal_document",
        p.block_causal(z.big_block, document=True),
        "LongCA-bench",
        ids,
    )


def _blocks(z: Scale, heads: int, kv_heads: int) -> Iterator[CatalogEntry]:
    yield _closed("block_causal", p.block_causal(z.big_block), "block diffusion")
    yield _closed(
        "local_stride",
        p.local_stride(z.block, z.local_blocks, z.stride, heads=kv_heads),
        "LongGen, dkernel",
    )
    yield _closed(
        "local_stride_query",
        p.local_stride(
            z.block,
            z.local_blocks,
            z.stride,
            offset=1,
            heads=heads,
            head_axis="query",
            dense_heads=1,
            sink_blocks=1,
        ),
        "Phi-3-small, plus a sink block and a dense head",
    )
    yield _closed("shifted_group", p.shifted_group(z.group, heads), "LongLoRA")


def _lists(z: Scale) -> Iterator[CatalogEntry]:
    yield _listed("tree", p.tree(), "LongSpec, tree decoding", values.token_tree(z.nodes))
    yield _listed(
        "vertical_slash",
        p.vertical_slash(),
        "MInference, Qwen2.5-1M",
        values.columns_and_diagonals(z.columns, z.diagonals, z.run),
    )
    yield _listed(
        "block_list",
        p.block_list(z.block, z.block),
        "MInference, HiP, SALE, FSA",
        values.block_lists(z.block, z.block, z.top_blocks),
    )


def _per_head(z: Scale, heads: int, kv_heads: int) -> CatalogEntry:
    group = max(1, heads // kv_heads)
    kinds = [head // group % 2 for head in range(heads)]
    mask = by_head(kinds, [p.causal(), p.a_shape(z.sink, z.window)])
    return _closed("per_head", mask, "DuoAttention: every other KV head streams")
