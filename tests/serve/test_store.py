"""What is kept survives; what is deleted is gone; what is damaged is named, and the rest is served on; everywhere."""

import concurrent.futures
import hashlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from headstart.errors import ConfigError, FileError, HeadstartError
from headstart.serve.database import DamagedError, StoreAwayError, StoreFullError
from headstart.serve.store import (
    AnsweredError,
    ConflictError,
    Kept,
    Once,
    Place,
    Reader,
    Store,
    now,
)

TOLD = {"name": "mine", "labels": ["a", "b"], "counts": [1, 1], "estimate": None, "warnings": []}


def kept(store, tenant="me", revision=1, **told):
    return Kept(store.new_id(), tenant, "run", "weights", revision, {**TOLD, **told}, "hash", now(), now())


@pytest.fixture
def store(place):
    found = Store(place)
    yield found
    found.close()


@pytest.fixture
def reader(place):
    return Reader(place)


@pytest.fixture
def file(tmp_path):
    """A store in a file."""
    found = Store(Place(str(tmp_path / "tasks.db")))
    yield found
    found.close()


@pytest.fixture
def two(postgres):
    """Two services at one database."""
    place = Place(postgres.empty())
    both = Store(place), Store(place)
    yield both
    for one in both:
        one.close()


def blobs(store):
    """Return what the object store has; of a database that has all itself nothing."""
    from datetime import UTC, datetime

    return [] if store.blobs is None else sum(store.blobs.older(datetime.now(UTC) + timedelta(days=1), 100), [])


def test_what_is_added_is_read_again_by_others(store, reader):
    one = kept(store, name="\U0001f984 \u0416")
    store.add(one, {"support": b"seen\0", "adapted": bytes(range(256)) * 100})
    assert store.task("me", one.id) == one and store.task("you", one.id) is None
    assert reader.part(one.id, "support", 1) == b"seen\0"
    assert reader.part(one.id, "adapted", 1) == bytes(range(256)) * 100
    assert reader.part(one.id, "support", 2) is None and reader.part(store.new_id(), "support", 1) is None


def test_tasks_are_listed_by_page_and_tenant(store):
    mine = [kept(store) for _ in range(5)]
    for one in (*mine, kept(store, "you")):
        store.add(one, {})
    assert [one.id for one in store.tasks("me", "", 3)] == [one.id for one in mine[:3]]
    assert [one.id for one in store.tasks("me", mine[2].id, 3)] == [one.id for one in mine[3:]]
    assert (store.count("me"), store.count("you"), store.count()) == (5, 1, 6)


def test_of_two_changes_of_one_revision_the_second_is_refused(store, reader):
    one = kept(store)
    store.add(one, {"support": b"1"})
    store.replace(one._replace(revision=2), {"support": b"2"})
    with pytest.raises(ConflictError):
        store.replace(one._replace(revision=2), {"support": b"3"})
    assert reader.part(one.id, "support", 2) == b"2" and reader.part(one.id, "support", 1) is None
    assert len(blobs(store)) == (store.blobs is not None), "what was replaced, and what was refused, is not kept"


def test_an_answer_is_remembered_with_what_it_answers(store):
    one = kept(store)
    body = store.add(one, {}, Once("key", b"asked", 201))
    assert store.remembered("me", "key") == (b"asked", 201, body)
    assert store.remembered("you", "key") is None
    with pytest.raises(AnsweredError):
        store.add(other := kept(store), {"support": b"1"}, Once("key", b"asked", 201))
    assert store.task("me", other.id) is None and not blobs(store)
    store.delete("me", one.id)
    assert store.remembered("me", "key") is None


def test_a_key_is_forgotten_after_a_day(store, monkeypatch):
    monkeypatch.setattr("headstart.serve.store.REMEMBERED", timedelta(hours=-1))
    store.add(kept(store), {}, Once("key", b"asked", 201))
    store.sweep()
    assert store.remembered("me", "key") is None and store.count() == 1


def test_there_is_room_until_there_is_none(store):
    for count in range(3):
        assert store.has_room("me", 3) and store.has_room("you", 1), count
        store.add(one := kept(store), {})
    assert not store.has_room("me", 3)
    store.delete("me", one.id)
    assert store.has_room("me", 3)


def test_what_is_deleted_is_in_no_row_and_no_blob(store, reader):
    one, other = kept(store), kept(store)
    for task in (one, other):
        store.add(task, {"support": b"1", "adapted": b"2"}, Once(task.id, b"asked", 201))
    assert len(blobs(store)) == (4 if store.blobs else 0)
    assert not store.delete("you", one.id) and store.delete("me", one.id) and not store.delete("me", one.id)
    assert store.task("me", one.id) is None and reader.part(one.id, "support", 1) is None
    rows = [row for name in ("tasks", "parts", "answers") for row in store.database.rows(f"SELECT * FROM {name}")]
    assert one.id not in str(rows) and other.id in str(rows)
    assert len(blobs(store)) == (2 if store.blobs else 0) and reader.part(other.id, "support", 1) == b"1"


