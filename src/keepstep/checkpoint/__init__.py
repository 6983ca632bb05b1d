"""Tensors to objects and back, through ``torch.distributed.checkpoint`` (DCP).

DCP's planners decide which rank holds which chunk of which tensor; the writer and the reader here
are DCP ``StorageWriter`` and ``StorageReader`` over a keepstep store. What makes the result a step
is ``commit``'s business.
"""
