"""``keepstep show``: one checkpoint, laid out."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from json import dumps, loads

from keepstep.cli.output import (
    NOTHING,
    Flag,
    age_in_words,
    age_seconds,
    bytes_in_words,
    pairs_in_words,
    print_json,
    print_table,
)
from keepstep.cli.records import check_has_manifest, find_entry, open_run
from keepstep.commit.catalog import Entry
from keepstep.commit.index import Frame
from keepstep.commit.manifest import Manifest
from keepstep.commit.pins import Pin, read_pins
from keepstep.commit.verify import read_index
from keepstep.errors import CorruptCheckpointError, ObjectNotFound
from keepstep.storage.base import Storage
from keepstep.storage.opening import open_storage


@dataclass(slots=True)
class Tensor:
    """A tensor of the checkpoint, all its chunks together."""

    fqn: str
    dtype: str | None
    shape: tuple[int, ...]
    chunks: int = 0
    size_bytes: int = 0


def show(uri: str, step: str, /, *, json: Flag = False) -> None:
    """Lay out one checkpoint: progress, metrics, versions, objects, tensors.

    Parameters
    ----------
    uri
        Where the run lives: a path or file:///path.
    step
        A step, or the full name of an attempt as `ls --all --json` prints it.
    json
        Print JSON.
    """
    storage = open_storage(uri)
    catalog = open_run(storage)
    entry = find_entry(storage, catalog.entries(), step)
    check_has_manifest(entry)
    manifest = catalog.manifest(entry.id)
    pin = read_pins(storage).get(entry.id)
    if json:
        print_json(_document(entry, manifest, pin, *_contents(storage, manifest)))
        return
    _print_summary(entry, manifest, pin)
    _print_pairs("mathematics", manifest.mathematics)
    _print_objects(manifest)
    _print_contents(*_contents(storage, manifest))


def _contents(storage: Storage, manifest: Manifest) -> tuple[list[Tensor], list[str]]:
    """Tensors by name, and the names of what is not a tensor, out of the indexes of all ranks."""
    tensors: dict[str, Tensor] = {}
    values: set[str] = set()
    for rank in range(manifest.world_size):
        for frame in _frames(storage, manifest, rank):
            if frame.kind == "value":
                values.add(frame.fqn)
                continue
            tensor = tensors.setdefault(
                frame.fqn, Tensor(frame.fqn, frame.dtype, frame.global_shape)
            )
            tensor.chunks += 1
            tensor.size_bytes += frame.data_bytes
    return [tensors[fqn] for fqn in sorted(tensors)], sorted(values)


def _frames(storage: Storage, manifest: Manifest, rank: int) -> tuple[Frame, ...]:
    try:
        return read_index(storage, manifest, rank).frames
    except ObjectNotFound as error:
        raise CorruptCheckpointError(f"{error.key} is missing", key=error.key) from error


def _document(
    entry: Entry, manifest: Manifest, pin: Pin | None, tensors: list[Tensor], values: list[str]
) -> dict[str, object]:
    return {
        "name": entry.id.name,
        "status": entry.status.value,
        "note": entry.reason,
        "pin": {"name": pin.name} if pin else None,
        "manifest": loads(manifest.to_bytes()),
        "tensors": [asdict(tensor) for tensor in tensors],
        "values": values,
    }


def _print_summary(entry: Entry, manifest: Manifest, pin: Pin | None) -> None:
    note = f": {entry.reason}" if entry.reason else ""
    pinned = f", {pin}" if pin else ""
    rows = {
        "checkpoint": str(entry.id),
        "status": f"{entry.status.value}{pinned}{note}",
        "created": f"{manifest.created} ({age_in_words(age_seconds(manifest.created))} ago)",
        "run": manifest.run,
        "parent": str(manifest.parent) if manifest.parent else NOTHING,
        "progress": pairs_in_words(manifest.progress),
        "metrics": pairs_in_words(manifest.metrics),
        "tags": " ".join(manifest.tags) or NOTHING,
        "world": str(manifest.world_size),
        "parallel": pairs_in_words(manifest.parallel),
        "versions": f"keepstep={manifest.keepstep_version} torch={manifest.torch_version}",
        "config": manifest.config_digest or NOTHING,
        "state": manifest.state_digest or NOTHING,
    }
    print_table(list(rows.items()))


def _print_pairs(title: str, values: Mapping[str, object]) -> None:
    if values:
        print(f"\n{title}")
        print_table([(name, dumps(values[name])) for name in sorted(values)], indent="  ")


def _print_objects(manifest: Manifest) -> None:
    print(f"\nobjects: {len(manifest.objects)}, {bytes_in_words(manifest.total_bytes)}")
    rows = [
        (bytes_in_words(record.size_bytes), record.file, record.digest)
        for record in manifest.objects
    ]
    print_table([("bytes", "file", "digest"), *rows], right={0}, indent="  ")


def _print_contents(tensors: list[Tensor], values: list[str]) -> None:
    total = bytes_in_words(sum(tensor.size_bytes for tensor in tensors))
    print(f"\ntensors: {len(tensors)}, {total}")
    if tensors:
        print_table(
            [("bytes", "dtype", "shape", "fqn"), *_tensor_rows(tensors)], right={0}, indent="  "
        )
    print(f"\nother values: {len(values)}")
    for fqn in values:
        print(f"  {fqn}")


def _tensor_rows(tensors: list[Tensor]) -> Iterator[tuple[str, ...]]:
    for tensor in tensors:
        shape = " x ".join(map(str, tensor.shape)) or "scalar"
        yield bytes_in_words(tensor.size_bytes), tensor.dtype or NOTHING, shape, tensor.fqn
