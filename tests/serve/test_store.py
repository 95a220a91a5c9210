"""What is kept survives; what is deleted is gone; what is damaged is named, and the rest is served on."""

import os
import signal
import sqlite3
import subprocess
import sys

import pytest

from headstart.errors import FileError
from headstart.serve.store import ConflictError, DamagedError, Kept, Once, Reader, Store, StoreFullError, now

TOLD = {"name": "mine", "labels": ["a", "b"], "counts": [1, 1], "estimate": None, "warnings": []}


def kept(store, tenant="me", revision=1, **told):
    return Kept(store.new_id(), tenant, "run", "weights", revision, {**TOLD, **told}, "hash", now(), now())


@pytest.fixture
def store(tmp_path):
    found = Store(tmp_path / "tasks.db")
    yield found
    found.close()


def test_what_is_added_is_read_again_by_others(store):
    one = kept(store)
    store.add(one, {"support": b"seen", "adapted": b"known"})
    assert store.task("me", one.id) == one and store.task("you", one.id) is None
    assert Reader(store.path).part(one.id, "support", 1) == b"seen"
    assert Reader(store.path).part(one.id, "support", 2) is None


def test_tasks_are_listed_by_page_and_tenant(store):
    mine = [kept(store) for _ in range(5)]
    for one in (*mine, kept(store, "you")):
        store.add(one, {})
    assert [one.id for one in store.tasks("me", "", 3)] == [one.id for one in mine[:3]]
    assert [one.id for one in store.tasks("me", mine[2].id, 3)] == [one.id for one in mine[3:]]
    assert (store.count("me"), store.count("you"), store.count()) == (5, 1, 6)


def test_of_two_changes_of_one_revision_the_second_is_refused(store):
    one = kept(store)
    store.add(one, {"support": b"1"})
    store.replace(one._replace(revision=2), {"support": b"2"})
    with pytest.raises(ConflictError):
        store.replace(one._replace(revision=2), {"support": b"3"})
    assert Reader(store.path).part(one.id, "support", 2) == b"2"


def test_an_answer_is_remembered_with_what_it_answers(store):
    one = kept(store)
    body = store.add(one, {}, Once("key", b"asked", 201))
    assert store.remembered("me", "key") == (b"asked", 201, body)
    assert store.remembered("you", "key") is None
    store.delete("me", one.id)
    assert store.remembered("me", "key") is None


def test_what_is_deleted_is_in_no_file(store):
    one, secret = kept(store, name="a name to forget"), b"what nobody is to see again" * 100
    store.add(one, {"support": secret})
    store.replace(one._replace(revision=2), {"support": secret[::-1]})
    assert not store.delete("you", one.id) and store.delete("me", one.id)
    files = b"".join(path.read_bytes() for path in store.path.parent.iterdir())
    assert secret[:27] not in files and secret[::-1][:27] not in files and b"a name to forget" not in files


def test_a_damaged_part_is_named_and_others_are_read(store):
    one, other = kept(store), kept(store)
    for task in (one, other):
        store.add(task, {"support": task.id.encode() * 3000})
    store.close()
    data = store.path.read_bytes()
    place = data.index(one.id.encode() * 2)
    store.path.write_bytes(data[:place] + b"?" + data[place + 1 :])
    reader = Reader(store.path)
    with pytest.raises(DamagedError, match=one.id):
        reader.part(one.id, "support", 1)
    assert reader.part(other.id, "support", 1) is not None


def test_what_is_no_store_is_refused(tmp_path):
    (tmp_path / "notes.db").write_text("not a database" * 1000)
    with pytest.raises(FileError, match="no store of a service"):
        Store(tmp_path / "notes.db")
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE mine (a)")
    other.close()
    with pytest.raises(FileError, match="no store of format"):
        Store(tmp_path / "other.db")
    with pytest.raises(FileError):
        Store(tmp_path / "notes.db" / "below.db")


def test_a_full_disk_loses_nothing(store):
    one = kept(store)
    store.add(one, {"support": b"1"})
    (pages,) = store._connection.execute("PRAGMA page_count").fetchone()
    store._connection.execute(f"PRAGMA max_page_count={pages + 2}")
    with pytest.raises(StoreFullError, match="make room"):
        store.add(kept(store), {"support": bytes(100_000)})
    assert [found.id for found in store.tasks("me", "", 9)] == [one.id]
    store._connection.execute("PRAGMA max_page_count=100000")
    store.add(kept(store), {"support": bytes(100_000)})
    assert store.count() == 2


WRITES = """
import sys
from pathlib import Path
from headstart.serve.store import Kept, Store, now
store = Store(Path(sys.argv[1]))
while True:
    one = Kept(store.new_id(), "me", "run", "w", 1, {"name": None}, "hash", now(), now())
    store.add(one, {"support": one.id.encode() * 1000})
    print(one.id, flush=True)
"""


def test_what_was_acknowledged_survives_kill_9(tmp_path):
    path, told = tmp_path / "tasks.db", []
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", WRITES, path], stdout=subprocess.PIPE, text=True) as writer:
            told += [writer.stdout.readline().strip() for _ in range(10)]
            os.kill(writer.pid, signal.SIGKILL)
            told += [line.strip() for line in writer.stdout if line.endswith("\n")]
    store, reader = Store(path), Reader(path)
    there = [one.id for one in store.tasks("me", "", 100_000)]
    assert len(told) >= 30 and set(told) <= set(there)
    assert all(reader.part(one, "support", 1) == one.encode() * 1000 for one in there)
    store.close()
