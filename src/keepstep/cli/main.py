"""The command line: finds the verb, runs it, and turns whatever happens into an exit code."""

import os
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError

from keepstep._version import __version__
from keepstep.cli.output import report_failure
from keepstep.errors import ExitCode, KeepstepError, exit_code_of

_INTERRUPTED = 130
_BROKEN_PIPE = 141

app = App(
    name="keepstep",
    help="Look at keepstep runs and their settings.",
    version=__version__,
    help_formatter="plain",
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
# Named by text, so that a verb pays only for what itself imports.
app.command(
    "keepstep.cli.run:run", name="run", help="Start a job, as torchrun does.", help_flags=[]
)
app.command("keepstep.cli.health:health", name="health", help="Ask whether a node trains.")
app.command("keepstep.cli.ls:ls", name="ls", help="List the checkpoints of a run.")
app.command("keepstep.cli.show:show", name="show", help="Lay out one checkpoint.")
app.command("keepstep.cli.verify:verify", name="verify", help="Check every byte of checkpoints.")
app.command("keepstep.cli.copy:copy", name="copy", help="Copy checkpoints to another store.")
app.command("keepstep.cli.import_:import_file", name="import", help="Begin with a torch.save file.")
app.command("keepstep.cli.prune:prune", name="prune", help="Remove what need not be kept.")
app.command("keepstep.cli.pin:pin", name="pin", help="Keep a checkpoint from being pruned.")
app.command("keepstep.cli.pin:unpin", name="unpin", help="Leave a checkpoint to the policy again.")
app.command("keepstep.cli.rollback:rollback", name="rollback", help="Go back to an older step.")
app.command("keepstep.cli.gc:gc", name="gc", help="Let go of what nobody can use any more.")
app.command("keepstep.cli.report:report", name="report", help="Account for a run's time.")
app.command("keepstep.cli.plan:plan", name="plan", help="Work out how often to save.")
app.command("keepstep.cli.doctor:doctor", name="doctor", help="Try out a store.")
app.command("keepstep.cli.drill:drill", name="drill", help="Rehearse failures with real jobs.")
app.command("keepstep.cli.store:store", name="store", help="Serve the rendezvous of several nodes.")

_config = App(name="config", help="Look at settings.")
_config.command("keepstep.cli.config:show", name="show", help="Print every setting as it resolves.")
app.command(_config)

_data = App(name="data", help="Prepare what is trained on.")
_data.command("keepstep.cli.data:prepare", name="prepare", help="Turn text into token files.")
app.command(_data)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code (docs/errors.md)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in words
    try:
        code = app(words, exit_on_error=False, print_error=False)
        sys.stdout.flush()
    except CycloptsError as error:
        report_failure(_in_one_line(error), ExitCode.USAGE, "UsageError", as_json=as_json)
        return ExitCode.USAGE
    except KeepstepError as error:
        code = exit_code_of(error)
        report_failure(str(error), code, type(error).__name__, as_json=as_json)
        return code
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader has left. Python flushes once more at exit: let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    return code if isinstance(code, int) else ExitCode.OK


def _in_one_line(error: CycloptsError) -> str:
    message = " ".join(str(error).split())
    return f"{message} See `keepstep --help`."
