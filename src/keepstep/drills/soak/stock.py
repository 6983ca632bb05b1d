"""Whether stock DCP reads a checkpoint: asked of a process that knows nothing of keepstep."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from keepstep.commit.catalog import Catalog
from keepstep.storage.base import Storage

_READ = """
import sys
sys.modules["keepstep"] = None
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
dcp_to_torch_save(sys.argv[1], sys.argv[2])
state = torch.load(sys.argv[2], weights_only=False)
tensors = sum(isinstance(value, torch.Tensor) for value in state["model"].values())
print(f"stock DCP read {sys.argv[3]}: {tensors} tensors of the model")
"""


def read_by_stock(storage: Storage, directory: Path) -> dict[str, Any] | None:
    """What it said of the newest checkpoint, a copy of which is put into ``directory``."""
    newest = next(iter(Catalog(storage).candidates()), None)
    if newest is None:
        return None
    copy = directory / "stock"
    copy.mkdir()
    for info in storage.list(newest.prefix):
        (copy / info.key.removeprefix(newest.prefix)).write_bytes(storage.get(info.key))
    words = [sys.executable, "-c", _READ, str(copy), str(directory / "stock.pt"), str(newest)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    said = done.stdout if done.returncode == 0 else done.stderr
    return {"is_read": done.returncode == 0, "said": said.strip().splitlines()[-1]}
