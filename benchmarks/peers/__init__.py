"""The checkpoint systems that are compared, by name."""

from benchmarks.peers.base import Context, Peer, Pending, report_notes
from benchmarks.peers.dcp import (
    Dcp,
    DcpAsyncDefault,
    DcpAsyncPinned,
    DcpAsyncProcess,
    DcpAsyncThread,
    DcpPlanCached,
)
from benchmarks.peers.limits import Buffered, Direct, DirectFour, DirectTwo, Memcpy
from benchmarks.peers.others import DlroverFlash, NvidiaFork, TorchSnapshot
from benchmarks.peers.ours import Keepstep, KeepstepAsync, KeepstepOverlap, KeepstepReadOnce
from benchmarks.peers.plain import Safetensors, TorchSave
from benchmarks.peers.remote import RemoteDcp, RemoteKeepstep, RemoteLimit

__all__ = ["PEERS", "Context", "Peer", "Pending", "report_notes"]

PEERS: dict[str, type[Peer]] = {
    peer.name: peer
    for peer in (
        Buffered,
        Direct,
        DirectTwo,
        DirectFour,
        Memcpy,
        Keepstep,
        KeepstepAsync,
        KeepstepOverlap,
        KeepstepReadOnce,
        Dcp,
        DcpPlanCached,
        DcpAsyncDefault,
        DcpAsyncThread,
        DcpAsyncProcess,
        DcpAsyncPinned,
        TorchSave,
        Safetensors,
        TorchSnapshot,
        NvidiaFork,
        DlroverFlash,
        RemoteLimit,
        RemoteKeepstep,
        RemoteDcp,
    )
}
