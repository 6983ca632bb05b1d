"""Checkpoints that stock DCP wrote: read without executing anything from them."""

import io
import pickle
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata

from keepstep.commit.layout import METADATA
from keepstep.errors import CorruptCheckpointError, NoCheckpointError

_ALLOWED = {
    "torch.distributed.checkpoint.metadata": {
        "Metadata",
        "MetadataIndex",
        "TensorStorageMetadata",
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "TensorProperties",
        "StorageMeta",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
    "collections": {"OrderedDict"},
}

_PATHS = {"PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"}


class StockReader(FileSystemReader):
    """DCP's own reader, with its metadata unpickled by a list of known classes.

    Chunks are read by ``torch.load(weights_only=True)``, as DCP does; it has no checksums to
    verify.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._metadata_path = path / METADATA

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """*Raises:* ``NoCheckpointError``, ``CorruptCheckpointError``."""
        try:
            metadata = _MetadataUnpickler(io.BytesIO(self._metadata_path.read_bytes())).load()
        except FileNotFoundError:
            raise NoCheckpointError(
                f"{self._metadata_path.parent} is no DCP checkpoint: it has no {METADATA}"
            ) from None
        except Exception as error:  # a pickle can fail in any way; all of it means the same here
            raise CorruptCheckpointError(
                f"{self._metadata_path} cannot be read: {error}"
            ) from error
        if not isinstance(metadata, Metadata):
            raise CorruptCheckpointError(f"{self._metadata_path} holds no DCP metadata")
        return metadata


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        if module_name in ("pathlib", "pathlib._local") and global_name in _PATHS:
            return PurePosixPath  # DCP notes where it wrote to, on whatever system that was
        is_dtype = module_name == "torch" and isinstance(
            getattr(torch, global_name, None), torch.dtype
        )
        if is_dtype or global_name in _ALLOWED.get(module_name, ()):
            return super().find_class(module_name, global_name)
        msg = f"{module_name}.{global_name} does not belong in DCP metadata"
        raise pickle.UnpicklingError(msg)
