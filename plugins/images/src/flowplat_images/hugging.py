"""Networks of `diffusers`, read as velocity fields: a UNet without text, and one that reads captions.

The packages are imported when a network is built, and brought by ``flowplat-images[diffusers]``. Time is passed on as
999 t: these networks were made for a thousand steps.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from flowcore.errors import FlowError, InputError, MissingPackageError, UsageError
from flowcore.plugin.contracts import Leaf, Spec
from flowplat_images.files import Place

Clock = Callable[[Tensor], Tensor]

Channels = Annotated[
    list[Annotated[int, Field(ge=1)]],
    Field(min_length=1, description="channels at each resolution, each half the last; multiples of norm_groups"),
]


class UNet2DConfig(BaseModel):
    """Options of diffusers' UNet; the defaults are 0.7 million weights, for 8x8.

    The network of the diffusion papers at 32x32 has channels [128, 256, 256, 256] and two layers, 35.7 million.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    channels: Channels = [32, 64]
    layers: int = Field(1, ge=1, description="residual blocks at each resolution")
    attention: list[Annotated[int, Field(ge=1)]] = Field(
        default_factory=lambda: [16],
        description="heights in pixels at which there is self-attention, beside the lowest",
    )
    norm_groups: int = Field(8, ge=1, description="groups of each group norm")
    head: int = Field(8, ge=1, description="channels of an attention head; divides those it works on")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout inside residual blocks")


class TextUNetConfig(UNet2DConfig):
    """Options of diffusers' UNet that reads captions, and of the text encoder before it."""

    dropout: float = Field(0.0, ge=0, lt=1, description="dropout inside residual blocks")
    attention: list[Annotated[int, Field(ge=1)]] = Field(
        default_factory=lambda: [4], description="heights in pixels at which captions are looked at, beside the lowest"
    )
    text_width: int = Field(64, ge=1, description="numbers for each token; a multiple of text_heads")
    text_layers: int = Field(2, ge=1, description="layers of the text encoder")
    text_heads: int = Field(4, ge=1, description="attention heads of the text encoder")
    text_encoder: Place | None = Field(
        None, description="a folder with a CLIP text encoder to begin with, in place of a new one of the sizes above"
    )
    frozen: bool = Field(False, description="leave the text encoder as it is, for a student of a model that has one")


def clock(t: Tensor) -> Tensor:
    """What these networks are told of the time t."""
    return 999 * t


class Unconditional(nn.Module):
    """``UNet2DModel`` as network(x, t, condition): class numbers, the last of which is the null class, or None."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """v(x, t), shaped like x."""
        out: Tensor = self.unet(x, clock(t), class_labels=condition, return_dict=False)[0]
        return out


class TextConditional(nn.Module):
    """``UNet2DConditionModel`` as network(x, t, tokens): its attention looks at what the text encoder makes of tokens
    (B, length). None is the empty caption. The UNet is told ``clock(t)``."""

    def __init__(self, unet: nn.Module, encoder: nn.Module, null: Tensor, frozen: bool, clock: Clock = clock) -> None:
        super().__init__()
        inner: nn.Module = getattr(encoder, "text_model", encoder)  # so that its weights have one name in any version
        self.unet, self.encoder = unet, inner.requires_grad_(not frozen)
        self.frozen, self.clock = frozen, clock
        self.null: Tensor
        self.register_buffer("null", null, persistent=False)

    def train(self, mode: bool = True) -> "TextConditional":
        """As any module's; a frozen encoder stays in evaluation."""
        super().train(mode)
        self.encoder.train(mode and not self.frozen)
        return self

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """v(x, t | tokens), shaped like x."""
        tokens = self.null.expand(len(x), -1) if condition is None else condition
        words = self.encoder(input_ids=tokens).last_hidden_state
        out: Tensor = self.unet(x, self.clock(t), encoder_hidden_states=words, return_dict=False)[0]
        return out


def unet2d(config: UNet2DConfig, spec: Spec) -> nn.Module:
    """diffusers' ``UNet2DModel``, without a condition or with classes. Raises ``UsageError`` for a shape it cannot
    halve, or for captions."""
    shape = _image(spec, config)
    classes = _classes(spec)
    levels = [shape[1] >> level for level in range(len(config.channels))]
    sizes: dict[str, Any] = {
        "down_block_types": ["AttnDownBlock2D" if size in config.attention else "DownBlock2D" for size in levels],
        "up_block_types": ["AttnUpBlock2D" if size in config.attention else "UpBlock2D" for size in reversed(levels)],
        "attention_head_dim": config.head,
        "num_class_embeds": classes,
    }
    return Unconditional(_built(config, shape, "UNet2DModel", sizes))


