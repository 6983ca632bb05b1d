"""Directory mode: folders that other frameworks write, committed and brought back."""

import errno
import os
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from models import open_session

import keepstep
from keepstep.checkpoint.staging import StagedContents
from keepstep.commit.catalog import Catalog, Status
from keepstep.commit.verify import verify_checkpoint
from keepstep.errors import ConfigError, StateMismatchError
from keepstep.storage.local import LocalStorage
from rank_processes import RunRanks

FILES = {
    "config.json": b'{"layers": 3}',
    "rng state (1).pth": os.urandom(300),
    "empty": b"",
    "deep/er/model.bin": os.urandom(300_000),
}


def write(directory: Path, files: dict[str, bytes] = FILES) -> Path:
    for name, data in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)
    return directory


def content(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def save(rank: int, uri: str, folder: str, step: int, **options: Any) -> str:
    with open_session(uri, **options) as session:
        session.fetch(f"{folder}-fetched")
        return session.save_dir(folder, step=step, val_loss=0.5).committed().name


def fetch(rank: int, uri: str, to: str) -> Path | None:
    with open_session(uri) as session:
        found = session.fetch(to)
        assert session.step == (session.latest.step if session.latest else 0)
        return found


@pytest.mark.parametrize("mode", ["async", "overlap"])
def test_files_may_change_once_a_folder_is_handed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    has_changed = threading.Event()
    copy = StagedContents.copy_unchanged

    def late(contents: StagedContents, *arguments: Any) -> None:
        assert has_changed.wait(60)
        copy(contents, *arguments)

    monkeypatch.setattr(StagedContents, "copy_unchanged", late)
    folder, uri = write(tmp_path / "out"), str(tmp_path / "run")
    with open_session(uri, mode=mode) as session:
        session.fetch(tmp_path / "in")
        save = session.save_dir(folder, step=1)
        for name, data in FILES.items():
            with (folder / name).open("r+b") as file:  # in place: a mapping sees it
                file.write(bytes(len(data)))
        has_changed.set()
        save.committed()
    found = fetch(0, uri, str(tmp_path / "in"))
    assert found is not None
    assert content(found) == FILES


@pytest.mark.parametrize(("ranks", "others"), [(1, 1), (3, 2)])
@pytest.mark.parametrize("mode", ["async", "sync"])
def test_a_folder_comes_back_byte_for_byte(
    run_ranks: RunRanks, tmp_path: Path, ranks: int, others: int, mode: str
) -> None:
    folder, uri = write(tmp_path / "out"), str(tmp_path / "run")
    names = run_ranks(ranks, save_in_mode, uri, str(folder), mode)
    places = run_ranks(others, fetch, uri, str(tmp_path / "scratch"))
    assert places == [tmp_path / "scratch" / names[0]] * others
    assert content(places[0]) == FILES
    assert [path.name for path in (tmp_path / "scratch").iterdir()] == [names[0]]


def save_in_mode(rank: int, uri: str, folder: str, mode: str) -> str:
    return save(rank, uri, folder, 100, mode=mode)


def test_it_is_a_checkpoint_like_any_other(run_ranks: RunRanks, tmp_path: Path) -> None:
    folder, uri = write(tmp_path / "out"), str(tmp_path / "run")
    run_ranks(2, save, uri, str(folder), 100)
    storage = LocalStorage(uri)
    (entry,) = Catalog(storage).entries()
    assert (entry.id.step, entry.status) == (100, Status.COMMITTED)
    manifest = Catalog(storage).manifest(entry.id)
    assert manifest.metrics == {"val_loss": 0.5}
    assert verify_checkpoint(storage, entry.id) == []
    shards = [r.size_bytes for r in manifest.objects if r.file.endswith(".distcp")]
    assert max(shards) < 0.7 * sum(shards), "both ranks wrote"


def test_stock_dcp_reads_the_files(run_ranks: RunRanks, tmp_path: Path) -> None:
    folder, uri = write(tmp_path / "out"), str(tmp_path / "run")
    ((name,),) = [run_ranks(1, save, uri, str(folder), 100)]
    data = torch.empty(len(FILES["config.json"]), dtype=torch.uint8)
    dcp.load({"files.config.json": data}, checkpoint_id=tmp_path / "run" / "steps" / name)
    assert bytes(data.numpy()) == FILES["config.json"]


def test_a_fresh_run_has_no_folder(run_ranks: RunRanks, tmp_path: Path) -> None:
    assert run_ranks(1, fetch, str(tmp_path / "run"), str(tmp_path / "to")) == [None]


def test_damage_falls_back_to_the_folder_before(run_ranks: RunRanks, tmp_path: Path) -> None:
    uri = str(tmp_path / "run")
    first = write(tmp_path / "one")
    second = write(tmp_path / "two", {"config.json": b"newer"})
    run_ranks(2, save, uri, str(first), 100)
    (name, _) = run_ranks(2, save, uri, str(second), 200)
    shard = max(
        (tmp_path / "run" / "steps" / name).glob("*.distcp"), key=lambda p: p.stat().st_size
    )
    data = bytearray(shard.read_bytes())
    data[data.index(b"new")] ^= 1
    shard.write_bytes(data)
    places = run_ranks(2, fetch, uri, str(tmp_path / "scratch"))
    assert content(places[0]) == FILES
    assert Catalog(LocalStorage(uri)).entries()[1].status is Status.QUARANTINED


def test_files_of_one_name_must_be_the_same_on_all_ranks(
    run_ranks: RunRanks, tmp_path: Path
) -> None:
    def refused(rank: int) -> str:
        mine = write(tmp_path / f"node-{rank}", {"same": b"x", "rank": bytes([rank])})
        with open_session(str(tmp_path / "run")) as session:
            session.fetch(tmp_path / "scratch")
            with pytest.raises(ConfigError) as caught:
                session.save_dir(mine, step=1)
        return str(caught.value)

    messages = run_ranks(2, refused)
    assert len(set(messages)) == 1
    assert messages[0].startswith("rank is another file on rank 0 than on rank 1")


def test_nodes_may_have_files_of_their_own(run_ranks: RunRanks, tmp_path: Path) -> None:
    def save_own(rank: int) -> None:
        files = {"shared": b"all", f"rank-{rank}": os.urandom(100)}
        mine = write(tmp_path / f"node-{rank}", files)
        with open_session(str(tmp_path / "run")) as session:
            session.fetch(tmp_path / "scratch")
            session.save_dir(mine, step=1).committed()

    run_ranks(2, save_own)
    ((place,),) = [run_ranks(1, fetch, str(tmp_path / "run"), str(tmp_path / "to"))]
    assert content(place) == content(tmp_path / "node-0") | content(tmp_path / "node-1")


def test_rubbish_is_refused_by_name(tmp_path: Path) -> None:
    with open_session(str(tmp_path / "run")) as session:
        with pytest.raises(ConfigError, match="fetch"):
            session.save_dir(tmp_path, step=1)
        session.fetch(tmp_path / "scratch")
        with pytest.raises(ConfigError, match="no files"):
            session.save_dir(tmp_path / "absent", step=1)
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ConfigError, match="pipe"):
            session.save_dir(tmp_path, step=1)
        with pytest.raises(ConfigError, match="once"):
            session.fetch(tmp_path / "scratch")


