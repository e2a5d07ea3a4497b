"""ESDLoadPocket: the embedded model."""

from __future__ import annotations

from comfy_api.latest import io

from ..esd_core.models.embedded import POCKET
from .host import pocket
from .schema import schema


class ESDLoadPocket(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ESDLoadPocket",
            display_name="ESD Load Pocket",
            description=(
                "Loads pocket, a real SDXL in miniature that comes with this pack, so that "
                "unlearning can be tried anywhere with no download. It draws six objects (house, "
                "tree, boat, fish, flower, car), plain or in the style of Van Gogh, Mondrian, "
                "Seurat, Hokusai or pixel art, at 128x128. pocket-dit draws the same with a "
                "transformer of Stable Diffusion 3's kind."
            ),
            inputs=[
                io.Combo.Input(
                    "network",
                    options=list(pocket.KINDS),
                    default=POCKET,
                    optional=True,  # workflows from before there were two lack it
                    tooltip="What draws: pocket is a UNet of SDXL's architecture, pocket-dit a "
                    "transformer of Stable Diffusion 3's, which is trained by flow matching. Text "
                    "encoders and VAE are the same.",
                ),
            ],
            outputs=[
                io.Model.Output("model", tooltip="A UNet or a transformer."),
                io.Clip.Output("clip", tooltip="SDXL's two text encoders in miniature."),
                io.Vae.Output("vae", tooltip="Its own autoencoder."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, network: str = POCKET) -> str:
        """Asked before anything runs: a UNETLoader of the same prompt may have its turn first."""
        pocket.register()
        return network

    @classmethod
    def execute(cls, network: str = POCKET) -> io.NodeOutput:
        return io.NodeOutput(pocket.load_model(network), pocket.load_clip(), pocket.load_vae())
