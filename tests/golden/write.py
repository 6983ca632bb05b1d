"""Write the golden directory of the current format: ``python tests/golden/write.py``.

Run once when a format is released, never again for that format. What it writes must load for ever.
"""

import json
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "multirank")]

from models import adamw, build, full_state, open_session, step  # noqa: E402
from torch import Tensor  # noqa: E402

from keepstep.commit.canonical import FORMAT_VERSION  # noqa: E402
from rank_processes import run_in_ranks  # noqa: E402

HERE = Path(__file__).parent


def save(rank: int, uri: str) -> dict[str, Any]:
    model = build("fsdp")
    optimizer = adamw(model)
    with open_session(uri, seed=1, mathematics={"seed": 1}) as session:
        session.track(model=model, optim=optimizer)
        session.restore()
        for _ in range(2):
            step(model, optimizer)
            session.tick(samples=12, loss=0.5)
            session.save()
    return full_state(model=model, optim=optimizer)


def as_json(state: dict[str, Any]) -> dict[str, Any]:
    return {
        name: [str(value.dtype), list(value.shape), value.reshape(-1).tolist()]
        if isinstance(value, Tensor)
        else value
        for name, value in state.items()
    }


if __name__ == "__main__":
    directory = HERE / f"format-{FORMAT_VERSION}"
    directory.mkdir()
    state = run_in_ranks(2, save, str(directory / "run"))[0]
    (directory / "expected.json").write_text(json.dumps(as_json(state), indent=1))
