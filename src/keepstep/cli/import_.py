"""``keepstep import``: makes a file of ``torch.save`` the start of a run."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from keepstep.cli.output import Flag, UsageError, print_json
from keepstep.storage.opening import open_storage

Hidden = Parameter(show_default=False)


def import_file(
    file: Path,
    uri: str,
    /,
    *,
    step: Annotated[int | None, Hidden] = None,
    samples: int = 0,
    tokens: int = 0,
    model: str = "model",
    optim: str = "optim",
    sched: str = "sched",
    scaler: str = "scaler",
    parameters: Annotated[Path | None, Hidden] = None,
    json: Flag = False,
) -> None:
    """Commit a checkpoint in one file, as tutorials write it, as the first step of a new run.

    Taken are model_state_dict, optimizer_state_dict, scheduler_state_dict and scaler_state_dict, or
    the other names that are usual for them; numbers beside them become metrics. Nothing in the file
    is executed. Random generators and the data position are not in such files: the first start
    derives the generators from its seed, and --samples says how far the data was read.

    Parameters
    ----------
    file
        A file of torch.save.
    uri
        Where the new run is to live.
    step
        Optimizer steps completed; by default what the file says, or the optimizer's counters.
    samples
        Samples consumed so far.
    tokens
        Tokens consumed so far.
    model
        The name by which the model will be tracked.
    optim
        The name by which the optimizer will be tracked.
    sched
        The name by which the scheduler will be tracked.
    scaler
        The name by which the gradient scaler will be tracked.
    parameters
        A file with the parameters' names, one per line in the order of the optimizer's groups;
        needed only where that is not the order of the model's state dict.
    json
        Print JSON.
    """
    from keepstep.session.importing import Names, import_state, read_file

    if step is not None and step < 0:
        raise UsageError(f"--step {step}: steps are counted from 0")
    listed = parameters.read_text(encoding="utf-8").split() if parameters else None
    names = Names(model, optim, sched, scaler)
    imported = read_file(file, names=names, step=step, parameters=listed)
    checkpoint = import_state(open_storage(uri), imported, samples=samples, tokens=tokens)
    if json:
        print_json({"checkpoint": checkpoint.name, "objects": list(imported.state)})
    else:
        print(f"{checkpoint}: {', '.join(imported.state)}. Track them by these names.")