def test_what_is_deleted_is_in_no_file(file):
    one, secret = kept(file, name="a name to forget"), b"what nobody is to see again" * 100
    file.add(one, {"support": secret})
    file.replace(one._replace(revision=2), {"support": secret[::-1]})
    assert file.delete("me", one.id)
    files = b"".join(path.read_bytes() for path in Path(file.where).parent.iterdir())
    assert secret[:27] not in files and secret[::-1][:27] not in files and b"a name to forget" not in files


def test_a_damaged_part_is_named_and_others_are_read(store, reader):
    one, other = kept(store), kept(store)
    for task in (one, other):
        store.add(task, {"support": task.id.encode() * 3000})
    ((place,),) = store.database.rows("SELECT place FROM parts WHERE task = ?", (one.id,))
    if place is not None:
        store.blobs.delete([place])
    else:
        with store.database.writing() as execute:
            execute("UPDATE parts SET data = ? WHERE task = ?", (b"?" + one.id.encode() * 3000, one.id))
    with pytest.raises(DamagedError, match=one.id):
        reader.part(one.id, "support", 1)
    assert reader.part(other.id, "support", 1) is not None


def test_a_damaged_file_is_told(file):
    one = kept(file)
    file.add(one, {"support": one.id.encode() * 3000})
    file.close()
    data = Path(file.where).read_bytes()
    place = data.index(one.id.encode() * 2)
    Path(file.where).write_bytes(data[:place] + b"?" + data[place + 1 :])
    with pytest.raises(DamagedError, match=one.id):
        Reader(Place(file.where)).part(one.id, "support", 1)


def test_blobs_that_no_row_knows_of_are_swept_when_they_are_old(store, reader):
    store.add(one := kept(store), {"support": b"1"})
    if store.blobs is None:
        assert store.sweep(timedelta(hours=-1)) == 0
        return
    store.blobs.put(b"of a service that died before it wrote the row")
    assert store.sweep() == 0, "it may be of a task that is being kept now"
    assert store.sweep(timedelta(hours=-1)) == 1 and len(blobs(store)) == 1
    assert reader.part(one.id, "support", 1) == b"1"


def test_a_part_in_an_object_store_is_not_read_without_one(tmp_path):
    pytest.importorskip("obstore", reason="the extra blobs is not installed")
    place = Place(str(tmp_path / "tasks.db"), (tmp_path / "blobs").as_uri())
    store = Store(place)
    store.add(one := kept(store), {"support": b"1"})
    with pytest.raises(FileError, match="--blobs"):
        Reader(place._replace(blobs=None)).part(one.id, "support", 1)
    store.close()


def test_the_folder_of_blobs_is_its_owners_alone(tmp_path):
    pytest.importorskip("obstore", reason="the extra blobs is not installed")
    Store(Place(str(tmp_path / "tasks.db"), (tmp_path / "blobs").as_uri())).close()
    assert (tmp_path / "blobs").stat().st_mode & 0o77 == 0


@pytest.mark.parametrize("url", ["http://example.org/a", "s3://", "s3://key:secret@bucket/a", "file:///", "blobs"])
def test_what_is_no_place_of_blobs_is_refused_without_being_shown(url, tmp_path):
    pytest.importorskip("obstore", reason="the extra blobs is not installed")
    with pytest.raises(ConfigError, match="s3://BUCKET") as told:
        Store(Place(str(tmp_path / "tasks.db"), url))
    assert "secret" not in str(told.value)


def test_an_object_store_that_does_not_answer_is_told(tmp_path, monkeypatch):
    pytest.importorskip("obstore", reason="the extra blobs is not installed")
    for name, value in (
        ("ENDPOINT_URL", "http://127.0.0.1:9"),
        ("ACCESS_KEY_ID", "a"),
        ("SECRET_ACCESS_KEY", "hidden"),
    ):
        monkeypatch.setenv(f"AWS_{name}", value)
    with pytest.raises(StoreAwayError, match="s3://bucket") as told:
        Store(Place(str(tmp_path / "tasks.db"), "s3://bucket/a"))
    assert "hidden" not in str(told.value)


