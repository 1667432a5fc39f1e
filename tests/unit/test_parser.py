"""Text to expression: the round trip, natural spellings, and a helpful refusal of all else."""

from __future__ import annotations

import random
import warnings

import pytest

import maskwright as mw
from maskwright import b
from maskwright import h
from maskwright import k
from maskwright import kv_head
from maskwright import kv_len
from maskwright import q
from maskwright import q_len
from maskwright.dsl.errors import MaskError
from maskwright.dsl.errors import MaskSyntaxError
from maskwright.dsl.grammar import MAX_DEPTH
from maskwright.dsl.grammar import MAX_LENGTH
from maskwright.dsl.parser import parse
from maskwright.patterns.catalog import entries

DOC = mw.table("doc_id", ndim=2)
FLAG = mw.table("flag", ndim=2, dtype=bool)
COLS = mw.table("cols", ndim=3)
SLOPE = mw.table("slope", dtype=float)

EXPRESSIONS = [
    k <= q,
    (k <= q) & ((k < 64) | (q - k < 1024)),
    ~(k <= q) ^ ~(~(k > 3)),
    (k <= q) | (k < 3) & (q < 2),
    ((k <= q) | (k < 3)) & (q < 2),
    q - (k - 1) < q - k - 1,
    q * (k + 1) // 2 % 3 == (q // 3) * 2,
    k - (-5) > -q,
    -(k * 3) % 5 == -7,
    -(-k) < 2,  # noqa: B002
    k < -(2**31),
    k != 2**31 - 1,
    mw.minimum(k, mw.maximum(q, 3)) >= 0,
    mw.absolute(q - k) < 5,
    mw.where(h < 2, 0, 4) + k < q,
    mw.where(k < 3, k <= q, q < 2),
    (b == 0) & (kv_head != 1) & (k < kv_len - q_len),
    k < mw.param("window"),
    k < mw.param("window", min=-4, max=9),
    k < mw.param("window", max=0),
    DOC[b, q] == DOC[b, k],
    FLAG[b, q] & ~FLAG[b, k],
    FLAG[b, q] == FLAG[b, k],
    FLAG[b, q] != FLAG[b, k],
    mw.table("ids", sorted=True)[q % 7] > 0,
    mw.table("all", ndim=2, sorted=True, dtype=float)[0, 1] * mw.s,
    k.isin(COLS[b, h]),
    (q - k).isin(COLS[b, h + 1]) | ((-k) % 3).isin(COLS[b, 0]),
    k.isin(COLS[b, h], run=16) & (q // 64 * 64 - k).isin(COLS[b, h], run=64),
    COLS[b, h],
    mw.by_head([0, 1, 0], [k <= q, (k < 4) | (q < 1)]),
    mw.by_head(mw.table("kind"), [k <= q, k < 4]) & (k > 1),
    mw.s + SLOPE[h] * (k - q),
    mw.softcap(mw.s, 30.0),
    mw.exp(mw.s / 2.5) - mw.log(mw.sigmoid(mw.tanh(1e-05 * mw.s))),
    mw.s * -1.5e300,
    mw.patterns.full(),
    mw.patterns.full() & ~(q < 3),
]


def same_node(text_of: mw.Expr) -> bool:
    return parse(str(text_of)).node is text_of.node


@pytest.mark.parametrize("expression", EXPRESSIONS, ids=str)
def test_round_trip(expression):
    assert same_node(expression)


@pytest.mark.parametrize("scale", ["small", "paper"])
def test_round_trip_of_the_catalogue(scale):
    for entry in entries(scale, heads=8, kv_heads=2):
        assert same_node(entry.mask), entry.name


class Writer:
    """Random expressions through the public operators."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def number(self, depth: int) -> mw.Expr:
        if depth == 0:
            leaves = [q, k, b, h, kv_head, q_len, kv_len, mw.param("w", min=1), DOC[b, k]]
            return self.rng.choice(leaves) + self.rng.randint(-9, 9)
        x, y = self.number(depth - 1), self.number(self.rng.randrange(depth))
        c = self.rng.choice([-3, -1, 2, 64])
        return self.rng.choice(
            [
                lambda: x + y,
                lambda: x - y,
                lambda: x * y,
                lambda: c - x,
                lambda: -x,
                lambda: x // c,
                lambda: x % y,
                lambda: mw.minimum(x, c),
                lambda: mw.maximum(y, x),
                lambda: abs(x),
                lambda: mw.where(self.mask(depth - 1), x, y),
                lambda: COLS[b, x, y],
            ]
        )()

    def mask(self, depth: int) -> mw.Expr:
        if depth == 0 or self.rng.random() < 0.3:
            x, y = self.number(min(depth, 2)), self.number(self.rng.randrange(2))
            listed = x.isin(COLS[b, y], run=self.rng.randrange(1, 4))
            return self.rng.choice(
                [x < y, x <= 3, y > 4, x >= y, x == y, x != y, listed, FLAG[b, x]]
            )
        m, n = self.mask(depth - 1), self.mask(self.rng.randrange(depth))
        chosen = mw.by_head(self.rng.choice([[0, 1], [1], mw.table("kind")]), [m, n])
        return self.rng.choice([m & n, m | n, m ^ n, ~m, n & ~m, mw.where(m, n, ~n), chosen])


@pytest.mark.parametrize("seed", range(400))
def test_round_trip_of_random_masks(seed):
    writer = Writer(seed)
    assert same_node(writer.mask(4))
    assert same_node(writer.number(4))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" k<=q ", k <= q),
        ("(k <= q)\n  & (k < 3)", (k <= q) & (k < 3)),
        ("abs(q - k) < 3", mw.absolute(q - k) < 3),
        ("+k < 1_000", k < 1000),
        ("k < 0x10", k < 16),
        ("softcap(s, 30)", mw.softcap(mw.s, 30.0)),
        ("where(k < 3, k <= q, q < 2)", mw.where(k < 3, k <= q, q < 2)),
        ("param('w', max=9, min=1) > k", mw.param("w", min=1, max=9) > k),
        ("table('doc_id', 2)[b, (q)] == 1", DOC[b, q] == 1),
        ("table('t', ndim=1, sorted=False, dtype=int)[q] == 1", mw.table("t")[q] == 1),
        ("~True", ~mw.patterns.full()),
    ],
)
def test_natural_spellings(text, expected):
    assert parse(text).node is expected.node


REFUSED = [
    ("k <= q and k < 3", 0, "(a) & (b)"),
    ("(k <= q) & (k < 3 or q < 1)", 12, "(a) | (b)"),
    ("not k <= q", 0, "~(a)"),
    ("0 <= q-k < 64", 0, "(0 <= q-k) & (q-k < 64)"),
    ("k <= q & k < 64", 0, "(k <= q) & (k < 64)"),
    ("k in q", 0, "k.isin(row)"),
    ("k is q", 0, "`==`"),
    ("k**2 < q", 0, "x * x"),
    ("k << 2", 0, "x * 8"),
    ("k >> 2", 0, "x // 8"),
    ("k @ q", 0, "one expression"),
    ("k if q < 3 else q", 0, "where(cond, a, b)"),
    ("lambda q, k: k <= q", 0, "after the colon"),
    ("[k for k in q]", 0, "joined by"),
    ("abs(k for k in q)", 3, "joined by"),
    ("(x := 3) < k", 1, "where it is used"),
    ("abs(*k)", 4, "each argument"),
    ("f'{k}' < 3", 0, "param"),
    ("k < 'window'", 4, "param('window')"),
    ("k <= q, k < 3", 0, "`&` or `|`"),
    ("[k <= q]", 0, "`&` or `|`"),
    ("{k: q}", 0, "one expression"),
    ("None", 0, "one expression"),
    ("k < 1j", 4, "one expression"),
    ("k < 1e999", 4, "finite"),
    ("k + -True", 5, "`~`"),
    ("k < 2147483648", 4, "int32"),
    ("k < -2147483649", 5, "int32"),
    ("minimun(k, q) < 2", 0, "`minimum`"),
    ("min(k, q) < 2", 0, "`minimum`"),
    ("kv_idx <= q_idx", 0, "`k`"),
    ("k < windw", 4, 'param("windw")'),
    ("mw.param('w')", 0, "`param` without a prefix"),
    ("k.real < 3", 0, "x.isin(row)"),
    ("__import__('os').system('true')", 0, "x.isin(row)"),
    ("().__class__.__bases__", 0, "x.isin(row)"),
    ("doc_id[b, q] == 1", 0, 'table("doc_id", ndim=2)[b, q]'),
    ("table('a', 2)[b, :] == 1", 17, "every index"),
    ("table('a', 2)", 0, "explicit indices"),
    ("table('a', 2, ndim=2)[b, q]", 19, "once"),
    ("table(name)[q] == 1", 6, "param"),
    ("table('t', dtype=str)[q] == 1", 17, "dtype=bool"),
    ("table('t', sorted=1)[q] == 1", 18, "sorted=True"),
    ("table('t', axis=1)[q] == 1", 16, "ndim, sorted, dtype"),
    ("param('w', 3) < k", 0, "param"),
    ("param('w', min=k) < k", 15, "number itself"),
    ("param('w', min=1, min=2) < k", 22, "min, max"),
    ("param('w', **k) < k", 13, "min, max"),
    ("where(k < q, 1)", 0, "where(k < q, 1)"),
    ("k.isin(table('t')[()], 3)", 0, "in `k.isin"),
    ("k.isin(table('t')[()], run=q)", 27, "number itself"),
    ("k.isin(table('t')[()], runs=2)", 28, "keywords here are run"),
    ("minimum(x=k, y=q)", 10, "without its name"),
    ("by_head([0, k], [k <= q])", 12, "number itself"),
    ("by_head([0], (k <= q, k < 3))", 13, "by_head([0, 1]"),
    ("by_head(k, [k <= q])", 8, "by_head([0, 1]"),
    ("softcap(s, k)", 11, "softcap(s, 30.0)"),
    ("(k <= q) == (k < 3)", 0, "a ^ b"),
    ("(k <= q) != True", 0, "a ^ b"),
    ("k(3)", 0, "one expression"),
    ("k <= q && k < 3", 7, "`&` for `&&`"),
    ("k <= q || k < 3", 7, "`|` for `||`"),
    ("k = q", 2, "`==`"),
    ("k =< q", 2, "`<=` for `=<`"),
    ("k \u2264 q", 2, "`<=`"),
    ("\uff4b <= q", 0, "ASCII"),
    ("k <= q # causal", 7, "ASCII"),
    ("k <", 3, "one expression"),
    ("k <= q) & (q < 3", 6, "one expression"),
    ("", 0, "one expression"),
    (" \n\t ", 0, "one expression"),
    ("k\x00", 1, "ASCII"),
    ("k < " + "9" * 5000, None, "one expression"),
    ("import os", None, "one expression"),
    ("k = 3; q", None, "=="),
    ("await k", 0, "one expression"),
]


@pytest.mark.parametrize(("text", "column", "fix"), REFUSED, ids=[r[0][:30] for r in REFUSED])
def test_refusals_point_at_the_place_and_help(text, column, fix):
    with pytest.raises(MaskSyntaxError) as caught:
        parse(text)
    error = caught.value
    assert fix in error.fix
    if column is not None:
        assert error.column == column
        assert str(error).splitlines()[2] == " " * (6 + column) + "^"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("k / 2 < q", "use `//`"),
        ("k & 3", "combine masks"),
        ("(k <= q) + 1", "arithmetic needs numbers"),
        ("k // 0 < 1", "division by zero"),
        ("k.isin(3)", "row of an integer table"),
        ("table('a', 2)[b, q, k] == 1", "2 dimension"),
        ("param('q') < k", "not in use"),
        ("param('w', min=3, max=2) < k", "above its max"),
        ("by_head([2], [k <= q])", "kinds must be"),
        ("by_head([0], [])", "at least one mask"),
    ],
)
def test_errors_of_the_operators_pass_through(text, words):
    with pytest.raises(MaskError, match=words) as caught:
        parse(text)
    assert not isinstance(caught.value, MaskSyntaxError)


@pytest.mark.parametrize(
    "text",
    [
        "-" * 19_999 + "k",
        "~" * 19_000 + "(k<q)",
        "(" * 9_000 + "k" + ")" * 9_000,
        "k+" * 9_000 + "k",
        "table('t')[" * 1_500 + "k" + "]" * 1_500,
        "abs(" * 3_000 + "k" + ")" * 3_000,
        "not " * 4_000 + "k",
        "lambda:" * 2_800 + "k",
        "k if k else " * 1_500 + "k",
        "k<" * 9_000 + "k)",
    ],
    ids=lambda text: text[:12],
)
def test_deep_nesting_is_a_clear_error(text):
    with pytest.raises(MaskSyntaxError, match=r"nested deeper|not a Python expression"):
        parse(text)


def test_the_depth_limit_is_where_it_says():
    deepest = "k" + " + q" * (MAX_DEPTH - 2)
    assert str(parse(deepest)) == deepest
    with pytest.raises(MaskSyntaxError, match="nested deeper than 200 levels"):
        parse(deepest + " + q + q + q")


def test_the_length_limit():
    wide = "by_head([0], [" + ", ".join(["k <= q"] * 2400) + "])"
    assert len(wide) < MAX_LENGTH
    assert same_node(parse(wide))
    with pytest.raises(MaskSyntaxError, match="limit is 20,000"):
        parse("k <= q" + " " * 20 + "| (k < 3)" * 2300)


def test_text_must_be_a_string():
    with pytest.raises(MaskError, match="not Expr"):
        parse(k <= q)  # type: ignore[arg-type]


def test_no_python_warning_reaches_the_user():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for text in ("5.isin(k)", "1if k else 2", "'\\d'"):
            with pytest.raises(MaskSyntaxError):
                parse(text)