def test_folders_and_objects_do_not_mix(run_ranks: RunRanks, tmp_path: Path) -> None:
    folder, uri = write(tmp_path / "out"), str(tmp_path / "run")
    run_ranks(1, save, uri, str(folder), 100)
    with pytest.raises(StateMismatchError, match=r"files\.config\.json"):  # noqa: SIM117
        with open_session(uri) as session:
            session.track(model=torch.nn.Linear(1, 1)).restore()
    other = str(tmp_path / "other")
    with open_session(other) as session:
        session.track(model=torch.nn.Linear(1, 1)).restore()
        session.tick()
    with pytest.raises(StateMismatchError, match=r"model\.weight"):  # noqa: SIM117
        with open_session(other) as session:
            session.fetch(tmp_path / "scratch")


def test_the_loop_may_count_its_steps_by_tick(run_ranks: RunRanks, tmp_path: Path) -> None:
    folder, uri = write(tmp_path / "out"), str(tmp_path / "run")
    with keepstep.open(uri) as session:
        session.fetch(tmp_path / "scratch")
        for _ in range(3):
            session.save_dir(folder, step=session.step + 1).committed()
    assert session.latest is not None
    assert session.latest.step == 3


def test_a_tick_saves_nothing_beside_the_folders(tmp_path: Path) -> None:
    folder, uri = write(tmp_path / "out"), str(tmp_path / "run")
    with keepstep.open(uri, every=1) as session:
        session.fetch(tmp_path / "scratch")
        session.tick()
        session.save_dir(folder).committed()
        session.tick()
        with pytest.raises(ConfigError, match="save_dir"):
            session.save()
    with keepstep.open(uri) as session:
        assert session.fetch(tmp_path / "scratch") is not None
        assert session.step == 1


def test_a_folder_that_is_saved_after_the_stop_counts(tmp_path: Path) -> None:
    folder = write(tmp_path / "out")
    with keepstep.open(str(tmp_path / "run")) as session:
        session.fetch(tmp_path / "scratch")
        session.request_stop("enough")
        stop = session.tick()
        assert stop is not None
        assert not stop.is_committed
        session.save_dir(folder)
    assert session.stopped is not None
    assert session.stopped.is_committed


def test_a_session_that_restored_keeps_no_folders(tmp_path: Path) -> None:
    with keepstep.open(str(tmp_path / "run")) as session:
        session.restore()
        with pytest.raises(ConfigError, match="fetch"):
            session.save_dir(tmp_path)


def save_unreadable(rank: int, uri: str, folder: str, *, is_listed: bool) -> str:
    """On rank 1 there is a file that cannot be opened, or of which nothing can be learned."""
    mine = write(Path(folder) / str(rank))
    with pytest.MonkeyPatch.context() as patch, open_session(uri) as session:
        session.fetch(f"{folder}-fetched")
        if rank == 1:
            patch.setattr(Path, "open" if is_listed else "is_file", _denied)
        with pytest.raises(ConfigError) as caught:
            session.save_dir(mine, step=1)
        patch.undo()
        session.save_dir(write(Path(folder) / "shared", {"note": b"x"}), step=1).committed()
    return str(caught.value)


def _denied(path: Path, *_: Any, **__: Any) -> Any:
    raise PermissionError(errno.EACCES, "Permission denied", str(path))


@pytest.mark.parametrize("is_listed", [True, False])
def test_a_file_that_one_rank_cannot_read_is_named_on_all(
    run_ranks: RunRanks, tmp_path: Path, is_listed: bool
) -> None:
    call = partial(save_unreadable, is_listed=is_listed)
    errors = run_ranks(2, call, str(tmp_path / "run"), str(tmp_path / "out"))
    assert errors[0] == errors[1]
    assert "Permission denied" in errors[0]
    assert str(tmp_path / "out" / "1") in errors[0]
