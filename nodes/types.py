"""Types of links that are our own, or that the stock nodes have no class for."""

from comfy_api.latest import io

Erased = io.Custom("ESD_ERASURE")
TrainOptions = io.Custom("ESD_OPTIONS")
Loss = io.Custom("LOSS_MAP")
