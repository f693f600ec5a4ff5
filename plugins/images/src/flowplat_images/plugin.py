"""What the images plugin registers."""

from flowcore.plugin import hookimpl
from flowcore.plugin.hookspecs import Register


@hookimpl
def register_data(register: Register) -> None:
    data = "flowplat_images.data"
    register("digits", f"{data}:Digits", config=f"{data}:DigitsConfig", summary="1,797 handwritten digits, 8x8, no download")
    register("folder", f"{data}:Folder", config=f"{data}:FolderConfig", summary="PNG and JPEG files, a folder or a zip")
    register("npz", f"{data}:Npz", config=f"{data}:NpzConfig", summary="images and labels in one .npz")


@hookimpl
def register_networks(register: Register) -> None:
    networks = "flowplat_images.networks"
    register("mlp", f"{networks}:mlp", config=f"{networks}:MLPConfig", summary="residual MLP for images up to 12x12")
    register("unet", f"{networks}:unet", config=f"{networks}:UNetConfig", summary="small UNet with attention at the bottom")


@hookimpl
def register_metrics(register: Register) -> None:
    register("frechet", "flowplat_images.metrics:frechet", summary="Frechet distance in the features of the data's own classifier")
    register("nearest", "flowplat_images.metrics:nearest", summary="distance to the nearest training image, and share of copies")


@hookimpl
def register_presets(register: Register) -> None:
    presets = "flowplat_images:presets"
    register("digits", f"{presets}/digits.yaml", summary="rectified flow on 8x8 digits, two minutes on a laptop", default=True)
    register("digits-by-class", f"{presets}/digits-by-class.yaml", summary="the digit you ask for, by classifier-free guidance")
