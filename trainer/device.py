"""What a job ran on: the device's name and its memory, as events tell them."""

import torch


def device_name(device: torch.device) -> str:
    """As its maker calls it; ``cpu`` where there is none."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def forget_peak(device: torch.device) -> None:
    """`peak_bytes` counts from here on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int | None:
    """The most that was allocated; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def total_bytes(device: torch.device) -> int | None:
    """What the device has in all; None for a CPU."""
    return int(torch.cuda.mem_get_info(device)[1]) if device.type == "cuda" else None
