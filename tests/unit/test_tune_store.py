"""Entries on disk: published whole or not at all, read with patience, many writers at once."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from maskwright.autotune import store
from maskwright.autotune.entry import Entry
from maskwright.autotune.key import Bucket
from maskwright.runtime.cache import MaskwrightWarning
from maskwright.runtime.cli import main

ROOT = Path(__file__).parents[2]
WRITERS = 32
ENTRIES = 100


pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(autouse=True)
def _warnings_are_new():
    store._warn.cache_clear()


def test_published_entries_are_found(make_entry, tmp_path):
    entries = [make_entry(), make_entry(head_dim=64)]
    for entry in entries:
        path = store.publish(entry, tmp_path)
        assert path.name == f"{entry.key.name}.json"
        assert path.read_text() == entry.to_text()
    software = entries[0].key.software
    assert sorted(x.digest for x in store.user_entries(tmp_path, software)) == sorted(
        x.digest for x in entries
    )
    manifest = json.loads((path.parents[1] / "manifest.json").read_text())
    assert manifest["software"]["triton"] == "3.6.0"
    assert store.user_entries(tmp_path, replace(software, triton="3.9.0")) == []
    assert len(store.every_user_entry(tmp_path)) == 2


def test_the_last_writer_of_a_key_wins(make_entry, tmp_path):
    store.publish(make_entry(ms=2.0), tmp_path)
    store.publish(make_entry(ms=1.0), tmp_path)
    (found,) = store.every_user_entry(tmp_path)
    assert found.result.ms == 1.0


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"{}", b'{"schema": 9}', b'{"entries": [1]}', b"[]"]
)
def test_garbage_is_a_miss_and_one_warning(make_entry, tmp_path, content):
    path = store.publish(make_entry(), tmp_path)
    good = store.publish(make_entry(head_dim=64), tmp_path)
    path.write_bytes(content)
    with pytest.warns(MaskwrightWarning, match="no tuned configuration") as caught:
        found = store.every_user_entry(tmp_path)
    assert store.every_user_entry(tmp_path) == found  # without another: warnings are errors here
    assert len(caught) == 1
    assert [x.key.name for x in found] == [good.stem]


def test_a_directory_that_is_a_file(make_entry, tmp_path):
    (tmp_path / "tune").write_text("")
    with pytest.warns(MaskwrightWarning, match="cannot be kept") as caught:
        assert store.publish(make_entry(), tmp_path) is None
    assert store.publish(make_entry(), tmp_path) is None  # without another
    assert len(caught) == 1
    assert store.every_user_entry(tmp_path) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_or_read_only_disk(make_entry, tmp_path, monkeypatch, code, call):
    old = make_entry(ms=2.0)
    path = store.publish(old, tmp_path)

    def fails(*_args, **_options):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, fails)
    with pytest.warns(MaskwrightWarning, match="cannot be kept"):
        assert store.publish(make_entry(ms=1.0), tmp_path) is None
    monkeypatch.undo()
    assert path.read_text() == old.to_text()
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_what_a_killed_writer_left_is_removed_later(make_entry, tmp_path):
    folder = store.root(tmp_path) / make_entry().key.software.digest / "entries"
    folder.mkdir(parents=True)
    old, new = folder / "a.123.tmp", folder / "b.456.tmp"
    for path in (old, new):
        path.write_text("{")
    os.utime(old, (0, 0))
    store.publish(make_entry(), tmp_path)
    assert not old.exists()
    assert new.exists()  # may belong to a living writer
    assert len(store.every_user_entry(tmp_path)) == 1


HERD = """
# One process that forks the writers, so that Python starts once; it reads and kills meanwhile.
import os, random, signal, sys, time, warnings
from dataclasses import replace
from pathlib import Path
from maskwright.autotune import store
from maskwright.autotune.entry import Entry

warnings.simplefilter("error")
cache, start, logs = map(Path, sys.argv[1:4])
writers, count = map(int, sys.argv[4:6])
entry = Entry.from_text(start.read_text())


def write(writer):
    log = os.open(logs / str(writer), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for i in range(count):
        # Every second key is written by all.
        bucket = replace(entry.key.bucket, q_len=4 + i, kv_len=4 if i % 2 else 5 + writer)
        made = replace(entry, key=replace(entry.key, bucket=bucket), cost_rank=writer)
        assert store.publish(made, cache) is not None
        os.write(log, f"{made.key.name} ".encode())


alive = []
for writer in range(writers):
    child = os.fork()
    if not child:
        write(writer)
        os._exit(0)
    alive.append(child)
generator, killed, reads, codes = random.Random(0), 0, 0, []
while alive:
    if store.every_user_entry(cache) and killed < writers // 4:
        os.kill(generator.choice(alive), signal.SIGKILL)
        killed += 1
    reads += 1
    time.sleep(0.05 if killed < writers // 4 else 0.5)
    for child in list(alive):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            alive.remove(child)
            codes.append(os.waitstatus_to_exitcode(status))
print(killed, reads, *sorted(set(codes)))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_many_writers_and_random_kills(make_entry, tmp_path):
    """Goal 11: nothing that was published is lost, nothing is corrupt, readers see no error."""
    start, cache, logs = (tmp_path / name for name in ("entry.json", "cache", "logs"))
    start.write_text(make_entry().to_text())
    logs.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", HERD, *map(str, (cache, start, logs, WRITERS, ENTRIES))],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    killed, reads, *codes = map(int, done.stdout.split())
    assert killed
    assert reads
    assert codes == [-signal.SIGKILL, 0]
    # A line is written after its entry was published; that of a killed writer ends with a blank.
    published = {name for log in logs.iterdir() for name in log.read_text().split(" ")[:-1]}
    assert len(published) > ENTRIES
    files = {p.stem: p for p in cache.rglob("*.json") if p.name != store.MANIFEST}
    assert published <= set(files)
    for name, path in files.items():
        assert Entry.from_text(path.read_text()).key.name == name


def test_the_show_command(make_entry, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MASKWRIGHT_CACHE_DIR", str(tmp_path))
    assert main(["tune", "show"]) == 0
    assert "0 tuned configuration(s)" in capsys.readouterr().out
    store.publish(make_entry(bucket=Bucket(13, 13, 6, "half")), tmp_path)
    assert main(["tune", "show"]) == 0
    out = capsys.readouterr().out
    assert "64x64 w4 s3 desc" in out
    assert "1 tuned configuration(s)" in out
    assert main(["tune", "show", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["entries"]
    assert Entry.from_dict(found) == make_entry()