def test_what_is_no_store_is_refused(tmp_path):
    (tmp_path / "notes.db").write_text("not a database" * 1000)
    with pytest.raises(FileError, match="no store of a service"):
        Store(Place(str(tmp_path / "notes.db")))
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE mine (a)")
    other.close()
    with pytest.raises(FileError, match="no store of format"):
        Store(Place(str(tmp_path / "other.db")))
    with pytest.raises(FileError):
        Store(Place(str(tmp_path / "notes.db" / "below.db")))


def test_a_full_disk_loses_nothing(file):
    store = file
    one = kept(store)
    store.add(one, {"support": b"1"})
    (pages,) = store.database._connection.execute("PRAGMA page_count").fetchone()
    store.database._connection.execute(f"PRAGMA max_page_count={pages + 2}")
    with pytest.raises(StoreFullError, match="make room"):
        store.add(kept(store), {"support": bytes(100_000)})
    assert [found.id for found in store.tasks("me", "", 9)] == [one.id]
    store.database._connection.execute("PRAGMA max_page_count=100000")
    store.add(kept(store), {"support": bytes(100_000)})
    assert store.count() == 2


ON_A_FULL_DISK = """
import os, sys
from pathlib import Path
from headstart.serve.database import StoreFullError
from headstart.serve.store import Kept, Place, Store, now
from headstart.serve.tokens import make_token
folder, size = Path(sys.argv[1]), int(sys.argv[2])
store = Store(Place(str(folder / "tasks.db")))
token = make_token(store, "me", "me", ["adapt"], None).split("_")[1]
def kept():
    return Kept(store.new_id(), "me", "run", "w", 1, {"name": None}, "hash", now(), now())
made = [kept() for _ in range(4)]
for number, one in enumerate(made):
    store.add(one, {"support": os.urandom(size), "adapted": b"secret %d" % number * (size // 8)})
store.close()
store = Store(Place(str(folder / "tasks.db")))
other = os.open(folder / "other", os.O_WRONLY | os.O_CREAT)
try:
    while True:
        os.write(other, bytes(4096))
except OSError:
    pass
try:
    store.add(kept(), {"support": bytes(9 * size)})
    sys.exit("the disk is not full")
except StoreFullError as error:
    assert "deleted" in str(error)
assert store.revoke(token)
store.sweep()
for number, one in enumerate(made):
    assert store.delete("me", one.id)
    assert not any(b"secret %d" % number in path.read_bytes() for path in folder.glob("tasks.db*"))
    assert store.count() == 3 - number
"""


@pytest.mark.parametrize("size", [50_000, 2_000_000])
def test_on_a_full_disk_tasks_are_deleted_and_tokens_revoked(tmp_path, size):
    mount = f"mount -t tmpfs -o size=60m tmpfs {tmp_path}"
    if (
        not shutil.which("unshare")
        or subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True).returncode
    ):
        pytest.skip("no disk can be made here that gets full")
    words = f'{mount} && exec "$0" -c "$1" {tmp_path} {size}'
    found = subprocess.run(["unshare", "-rm", "sh", "-c", words, sys.executable, ON_A_FULL_DISK], capture_output=True)
    assert found.returncode == 0, found.stderr.decode()


WRITES = """
import sys
from headstart.serve.store import Kept, Place, Store, now
store = Store(Place(*sys.argv[1:]))
while True:
    one = Kept(store.new_id(), "me", "run", "w", 1, {"name": None}, "hash", now(), now())
    store.add(one, {"support": one.id.encode() * 1000})
    print(one.id, flush=True)
"""


def test_what_was_acknowledged_survives_kill_9(place):
    words = [sys.executable, "-c", WRITES, *(part for part in place if part is not None)]
    told = []
    for _ in range(3):
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as writer:
            told += [writer.stdout.readline().strip() for _ in range(10)]
            os.kill(writer.pid, signal.SIGKILL)
            told += [line.strip() for line in writer.stdout if line.endswith("\n")]
    store, reader = Store(place), Reader(place)
    there = [one.id for one in store.tasks("me", "", 100_000)]
    assert len(told) >= 30 and set(told) <= set(there)
    assert all(reader.part(one, "support", 1) == one.encode() * 1000 for one in there)
    store.sweep(timedelta(hours=-1))
    assert len(blobs(store)) == (len(there) if store.blobs else 0)
    store.close()


def test_what_was_acknowledged_survives_a_crash_of_the_database(postgres):
    store = Store(Place(postgres.empty()))
    made = [kept(store) for _ in range(20)]
    for one in made:
        store.add(one, {"support": one.id.encode()})
    postgres.stop(crash=True)
    try:
        with pytest.raises(StoreAwayError, match="nothing is lost") as told:
            store.task("me", made[0].id)
        assert "postgres" not in str(told.value).lower()
        with pytest.raises(StoreAwayError):
            store.add(kept(store), {})
        with pytest.raises(StoreAwayError, match="cannot be reached"):
            Store(Place(postgres.url("tasks")))
    finally:
        postgres.start()
    # the connections of before are none any more, which nobody who asks is to notice
    store.add(kept(store), {"support": b"1"})
    assert store.task("me", made[0].id) == made[0] and store.count() == 21
    store.close()


