"""Options that commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING
from typing import TypeAlias

if TYPE_CHECKING:
    Group: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]

Command: TypeAlias = Callable[[argparse.Namespace], int]
MASK_HELP = (
    'a text mask "(k <= q) & (q - k < 1024)", a pattern call "a_shape(sink=64, window=1024)", '
    "or file.py:name"
)
DTYPES = ("float16", "bfloat16", "float32")


def command(
    group: Group,
    name: str,
    text: str,
    run: Command,
    *,
    mask: bool | str = False,
) -> argparse.ArgumentParser:
    """A command with its texts, and ``--json``."""
    found = group.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    found.set_defaults(run=run)
    found.add_argument("--json", action="store_true", help="print the result as JSON")
    if mask:
        found.add_argument(
            "mask", metavar="MASK", nargs=mask if mask == "?" else None, help=MASK_HELP
        )
    return found


def shape(found: argparse.ArgumentParser, *, q_len: int, heads: int | None = None) -> None:
    """Sizes of a call, and its runtime values."""
    found.add_argument("--q-len", type=length, default=q_len, help=f"default {q_len}")
    found.add_argument("--kv-len", type=length, help="default: q_len")
    found.add_argument("--batch", type=positive, default=1)
    text = f"query heads; default {heads or 1}"
    found.add_argument("--heads", type=positive, default=heads, help=text)
    found.add_argument("--kv-heads", type=positive, help="default: heads")
    found.add_argument("--q-offset", type=int, help="position of row 0; default kv_len - q_len")
    found.add_argument("--seed", type=int, default=0, help="of example data")
    found.add_argument(
        "--bind",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="runtime value: an int, a list literal or a .npy file; may be repeated",
    )


def tile(found: argparse.ArgumentParser, text: str) -> None:
    """Size of a tile."""
    found.add_argument("--tile", type=pair, metavar="M,N", help=f"queries, keys of a tile; {text}")


def kernel(found: argparse.ArgumentParser) -> None:
    """Which kernel."""
    found.add_argument("--op", default="forward", choices=("forward", "backward", "decode"))
    found.add_argument("--dtype", default="bfloat16", choices=DTYPES)
    found.add_argument("--head-dim", type=positive, default=128)


def pair(text: str) -> tuple[int, int]:
    """Two counts: 128,64."""
    first, comma, second = text.partition(",")
    if not comma:
        raise argparse.ArgumentTypeError(f"{text!r} is not two numbers such as 128,64")
    return length(first), length(second)


def positive(text: str) -> int:
    """A count of at least 1."""
    value = length(text)
    if value == 0:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def length(text: str) -> int:
    """A count; 4096, 4_096, 4K and 1M are fine."""
    units = {"k": 1024, "m": 1024**2}
    factor = units.get(text[-1:].lower(), 1)
    try:
        value = int(text[:-1] if factor > 1 else text) * factor
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no count") from None
    if value < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return value
