"""Memory of an accelerator that torch holds and nobody can use."""

import torch


def fragments(device: torch.device) -> int:
    """Bytes in pieces between tensors, which are too small for most and cannot be given back; 0
    where torch does not tell."""
    stats = getattr(getattr(torch, device.type, None), "memory_stats", None)
    return int(stats(device).get("inactive_split_bytes.all.current", 0)) if stats else 0