def test_two_services_that_make_the_tables_at_once_agree(postgres):
    place = Place(postgres.empty())
    with concurrent.futures.ThreadPoolExecutor(4) as several:
        stores = list(several.map(lambda _: Store(place), range(4)))
    stores[0].add(one := kept(stores[0]), {})
    assert all(store.task("me", one.id) == one for store in stores)
    for store in stores:
        store.close()


def test_what_one_service_changes_or_deletes_the_other_sees(two):
    here, there = two
    here.add(one := kept(here), {"support": b"1"})
    assert there.task("me", one.id) == one
    there.replace(new := one._replace(revision=2), {"support": b"2"})
    assert here.task("me", one.id) == new
    with pytest.raises(ConflictError):
        here.replace(new, {"support": b"3"})
    assert there.delete("me", one.id) and here.task("me", one.id) is None
    with pytest.raises(ConflictError):
        here.replace(new._replace(revision=3), {"support": b"3"})


def test_of_many_changes_at_once_one_is_made(two):
    here, there = two
    here.add(one := kept(here), {"support": b"0"})

    def change(number):
        try:
            two[number % 2].replace(one._replace(revision=2), {"support": bytes([number])})
        except ConflictError:
            return None
        return number

    with concurrent.futures.ThreadPoolExecutor(8) as several:
        (won,) = [number for number in several.map(change, range(8)) if number is not None]
    place = Place(here.database._url)
    assert Reader(place).part(one.id, "support", 2) == bytes([won])


def test_of_two_requests_with_one_key_at_once_one_is_done(two):
    def ask(number):
        store = two[number % 2]
        try:
            return store.add(kept(store), {}, Once("key", b"asked", 201))
        except AnsweredError:
            return None

    with concurrent.futures.ThreadPoolExecutor(6) as several:
        (body,) = [found for found in several.map(ask, range(6)) if found is not None]
    assert two[0].count() == 1 and two[1].remembered("me", "key").body == body


def test_ids_of_several_services_differ_and_sort_by_bytes(two):
    made = [store.new_id() for _ in range(50) for store in two]
    assert len(set(made)) == 100
    for number, one in enumerate(made):
        two[number % 2].add(kept(two[0])._replace(id=one), {})
    assert [one.id for one in two[0].tasks("me", "", 1000)] == sorted(made)


def test_a_database_that_is_no_store_is_refused(postgres):
    postgres.sql("CREATE SCHEMA other; CREATE TABLE other.tasks (mine text)")
    with pytest.raises(FileError, match="other tables"):
        Store(Place(postgres.url("other")))
    assert postgres.sql("SELECT count(*) FROM pg_tables WHERE schemaname = 'other'") == "1"
    postgres.sql("CREATE SCHEMA later")
    Store(Place(postgres.url("later"))).close()
    postgres.sql("UPDATE later.store_format SET version = 99")
    with pytest.raises(FileError, match="format"):
        Store(Place(postgres.url("later")))


def test_a_database_that_acknowledges_too_early_is_refused(postgres):
    with pytest.raises(ConfigError, match="synchronous_commit"):
        Store(Place(postgres.url("public", "synchronous_commit=off")))
    assert postgres.sql("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == "0"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://anna:hidden@127.0.0.1:9/tasks",
        "postgresql://anna:hid%64en@127.0.0.1:9/tasks?application_name=hidden",
        "postgresql://anna:hidden@[::1/tasks",
        "postgresql://anna:hidden@h:port/tasks",
        "postgresql://anna:hidden@h/tasks?hidden=hidden",
        "postgresql://anna@h/%zzhidden",
        "mysql://anna:hidden@h/tasks",
    ],
)
def test_no_message_has_a_password(url):
    pytest.importorskip("psycopg", reason="the extra postgres is not installed")
    for reading in (Store, lambda place: Reader(place).part("a", "b", 1)):
        with pytest.raises(HeadstartError) as told:
            reading(Place(url))
        chain, error = "", told.value
        while error is not None:
            chain += f"{error!r} {error}"
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        assert "hidden" not in chain, chain


def test_a_part_is_what_its_sum_says(store):
    store.add(one := kept(store), {"support": b"seen"})
    ((digest,),) = store.database.rows("SELECT sha256 FROM parts WHERE task = ?", (one.id,))
    assert digest == hashlib.sha256(b"seen").digest()
