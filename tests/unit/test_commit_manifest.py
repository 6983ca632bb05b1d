"""The commit record: canonical, self-digesting, versioned."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepstep.commit import canonical
from keepstep.commit.layout import CheckpointId
from keepstep.commit.manifest import Manifest, ObjectRecord
from keepstep.errors import CorruptCheckpointError, InternalError, UnsupportedFormatError

MANIFEST = Manifest(
    run="a1b2c3",
    step=1200,
    generation=7,
    attempt="3f9cab12cd34",
    created="2026-01-02T03:04:05.678+00:00",
    keepstep_version="0.1.0",
    torch_version="2.13.0",
    world_size=2,
    parent=CheckpointId(1100, 6, "00aa11bb22cc"),
    progress={"samples": 28800, "tokens": 1843200},
    metrics={"loss": 2.5},
    tags=("best",),
    mathematics={"seed": 0},
    state_digest="crc64:0123456789abcdef",
    objects=(
        ObjectRecord("__1_0.distcp", 10, "crc32c:00000001"),
        ObjectRecord("__0_0.distcp", 20, "crc32c:00000002"),
        ObjectRecord("__0.index.json", 5, "sha256:aa"),
        ObjectRecord("__1.index.json", 5, "sha256:bb"),
    ),
)


def test_a_manifest_survives_writing_and_reading() -> None:
    copy = Manifest.from_bytes(MANIFEST.to_bytes(), "key")
    assert copy.to_bytes() == MANIFEST.to_bytes()
    assert copy.id == CheckpointId(1200, 7, "3f9cab12cd34")
    assert copy.parent == MANIFEST.parent
    assert copy.total_bytes == 40
    assert sorted(r.file for r in copy.objects) == sorted(r.file for r in MANIFEST.objects)


def test_the_order_of_objects_does_not_matter() -> None:
    turned = dataclasses.replace(MANIFEST, objects=MANIFEST.objects[::-1])
    assert turned.to_bytes() == MANIFEST.to_bytes()


def test_a_person_can_read_it() -> None:
    document = json.loads(MANIFEST.to_bytes())
    assert document["step"] == 1200
    assert document["format"] == canonical.FORMAT_VERSION
    assert document["parent"] == "000000001100-g000006-00aa11bb22cc"


@given(st.data())
def test_any_changed_byte_is_noticed(draw: st.DataObject) -> None:
    data = bytearray(MANIFEST.to_bytes())
    place = draw.draw(st.integers(0, len(data) - 1))
    data[place] ^= draw.draw(st.integers(1, 255))
    with pytest.raises(CorruptCheckpointError):
        Manifest.from_bytes(bytes(data), "key")


@pytest.mark.parametrize("length", [0, 1, 100, -1, -2])
def test_a_torn_manifest_is_noticed(length: int) -> None:
    data = MANIFEST.to_bytes()[:length]
    with pytest.raises(CorruptCheckpointError):
        Manifest.from_bytes(data, "key")


def test_a_newer_format_is_refused_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as future:
        future.setattr(canonical, "FORMAT_VERSION", canonical.FORMAT_VERSION + 1)
        data = MANIFEST.to_bytes()
    with pytest.raises(UnsupportedFormatError, match="upgrade keepstep"):
        Manifest.from_bytes(data, "key")


def test_a_format_that_only_seems_newer_is_damage() -> None:
    data = MANIFEST.to_bytes().replace(b'"format": 1', b'"format": 9')
    with pytest.raises(CorruptCheckpointError):
        Manifest.from_bytes(data, "key")


def test_a_document_of_another_kind_is_not_a_manifest() -> None:
    with pytest.raises(CorruptCheckpointError, match="not a manifest"):
        Manifest.from_bytes(canonical.seal({"run": "x"}), "key")


def test_every_rank_must_have_an_index() -> None:
    with pytest.raises(InternalError):
        dataclasses.replace(MANIFEST, objects=MANIFEST.objects[:3])


def test_nan_never_gets_into_a_manifest() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        dataclasses.replace(MANIFEST, metrics={"loss": float("nan")}).to_bytes()
