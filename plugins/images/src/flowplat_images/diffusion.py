"""A Stable Diffusion model in the layout of diffusers as what is trained, or learnt from:

    unet/  vae/  text_encoder/  tokenizer/  scheduler/

Its path is the scheduler's table of noise levels, its network predicts the noise on it, its states are the latents of
``latents``. (Rombach et al. 2022, arXiv 2112.10752; made straight: InstaFlow, Liu et al. 2023, arXiv 2309.06380.)
"""

from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from flowcore.errors import InputError, UsageError
from flowcore.paths import Affine, general
from flowcore.plugin.contracts import Leaf, Spec
from flowplat_images.files import Place
from flowplat_images.hugging import TextConditional, fitting, hugging, null, quiet, read

STEPS = 1000


class ModelConfig(BaseModel):
    """Which model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Place = Field(description="a folder with a Stable Diffusion model as diffusers saves it")


class NetworkConfig(ModelConfig):
    """The network of a Stable Diffusion model."""

    frozen: bool = Field(True, description="leave its text encoder as it is")


def clock(t: Tensor) -> Tensor:
    """The step of the scheduler at time t: 1000 at noise and 0 at the data."""
    return STEPS * (1 - t)


def stable_diffusion(config: NetworkConfig, spec: Spec) -> nn.Module:
    """The UNet and the text encoder in ``folder`` as network(x, t, tokens), told 1000 (1 - t).

    With ``path=scheduler predicts=noise`` it is the model as it is, with ``path=linear`` the beginning of a velocity.
    Raises ``InputError`` for a folder that cannot be read and ``UsageError`` for latents, captions or a prediction that
    do not suit it.
    """
    told, state = spec.condition, spec.state
    if not isinstance(told, Leaf) or told.kind != "token":
        raise UsageError("network=stable_diffusion reads captions; use it with data=latents")
    kind = _scheduler(config.folder).config.get("prediction_type", "epsilon")
    if kind != "epsilon":
        raise UsageError(f"{config.folder} predicts {kind!r}; only models that predict the noise can be used")
    unet, encoder = read("UNet2DConditionModel", config.folder, "unet"), _encoder(config.folder)
    if not isinstance(state, Leaf) or state.shape[0] != unet.config.in_channels:
        raise UsageError(
            f"{config.folder} is of {unet.config.in_channels} channels, the data are {state}; use data=latents"
        )
    return TextConditional(unet, fitting(encoder, told, config.folder), null(spec), config.frozen, clock)


def scheduler(config: ModelConfig) -> Affine:
    """x_t = sqrt(a) x1 + sqrt(1 - a) x0 with a = a_n from the table of the scheduler in ``folder``, n = 1000 (1 - t).

    Between two steps log(a / (1 - a)) is a cubic whose slopes at both are those of the table. From t = 0.001, the last
    step of the table, to t = 1, its first, whose noise is small and not 0: what is sampled is where DDIM ends that
    keeps the first step's noise level.
    """
    table = _scheduler(config.folder).alphas_cumprod.double()
    if len(table) != STEPS:
        raise UsageError(f"{config.folder} has a schedule of {len(table)} steps; only one of {STEPS} can be used")
    ratios = (table / (1 - table)).log()
    slopes = torch.gradient(ratios)[0]

    def share(t: Tensor) -> Tensor:
        n = clock(t)
        below = n.detach().floor().clamp(0, STEPS - 2)
        rows, u = below.long(), n - below
        value, slope = (kept.to(device=t.device, dtype=t.dtype) for kept in (ratios, slopes))
        rise = value[rows + 1] - value[rows]
        bend = (1 - u) * (slope[rows] - rise) - u * (slope[rows + 1] - rise)
        return value[rows] + u * rise + u * (1 - u) * bend  # Hermite's cubic

    return general(
        lambda t: torch.sigmoid(share(t)).sqrt(),
        lambda t: torch.sigmoid(-share(t)).sqrt(),
        "scheduler",
        start=1 / STEPS,
    )


def _encoder(folder: Path) -> Any:
    return read("CLIPTextModel", folder, "text_encoder")


def _scheduler(folder: Path) -> Any:
    package, where = hugging("diffusers"), folder / "scheduler"
    if not (where / "scheduler_config.json").is_file():
        raise InputError(f"{folder} holds no scheduler/scheduler_config.json; name a folder that diffusers has saved")
    try:
        return package.DDPMScheduler.from_pretrained(str(where), local_files_only=True)
    except Exception as error:  # of any kind, on a file that may hold anything
        raise InputError(
            f"{where} holds no scheduler that can be read: {' '.join(str(error).split())[:200]}"
        ) from error


def example(folder: Path) -> dict[str, Any]:
    """A Stable Diffusion model of 8 x 8 pictures with first weights, written to ``folder``, for the checks of what is
    nothing without one."""
    from flowplat_images import captions

    diffusers, transformers = hugging("diffusers"), hugging("transformers")
    tokenizer, _ = captions.trained(
        captions.possible([str(digit) for digit in range(10)], ["a {weight} {class}"], True)
    )
    words = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=captions.PAD)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = {
            "unet": diffusers.UNet2DConditionModel(
                sample_size=4,
                in_channels=4,
                out_channels=4,
                block_out_channels=(8, 8),
                layers_per_block=1,
                norm_num_groups=4,
                attention_head_dim=2,
                cross_attention_dim=8,
                down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            ),
            "vae": diffusers.AutoencoderKL(
                in_channels=3,
                out_channels=3,
                latent_channels=4,
                block_out_channels=(8, 8),
                norm_num_groups=4,
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
                sample_size=8,
            ),
            "text_encoder": transformers.CLIPTextModel(
                transformers.CLIPTextConfig(
                    vocab_size=len(words),
                    hidden_size=8,
                    intermediate_size=16,
                    num_hidden_layers=1,
                    num_attention_heads=2,
                    max_position_embeddings=12,
                    pad_token_id=None,
                    bos_token_id=None,
                    eos_token_id=2,
                )
            ),
        }
    parts["tokenizer"] = words
    parts["scheduler"] = diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    with quiet():
        for name, part in parts.items():
            part.save_pretrained(str(folder / name))
    return {"folder": folder}


stable_diffusion.example = scheduler.example = example  # type: ignore[attr-defined]
