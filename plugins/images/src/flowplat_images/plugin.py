"""What the images plugin registers."""

from flowcore.plugin import hookimpl
from flowcore.plugin.hookspecs import Register


@hookimpl
def register_data(register: Register) -> None:
    data = "flowplat_images.data"
    register(
        "digits", f"{data}:Digits", config=f"{data}:DigitsConfig", summary="1,797 handwritten digits, 8x8, no download"
    )
    register("folder", f"{data}:Folder", config=f"{data}:FolderConfig", summary="PNG and JPEG files, a folder or a zip")
    register("npz", f"{data}:Npz", config=f"{data}:NpzConfig", summary="images and labels in one .npz")
    endpoints = "flowplat_images.endpoints"
    register(
        "endpoints", f"{endpoints}:Endpoints", config=f"{endpoints}:EndpointsConfig",
        summary="two sets of images, from one to the other: digits by label, folders, zips, npz",
    )  # fmt: skip
    idx, cifar, hub = "flowplat_images.idx", "flowplat_images.cifar", "flowplat_images.hub"
    register("idx", f"{idx}:Idx", config=f"{idx}:IdxConfig", summary="IDX files: MNIST, Fashion-MNIST and their like")
    register("cifar10", f"{cifar}:Cifar10", config=f"{cifar}:Cifar10Config", summary="the CIFAR-10 archive for Python")
    register("cifar100", f"{cifar}:Cifar100", config=f"{cifar}:Cifar100Config", summary="CIFAR-100, fine or coarse")
    register("hf", f"{hub}:Hf", config=f"{hub}:HfConfig", summary="Hugging Face datasets, on the disk or the Hub")
    latents = "flowplat_images.latents"
    register(
        "latents", f"{latents}:Latents", config=f"{latents}:LatentsConfig",
        summary="pictures and captions as a Stable Diffusion model sees them",
    )  # fmt: skip


@hookimpl
def register_networks(register: Register) -> None:
    networks = "flowplat_images.networks"
    register("mlp", f"{networks}:mlp", config=f"{networks}:MLPConfig", summary="residual MLP for images up to 12x12")
    register(
        "unet", f"{networks}:unet", config=f"{networks}:UNetConfig", summary="small UNet with attention at the bottom"
    )
    hugging = "flowplat_images.hugging"
    unet2d, text_unet = f"{hugging}:UNet2DConfig", f"{hugging}:TextUNetConfig"
    register("unet2d", f"{hugging}:unet2d", config=unet2d, summary="the UNet of diffusers, without text")
    register(
        "text_unet", f"{hugging}:text_unet", config=text_unet, summary="the UNet of diffusers, told captions by CLIP"
    )

    diffusion = "flowplat_images.diffusion"
    register(
        "stable_diffusion", f"{diffusion}:stable_diffusion", config=f"{diffusion}:NetworkConfig",
        summary="the UNet and text encoder of a Stable Diffusion model",
    )  # fmt: skip


@hookimpl
def register_paths(register: Register) -> None:
    diffusion = "flowplat_images.diffusion"
    register(
        "scheduler", f"{diffusion}:scheduler", config=f"{diffusion}:ModelConfig",
        summary="the noise levels of a Stable Diffusion model's scheduler",
    )  # fmt: skip


@hookimpl
def register_metrics(register: Register) -> None:
    metrics = "flowplat_images.metrics"
    register("frechet", f"{metrics}:frechet", summary="Frechet distance in the features of the data's own classifier")
    register("nearest", f"{metrics}:nearest", summary="distance to the nearest training image, and share of copies")
    register("class_accuracy", f"{metrics}:class_accuracy", summary="share of samples of the class that was asked for")
    sets = "flowplat_images.sets"
    register("kernel", f"{sets}:kernel", summary="kernel distance (KD) in the same features, unbiased")
    register("precision_recall", f"{sets}:precision_recall", summary="how good, and how much of the variety, apart")
    register("entropy", f"{sets}:entropy", summary="how evenly the samples are spread over the classes")
    register("w2", f"{sets}:w2", summary="exact optimal transport to the data, in pixels or principal components")


@hookimpl
def register_objectives(register: Register) -> None:
    register(
        "perceptual", "flowplat_images.perceptual:perceptual",
        summary="matching, and a distance in features of the data's own classifier: 2-Rectified Flow++",
        uses=("path", "coupling", "times", "loss", "predicts"),
    )  # fmt: skip


@hookimpl
def register_tasks(register: Register) -> None:
    tasks = "flowplat_images.tasks"
    register("translate", f"{tasks}:translate", summary="pictures as ones of another class, through their noise")
    register("interpolate", f"{tasks}:interpolate", summary="frames on the way from one picture to another")


@hookimpl
def register_presets(register: Register) -> None:
    presets = "flowplat_images:presets"
    digits, by_class = f"{presets}/digits.yaml", f"{presets}/digits-by-class.yaml"
    register("digits", digits, summary="rectified flow on 8x8 digits, two minutes on a laptop", default=True)
    register(
        "rectified-flow", f"{presets}/rectified-flow.yaml", summary="the digits' flow made straight: one step does"
    )
    register("distilled", f"{presets}/distilled.yaml", summary="the digits in one network call")
    register(
        "slimflow", f"{presets}/slimflow.yaml", summary="a straight flow of a small network, taught by a large one"
    )
    slim = f"{presets}/slimflow-distilled.yaml"
    register("slimflow-distilled", slim, summary="the small flow in one network call")
    register("diffusion", f"{presets}/diffusion.yaml", summary="a diffusion model of the digits that predicts noise")
    rectified, phased = f"{presets}/rectified-diffusion.yaml", f"{presets}/rectified-diffusion-phased.yaml"
    register("rectified-diffusion", rectified, summary="the diffusion model in one step, on its own curved path")
    register("rectified-diffusion-phased", phased, summary="the diffusion model in four steps, taught without pairs")
    register("ot-cfm", f"{presets}/ot-cfm.yaml", summary="digits on pairs of minibatch optimal transport")
    register("w-cfm", f"{presets}/w-cfm.yaml", summary="digits on weighted pairs, near optimal transport for nothing")
    register(
        "interpolant",
        f"{presets}/interpolant.yaml",
        summary="noise to digits by an ODE or any SDE, chosen after training",
    )
    register(
        "interpolant-3-to-8", f"{presets}/interpolant-3-to-8.yaml", summary="threes become eights, by the same means"
    )
    register("edm", f"{presets}/edm.yaml", summary="digits by EDM: 35 network calls, or 9")
    register("pfgm-pp", f"{presets}/pfgm-pp.yaml", summary="EDM with a Poisson flow's noise, which forgives more")
    register(
        "rectified-flow-pp",
        f"{presets}/rectified-flow-pp.yaml",
        summary="one reflow, better at one step: 2-Rectified Flow++",
    )
    register("digits-by-class", by_class, summary="the digit you ask for, by classifier-free guidance")
    text = f"{presets}/captions.yaml"
    register("captions", text, summary="the digit you describe: captions, and classifier-free guidance")
    reflowed, instant = f"{presets}/instaflow-reflow.yaml", f"{presets}/instaflow.yaml"
    register("instaflow-reflow", reflowed, summary="that flow made straight, its guidance learnt with it")
    register("instaflow", instant, summary="the digit you describe in one network call")
