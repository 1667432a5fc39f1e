"""The contestants by name. An adapter whose library is missing is skipped with its reason."""

from __future__ import annotations

from benchmarks.peers.base import Peer
from benchmarks.peers.base import Prepared
from benchmarks.peers.fa3 import FlashAttention3
from benchmarks.peers.fa4 import FlashAttention4
from benchmarks.peers.flex import Flex
from benchmarks.peers.flex_flash import FlexFlash
from benchmarks.peers.maskwright_peer import Maskwright
from benchmarks.peers.sdpa import Sdpa

OURS = "maskwright"
BASELINE = "flex"

PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Maskwright(OURS),
        Maskwright("maskwright_gluon", "gluon"),
        Maskwright("maskwright_triton", "triton"),
        Flex(BASELINE),
        Flex("flex_tuned", mode="max-autotune-no-cudagraphs"),
        FlexFlash("flex_flash"),
        Sdpa("sdpa_cudnn", "CUDNN_ATTENTION"),
        Sdpa("sdpa_flash", "FLASH_ATTENTION"),
        FlashAttention3("fa3"),
        FlashAttention4("fa4"),
    )
}

DEFAULT = (OURS, BASELINE, "flex_flash", "sdpa_cudnn", "sdpa_flash", "fa3", "fa4")

__all__ = ["BASELINE", "DEFAULT", "OURS", "PEERS", "Peer", "Prepared"]
