"""Records and names: one store, claimed by the file system."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from scow.cri import objects
from scow.cri.options import ContainerOptions, UserSpec
from scow.cri.records import Record, RecordStore
from scow.native.errors import AlreadyExists, DeadlineExceeded, InvalidArgument, NotFound, ScowError


@pytest.fixture
def store(tmp_path: Path) -> RecordStore:
    made = RecordStore(str(tmp_path / "root"), str(tmp_path / "run"))
    made.prepare()
    return made


def make(store: RecordStore, name: str, argv: tuple[str, ...] = ("true",)) -> Record:
    container_id = store.new_id()
    record = Record(
        id=container_id,
        name=name,
        created_ns=1,
        image_name="busybox",
        image_id="sha256:" + "0" * 64,
        diff_ids=(),
        argv=argv,
        env=("A=b",),
        working_dir="/",
        user=UserSpec("web", 7),
        stop_signal=15,
        labels={},
        cgroup=f"scow/{container_id}",
        options=ContainerOptions(command=argv),
    )
    with store.making(container_id):
        store.claim_name(name, container_id)
        store.write(record)
    return record


def test_a_record_comes_back_as_it_was(store: RecordStore) -> None:
    record = make(store, "web", ("sh", "-c", "echo ü"))
    assert store.read(record.id) == record


def test_what_is_found_by_what(store: RecordStore) -> None:
    record = make(store, "web")
    for text in ("web", record.id, record.id[:12], record.id[:1]):
        assert store.find(text) == record.id


@pytest.mark.parametrize("text", ["", ".", "..", "../web", "nosuch", "web/", "/etc", "we\0b"])
def test_what_is_not_found(store: RecordStore, text: str) -> None:
    make(store, "web")
    with pytest.raises((NotFound, ValueError)):
        store.find(text)


def test_an_exact_name_beats_a_prefix_and_an_ambiguous_prefix_is_told(store: RecordStore) -> None:
    first = make(store, "web")
    second = make(store, first.id[:4])
    assert store.find(first.id[:4]) == second.id
    while first.id[0] != second.id[0]:
        second = make(store, second.id[:5])
    with pytest.raises(InvalidArgument, match="ambiguous"):
        store.find(first.id[0])


def test_a_name_in_use_names_its_holder(store: RecordStore) -> None:
    record = make(store, "web")
    with pytest.raises(AlreadyExists, match=record.id[:12]):
        store.claim_name("web", "f" * 64)


def test_the_claim_of_a_dead_attempt_is_taken_over(store: RecordStore) -> None:
    store.claim_name("web", "e" * 64)
    make(store, "web")


def test_one_of_many_racers_gets_the_name(store: RecordStore) -> None:
    """Nobody lets go before all have tried: they must see a container that is being made."""
    racers = 16
    all_have_tried = Barrier(racers)

    def claim(number: int) -> bool:
        racing = RecordStore(store.root, store.run)
        container_id = f"{number:064x}"
        with racing.making(container_id):
            try:
                racing.claim_name("one", container_id)
                return True
            except AlreadyExists:
                return False
            finally:
                all_have_tried.wait(60)

    with ThreadPoolExecutor(racers) as pool:
        assert list(pool.map(claim, range(racers))).count(True) == 1


def test_a_damaged_record_is_an_error_that_says_what_to_do(store: RecordStore) -> None:
    record = make(store, "web")
    Path(store.container_dir(record.id), "record.json").write_bytes(b'{"id": 1}')
    with pytest.raises(ScowError) as caught:
        store.read(record.id)
    assert caught.value.hint is not None
    assert list(store.list()) == []


def test_discarding_frees_the_name_and_leaves_nothing(store: RecordStore) -> None:
    record = make(store, "web")
    store.discard(record.id, record.name)
    store.discard(record.id, record.name)
    assert list(store.ids()) == []
    assert os.listdir(f"{store.root}/trash") == []
    assert os.listdir(f"{store.root}/names") == []


def test_the_state_is_closed_to_others_and_closed_again(store: RecordStore) -> None:
    # CVE-2021-41091
    os.chmod(store.root, 0o755)
    store.prepare()
    assert os.stat(store.root).st_mode & 0o777 == 0o700


def test_an_argument_that_is_not_utf8_is_refused(store: RecordStore) -> None:
    with pytest.raises(InvalidArgument, match="UTF-8"):
        make(store, "web", ("\udcff",))


def test_a_lock_on_what_was_removed_meanwhile_is_no_lock(store: RecordStore) -> None:
    record = make(store, "web")
    with store.locked(record.id):
        store.discard(record.id, record.name)
    with pytest.raises(NotFound), store.locked(record.id):
        pass


def test_an_end_between_two_looks_is_an_end(
    store: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record of the end is written, and the run's directory removed, after one was looked for."""
    from scow.cri import status
    from scow.runtime.monitor import ExitRecord
    from scow.runtime.state import State

    ended = ExitRecord(9, 0x300, 3, 0, oom_killed=False, started_at=1, finished_at=2)
    found = iter((None, ended, ended))
    monkeypatch.setattr(status, "_read_exit", lambda *_: next(found))
    seen = status.read_status(store, make(store, "quick"))
    assert (seen.state, seen.exit_code) == (State.EXITED, 3)


def test_who_keeps_a_record_locked_is_told(
    store: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "LOCK_TIMEOUT_S", 0.1)
    record = make(store, "web")
    told = rf"container '{record.id[:12]}': process {os.getpid()} \('.*'\) has it, and"
    with (
        store.locked(record.id),
        pytest.raises(DeadlineExceeded, match=told),
        store.locked(record.id),
    ):
        pass
    with store.locked(record.id):
        pass
