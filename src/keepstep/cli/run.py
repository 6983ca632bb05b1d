"""``keepstep run``: start a job as torchrun does."""

from typing import Annotated

from cyclopts import Parameter


def run(*arguments: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> int:
    """Start the workers of this node, as torchrun would, and see the job through.

    Takes torchrun's options, then a script or ``-m`` and a module, then its arguments. Hangs are
    found, failures are restarted as long as something is committed, and the exit code says how the
    job ended (docs/errors.md).

    Parameters
    ----------
    arguments
        As for torchrun. ``--tries N`` says how often in a row nothing may be committed;
        ``--metrics-port N`` serves metrics and health of this node.
    """
    from keepstep.launch.run import run as launch

    return launch(arguments)
