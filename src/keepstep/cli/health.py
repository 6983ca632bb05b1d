"""``keepstep health``: the probe of a container."""

from typing import Annotated

from cyclopts import Parameter

from keepstep.cli.output import Flag, UsageError, print_json
from keepstep.elastic.health import Health, look, places
from keepstep.errors import ExitCode


def health(
    *, max_age: Annotated[float, Parameter(name="--max-age")] = 60.0, json: Flag = False
) -> ExitCode:
    """Ask whether the `keepstep run` of this machine or container goes on; exit 88 if it is stuck.

    Exit 75 if none runs here, or not yet. For the probes of a pod and HEALTHCHECK: a launcher ends
    workers that hang by itself, this is for a launcher that is stuck.

    Parameters
    ----------
    max_age
        For how many seconds a launcher may not have looked at its workers, or may have left one
        of them alone that is over its deadline.
    json
        Print JSON.
    """
    if max_age <= 0:
        raise UsageError(f"--max-age {max_age:g}: more than 0 seconds are needed")
    found = look(places(), max_age_seconds=max_age)
    if json:
        print_json({"launchers": [_record(one) for one in found]})
    elif not found:
        print("no keepstep run is at work here, or not yet")
    else:
        for one in found:
            print("\n".join(one.problems) or _sentence(one))
    if not found:
        return ExitCode.TRANSIENT
    return ExitCode.HUNG if any(one.problems for one in found) else ExitCode.OK


def _sentence(one: Health) -> str:
    commit = f"step {one.committed_step}" if one.committed_step >= 0 else "none yet"
    return f"launcher {one.pid}: {one.section}; last commit: {commit}"


def _record(one: Health) -> dict[str, object]:
    return {
        "pid": one.pid,
        "section": one.section,
        "committed_step": None if one.committed_step < 0 else one.committed_step,
        "problems": list(one.problems),
    }
