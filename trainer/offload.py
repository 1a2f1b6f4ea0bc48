"""Blocks whose frozen weights are on the host and come to the device for their turn.

A training runs the blocks 0, 1, ... forward and ..., 1, 0 backward, each recomputed block once more
on the way back. While one computes, the next is copied on a stream of its own, so the device holds
the weights of two offloaded blocks at a time. Weights are frozen, so nothing is ever copied back;
the adapters, which learn, stay on the device. Where a block comes in turn, it must be recomputed in
the backward pass (`policy.py` sees to it): kept activations would hold its weights.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import torch
from diffusers import LTX2VideoTransformer3DModel
from torch import Tensor, nn

from trainer.execution import execution_of


def offloaded_blocks(num_blocks: int, num_offloaded: int) -> list[int]:
    """Which ones: evenly spread, so that blocks that are there hide the copies of the others.

    >>> offloaded_blocks(8, 3), offloaded_blocks(4, 4)
    ([0, 2, 5], [0, 1, 2, 3])
    """
    return [index * num_blocks // num_offloaded for index in range(num_offloaded)]


class OffloadedWeights:
    """The frozen weights of some blocks of one transformer, on the host.

    Each block is one piece of page-locked memory, and the device has two places of that size. On a
    host without CUDA "the device" is memory of its own too, copied at once: the same path.
    """

    def __init__(
        self, transformer: LTX2VideoTransformer3DModel, indices: Iterable[int], device: torch.device
    ) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        blocks = transformer.transformer_blocks
        self._top = len(blocks) - 1
        self._tensors = {index: list(_frozen(blocks[index])) for index in sorted(indices)}
        self._host = {index: self._to_host(tensors) for index, tensors in self._tensors.items()}
        size = max(host.numel() for host in self._host.values())
        self._places = [_Place(torch.empty(size, dtype=torch.uint8, device=device)) for _ in "ab"]
        self._last: int | None = None

    @property
    def indices(self) -> set[int]:
        """The offloaded blocks."""
        return set(self._tensors)

    @property
    def blocks_here(self) -> set[int]:
        """Offloaded blocks whose weights the device holds now; at most two."""
        return {place.block for place in self._places if place.block is not None}

    def bring(self, index: int) -> None:
        """Have block ``index`` ready for kernels that are started now, and the next one in the
        direction of the turns on its way. Call it for every block, offloaded or not."""
        last, self._last = self._last, index
        # After the last block comes the first one, or the last again on the way back.
        falling = index > 0 and last is not None and (index < last or index == last == self._top)
        if index not in self._tensors:
            self._fetch_next(index, falling=falling)
            return
        place = self._find(index) or self._fetch(index, keep=None)
        if self._stream is not None and place.arrived is not None:
            torch.cuda.current_stream(self._device).wait_event(place.arrived)
        self._fetch_next(index, falling=falling)

    def restore(self) -> None:
        """All weights to the device, for good."""
        for index, tensors in self._tensors.items():
            _point(tensors, self._host[index].to(self._device))

    def _fetch_next(self, index: int, *, falling: bool) -> None:
        others = [other for other in self._tensors if (other < index if falling else other > index)]
        if others:
            following = max(others) if falling else min(others)
            if self._find(following) is None:
                self._fetch(following, keep=index)

    def _find(self, index: int) -> "_Place | None":
        return next((place for place in self._places if place.block == index), None)

    def _fetch(self, index: int, *, keep: int | None) -> "_Place":
        """Copy block ``index`` into the place that does not hold ``keep``."""
        place = next(place for place in self._places if place.block is None or place.block != keep)
        if place.block is not None:
            _point(self._tensors[place.block], self._host[place.block])
        place.block = index
        host = self._host[index]
        if self._stream is None:
            place.memory[: host.numel()].copy_(host)
        else:
            # Not before the kernels that were started on what lies there are done.
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(self._stream):
                place.memory[: host.numel()].copy_(host, non_blocking=True)
            place.arrived = self._stream.record_event()
        _point(self._tensors[index], place.memory)
        return place

    def _to_host(self, tensors: list[Tensor]) -> Tensor:
        sizes = [_aligned(tensor.nbytes) for tensor in tensors]
        pinned = self._device.type == "cuda"
        host = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=pinned)
        for tensor, part in zip(tensors, host.split(sizes), strict=True):
            _typed(part, tensor).copy_(tensor.data)
        _point(tensors, host)
        return host


@dataclass
class _Place:
    """Room for one block on the device."""

    memory: Tensor
    block: int | None = None
    arrived: torch.cuda.Event | None = None


_ALIGNMENT_BYTES: Final = 256
"""What CUDA's own allocations have; kernels for matrices rely on 16."""


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES


def _typed(memory: Tensor, like: Tensor) -> Tensor:
    """The start of ``memory`` (uint8) as a tensor of the shape and type of ``like``."""
    return memory[: like.nbytes].view(like.dtype).view(like.shape)


def _point(tensors: list[Tensor], memory: Tensor) -> None:
    """Let ``tensors`` be what lies in ``memory``, one after the other."""
    start = 0
    for tensor in tensors:
        tensor.data = _typed(memory[start:], tensor)
        start += _aligned(tensor.nbytes)


def offload_blocks(
    transformer: LTX2VideoTransformer3DModel, num_blocks: int, device: torch.device
) -> None:
    """Take ``num_blocks`` blocks off the device; 0 brings all back."""
    execution = execution_of(transformer)
    if isinstance(execution.weights, OffloadedWeights):
        execution.weights.restore()
        execution.weights = None
    if num_blocks:
        indices = offloaded_blocks(len(transformer.transformer_blocks), num_blocks)
        execution.weights = OffloadedWeights(transformer, indices, device)


def _frozen(block: nn.Module) -> Iterable[Tensor]:
    for tensor in (*block.parameters(), *block.buffers()):
        if not tensor.requires_grad:
            yield tensor
