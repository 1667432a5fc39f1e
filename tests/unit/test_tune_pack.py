"""A recorded table has its runtime tensors inside: it is read where the files of its run are gone."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace

import numpy as np
import pytest

from maskwright import patterns
from maskwright.autotune import job as jobs
from maskwright.autotune.exhaustive import Plan
from maskwright.autotune.exhaustive import record
from maskwright.autotune.job import Job
from maskwright.autotune.outcome import NoCompiler
from maskwright.autotune.pack import Packed
from maskwright.autotune.record import RecordError
from maskwright.autotune.replay import replay
from maskwright.autotune.table import Table
from maskwright.autotune.table import TableDevice
from maskwright.dsl.errors import TuningError

LENGTH = 1024
SIZES = {"batch": 1, "heads": 4, "kv_heads": 4, "q_len": LENGTH, "kv_len": LENGTH}
SIZES |= {"head_dim": 128, "value_dim": 128, "q_offset": 0}


def job_of(folder, ids):
    kind = {"op": "forward", "backend": "triton", "dtype": "bfloat16"}
    return Job.of(patterns.document(), None, {"doc_id": ids}, folder, **kind, **SIZES)


@pytest.fixture
def ids():
    return np.repeat(np.arange(4, dtype=np.int32), LENGTH // 4)[None]


@pytest.fixture
def table(make_table, tmp_path, ids):
    """Recorded by a run whose folder is gone."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    played = make_table(keep=0.5)
    played = replace(played, job=job_of(folder, ids))
    found = recorded(played, played.job)
    (folder / "tables.npz").unlink()
    folder.rmdir()
    return found


def recorded(played, job, known=None):
    device = TableDevice(played)
    compiler = NoCompiler({x: row.build for x, row in played.by_config.items()})
    plan = Plan(tuple(played.by_config), 1e9, rounds=2, known=known)
    return record(job, plan, device.start(), device, compiler)


def test_a_table_is_replayed_without_the_files_of_its_run(table, tmp_path, ids):
    path = tmp_path / "table.json.gz"
    table.write(path)
    text = gzip.decompress(path.read_bytes()).decode()
    assert str(tmp_path) not in text
    again = Table.read(path)
    assert again == table
    assert again.job.tables == ""
    np.testing.assert_array_equal(again.job.arrays()["doc_id"], ids)
    assert again.job.arrays()["doc_id"].dtype == np.int32
    assert again.job.has_tensors
    found = replay(again, "", searches=1, trials=5)
    assert found.spearman is not None
    assert sorted(x.name for x in tmp_path.iterdir()) == ["table.json.gz"]  # nothing unpacked


def test_the_same_run_goes_on_and_other_tensors_do_not(table, tmp_path, ids):
    again = recorded(table, job_of(tmp_path, ids), known=table)
    assert again.job == table.job
    with pytest.raises(TuningError, match="for something else"):
        recorded(table, job_of(tmp_path, ids * 2), known=table)


def test_tables_of_the_first_schema_are_read_and_searched_without_a_model(table, tmp_path, ids):
    path = tmp_path / "table.json.gz"
    table.write(path)
    data = json.loads(gzip.decompress(path.read_bytes()))
    data["schema"] = 1
    del data["job"]["packed"]
    data["job"]["tables"] = "/gone/tables.npz"
    path.write_bytes(gzip.compress(json.dumps(data).encode()))
    old = Table.read(path)
    assert old.rows == table.rows
    assert old.job.tables == ""
    found = replay(old, "", searches=1, trials=5)
    assert found.spearman is None
    assert recorded(table, job_of(tmp_path, ids), known=old).job == table.job


def test_large_tensors_are_left_out(tmp_path, ids, monkeypatch):
    monkeypatch.setattr(jobs, "_LONGEST", 10)
    job = job_of(tmp_path, ids)
    assert job.complete
    assert not job.lasting().complete
    assert job.lasting().arrays() == {}


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.int32).reshape(2, 3),
        np.array([], np.int64),
        np.array(1.5, np.float32),
        np.arange(6).reshape(2, 3).T,
        np.array([True, False]),
    ],
    ids=["ints", "empty", "number", "transposed", "bools"],
)
def test_arrays_come_back_from_text(array):
    found = Packed.of(array).array()
    np.testing.assert_array_equal(found, array)
    assert (found.dtype, found.shape) == (array.dtype, array.shape)


@pytest.mark.parametrize(
    "packed",
    [
        Packed("<i4", (2,), "no base64"),
        Packed("<i4", (2,), "AAAA"),
        Packed("<i4", (3,), Packed.of(np.arange(2, dtype=np.int32)).data),
        Packed("O", (2,), Packed.of(np.arange(2)).data),
        Packed("nothing", (2,), Packed.of(np.arange(2)).data),
    ],
    ids=["base64", "zlib", "shape", "objects", "dtype"],
)
def test_damaged_text_says_so(packed, table, tmp_path):
    with pytest.raises(RecordError, match="no array"):
        packed.array()
    path = tmp_path / "table.json.gz"
    replace(table, job=replace(table.job, packed={"doc_id": packed})).write(path)
    with pytest.raises(TuningError, match="no table of times"):
        Table.read(path)
