"""``keepstep store``: the rendezvous store of a job, outside the nodes that train."""

from keepstep.cli.output import Flag
from keepstep.elastic.store_server import ask, serve_until_told


def store(*, host: str = "", port: int = 29400, check: Flag = False) -> None:
    """Serve the rendezvous store until SIGTERM, for torchrun --rdzv-backend=keepstep.

    Several jobs can share it: their run ids keep them apart. It keeps nothing on disk; replaced by
    an empty one at the same address, it learns from the agents what they know.

    Parameters
    ----------
    host
        The address to listen on, or to ask with --check. Default: all of this machine.
    port
        The port; 0 for any free one.
    check
        Do not serve, but ask whether a store answers there; exit 69 if none does.
    """
    if check:
        ask(host, port)
        print(f"a rendezvous store answers at {host or 'localhost'}:{port}")
        return
    serve_until_told(host, port, lambda at: print(f"rendezvous store on port {at}", flush=True))
