"""What a configuration of one length loses at another, by invented tables."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from maskwright.autotune import transfer
from maskwright.dsl.errors import TuningError
from maskwright.runtime.cli import main


def table_of(make_table, q_len, best, **options):
    """A table in which one size of tiles is best, and the others are slower by steps."""

    def time(config, seed):
        return 1.0 + 0.1 * abs(config.block_m - best) / 64 + 0.001 * config.num_stages

    found = make_table(noise=0.0, time=time, **options)
    bucket = replace(found.key.bucket, q_len=q_len, kv_len=q_len)
    return replace(found, key=replace(found.key, bucket=bucket))


@pytest.fixture
def tables(make_table):
    return {"short": table_of(make_table, 13, 128), "long": table_of(make_table, 15, 64)}


def test_each_direction_has_its_loss(tables):
    there, back = transfer.transfers(tables)
    assert (there.source, there.target) == ("short", "long")
    assert there.config["block_m"] == 128
    best = min(row.median for row in tables["long"].rows if row.ratio)
    assert there.loss == pytest.approx(
        tables["long"].by_config[tables["long"].config(there.config)].median / best - 1
    )
    assert 0.09 < there.loss < 0.11
    assert 0.09 < back.loss < 0.11
    default = tables["short"].config(tables["short"].default)
    assert back.default == pytest.approx(tables["short"].regret(default))
    assert transfer.summary([there, back])["mean"] == pytest.approx((there.loss + back.loss) / 2)


def test_equal_tables_lose_nothing(make_table):
    same = {"a": table_of(make_table, 13, 128), "b": table_of(make_table, 14, 128)}
    assert [x.loss for x in transfer.transfers(same)] == [0.0, 0.0]


def test_only_what_both_have_counts(make_table):
    parts = {
        "a": table_of(make_table, 13, 128, keep=0.5, seed=1),
        "b": table_of(make_table, 14, 64, keep=0.5, seed=2),
    }
    found = transfer.transfers(parts)
    shared = parts["a"].by_config.keys() & parts["b"].by_config.keys()
    assert all(0 < x.common <= len(shared) for x in found)
    assert all(0 <= x.loss < 0.2 for x in found)


def test_tables_that_no_look_up_joins_are_refused(make_table):
    far = {"a": table_of(make_table, 10, 128), "b": table_of(make_table, 16, 64)}
    with pytest.raises(TuningError, match="no entry of one of these tables"):
        transfer.transfers(far)


def test_the_command(tables, tmp_path, capsys):
    paths = []
    for name, table in tables.items():
        paths.append(tmp_path / f"{name}.json.gz")
        table.write(paths[-1])
    command = ["tune", "replay", "--transfer", *map(str, paths)]
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["pairs"] == len(told["transfers"]) == 2
    assert main(command) == 0
    assert "short.json.gz" in capsys.readouterr().out