def text_unet(config: TextUNetConfig, spec: Spec) -> nn.Module:
    """diffusers' ``UNet2DConditionModel`` behind transformers' ``CLIPTextModel``, trained together. Raises
    ``UsageError`` for a data set without captions, and ``InputError`` for a text encoder that cannot be read."""
    shape, told = _image(spec, config), spec.condition
    if not isinstance(told, Leaf) or told.kind != "token" or told.classes is None:
        raise UsageError("network=text_unet reads captions; set data.captions=labels, or data.captions=files")
    encoder = _encoder(config, told)
    levels = [shape[1] >> level for level in range(len(config.channels))]
    looks = [size in config.attention for size in levels]
    sizes: dict[str, Any] = {
        "down_block_types": ["CrossAttnDownBlock2D" if look else "DownBlock2D" for look in looks],
        "up_block_types": ["CrossAttnUpBlock2D" if look else "UpBlock2D" for look in reversed(looks)],
        # of heads, whatever diffusers calls it here
        "attention_head_dim": [max(1, channels // config.head) for channels in config.channels],
        "cross_attention_dim": encoder.config.hidden_size,
    }
    return TextConditional(_built(config, shape, "UNet2DConditionModel", sizes), encoder, null(spec), config.frozen)


def null(spec: Spec) -> Tensor:
    """The tokens of the empty caption, (1, length)."""
    import torch

    return torch.tensor([spec.null], dtype=torch.int64)


def _encoder(config: TextUNetConfig, told: Leaf) -> Any:
    assert told.classes is not None
    if config.text_encoder is not None:
        return fitting(read("CLIPTextModel", config.text_encoder), told, config.text_encoder)
    if config.text_width % config.text_heads:
        raise UsageError(f"network.text_width={config.text_width} is no multiple of text_heads={config.text_heads}")
    package = hugging("transformers")
    sizes = package.CLIPTextConfig(
        vocab_size=told.classes,
        hidden_size=config.text_width,
        intermediate_size=4 * config.text_width,
        num_hidden_layers=config.text_layers,
        num_attention_heads=config.text_heads,
        max_position_embeddings=told.shape[0],
        projection_dim=config.text_width,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=2,
    )
    return package.CLIPTextModel(sizes)


def fitting(encoder: Any, told: Leaf, where: Path) -> Any:
    """The encoder, where it reads the data's tokens. Raises ``UsageError`` where it has too few of them."""
    words, positions = encoder.config.vocab_size, encoder.config.max_position_embeddings
    if (told.classes or 0) > words:
        raise UsageError(
            f"{where} knows {words} tokens and the captions have {told.classes}; name the tokenizer that belongs to it "
            "by data.captions.tokenizer"
        )
    if told.shape[0] > positions:
        raise UsageError(f"{where} reads {positions} tokens; set data.captions.length={positions}")
    return encoder


def read(name: str, folder: Path, part: str = "") -> Any:
    """A model from a folder, nothing unpickled. Raises ``InputError`` naming the folder."""
    package = hugging("transformers" if name.startswith("CLIP") else "diffusers")
    where = folder / part if part else folder
    if not where.is_dir():
        raise InputError(f"{where} is not there; it should be a folder that save_pretrained wrote")
    try:
        with quiet():
            return getattr(package, name).from_pretrained(str(where), use_safetensors=True, local_files_only=True)
    except Exception as error:  # of any kind, on files that may be anything
        raise InputError(f"{where} holds no {name} that can be read: {' '.join(str(error).split())[:200]}") from error


def quiet() -> Any:
    """Neither bars nor notes while a folder is read: a run has its own."""
    from contextlib import ExitStack

    stack = ExitStack()
    for name in ("diffusers", "transformers"):
        logging = hugging(name).utils.logging
        level = logging.get_verbosity()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        stack.callback(logging.enable_progress_bar)
        stack.callback(logging.set_verbosity, level)
    return stack


def hugging(name: str) -> Any:
    """The package ``diffusers`` or ``transformers``. Raises ``MissingPackageError`` where it is not there."""
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        raise MissingPackageError(
            f"`{name}` is not installed; `pip install 'flowplat-images[diffusers]'` brings it"
        ) from error


def _built(config: UNet2DConfig, shape: tuple[int, ...], name: str, sizes: dict[str, Any]) -> nn.Module:
    for channels in config.channels:
        if channels % config.norm_groups:
            raise UsageError(f"network.channels: {channels} is no multiple of network.norm_groups={config.norm_groups}")
        if channels % config.head:
            raise UsageError(f"network.channels: {channels} is no multiple of network.head={config.head}")
    package = hugging("diffusers")
    try:
        network: nn.Module = getattr(package, name)(
            sample_size=shape[1:],
            in_channels=shape[0],
            out_channels=shape[0],
            block_out_channels=config.channels,
            layers_per_block=config.layers,
            norm_num_groups=config.norm_groups,
            dropout=config.dropout,
            **sizes,
        )
    except (ValueError, TypeError) as error:
        raise FlowError(f"diffusers cannot build this network: {' '.join(str(error).split())[:200]}") from error
    return network


def _image(spec: Spec, config: UNet2DConfig) -> tuple[int, ...]:
    if not isinstance(spec.state, Leaf) or len(spec.state.shape) != 3:
        raise UsageError(f"this network takes images (channels, height, width), not {spec.state}")
    shape, factor = spec.state.shape, 2 ** (len(config.channels) - 1)
    if shape[1] % factor or shape[2] % factor:
        raise UsageError(
            f"network.channels={config.channels} halves the image {len(config.channels) - 1} times, but "
            f"{shape[1]}x{shape[2]} is not divisible by {factor}; give fewer channels or another data.size"
        )
    return shape


def _classes(spec: Spec) -> int | None:
    if spec.condition is None:
        return None
    if not isinstance(spec.condition, Leaf) or spec.condition.kind != "class" or spec.condition.classes is None:
        raise UsageError("network=unet2d is told classes only; network=text_unet reads captions")
    return spec.condition.classes + 1
