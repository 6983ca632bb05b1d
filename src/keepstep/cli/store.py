"""``keepstep store``: the rendezvous store of a job, outside the nodes that train."""

from keepstep.cli.output import Flag, UsageError
from keepstep.elastic.rendezvous.settings import DEFAULT_PORT, address_from
from keepstep.elastic.store_server import ask, ask_whether_complete, serve_until_told
from keepstep.errors import ExitCode


def store(
    *,
    host: str = "",
    port: int = DEFAULT_PORT,
    check: Flag = False,
    done: str | None = None,
    endpoint: str | None = None,
) -> ExitCode:
    """Serve the rendezvous store until SIGTERM, for torchrun --rdzv-backend=keepstep.

    Several jobs can share it: their run ids keep them apart. It keeps nothing on disk; replaced by
    an empty one at the same address, it learns from the agents what they know.

    Parameters
    ----------
    host
        The address to listen on, or to ask with --check or --done. Default: all of this machine.
    port
        The port; 0 for any free one.
    check
        Do not serve, but ask whether a store answers there; exit 69 if none does.
    done
        Do not serve, but ask whether the job of this --rdzv-id is complete; exit 75 if the store
        does not know it to be, 69 if none answers.
    endpoint
        HOST[:PORT] of the store to ask, as in --rdzv-endpoint, instead of --host and --port.
    """
    if endpoint is not None:
        if not check and done is None:
            raise UsageError(f"--endpoint {endpoint}: to serve, give --host and --port")
        host, port = address_from("--endpoint", endpoint)
    if done is not None:
        return _say_whether_complete(done, host, port)
    if check:
        ask(host, port)
        print(f"a rendezvous store answers at {host or 'localhost'}:{port}")
        return ExitCode.OK
    serve_until_told(host, port, lambda at: print(f"rendezvous store on port {at}", flush=True))
    return ExitCode.OK


def _say_whether_complete(run_id: str, host: str, port: int) -> ExitCode:
    if ask_whether_complete(run_id, host, port):
        print(f"run {run_id} is complete")
        return ExitCode.OK
    print(f"run {run_id} is not known to be complete")
    return ExitCode.TRANSIENT
