"""Pictures and captions as a Stable Diffusion model sees them: the latents of its VAE, the tokens of its tokenizer.

x = scale (mean of q(latent | picture) - shift),      picture = decoder(x / scale + shift)
"""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from flowcore import files
from flowcore.data import Batch, Rows, everything
from flowcore.errors import InputError, UsageError
from flowcore.plugin.contracts import Leaf, Spec
from flowplat_images import diffusion, pictures
from flowplat_images.captions import CaptionsConfig, Text, TextFacts
from flowplat_images.data import Digits, DigitsConfig, Fixed, Folder, FolderConfig, Images
from flowplat_images.files import Place
from flowplat_images.hugging import read

CHUNK = 8  # pictures that the VAE works on at once
TINY, SHOWN = 16, 16


class LatentsConfig(BaseModel):
    """Pictures of a folder through the VAE of a model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Place = Field(description="a folder or .zip of pictures, each with a .txt of the same name beside it")
    folder: Place = Field(description="a folder with a Stable Diffusion model as diffusers saves it")
    size: int = Field(512, ge=8, le=2048, description="height and width in pixels after cropping and resizing")
    length: int = Field(77, ge=3, le=4096, description="tokens that its text encoder reads")
    holdout: float = Field(0.1, ge=0, lt=1, description="share held out for validation; 0 validates on training images")
    on_error: Literal["refuse", "skip"] = Field(
        "refuse", description="skip leaves out a file with a fault, and names it"
    )


class LatentsFacts(BaseModel):
    """All that sampling needs to know of a data set, beside the model's folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shape: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
    captions: TextFacts


class Latents:
    """See ``flowcore.plugin.contracts.Portable``. Every picture is encoded once, when it is first asked for."""

    def __init__(self, config: LatentsConfig, facts: Any = None) -> None:
        self.config = config
        self._facts = None if facts is None else LatentsFacts.model_validate(facts)
        self._shown: tuple[Tensor, Tensor] | None = None

    @staticmethod
    def example(folder: Path) -> dict[str, Any]:
        """See ``Checkable.example``: sixteen digits with captions, and a model with first weights."""
        digits = Digits(DigitsConfig(captions=CaptionsConfig(source="labels")))
        some = everything(digits.train(), 16)
        digits.write(Batch(some.x1, some.condition), folder)
        model = folder / "model"
        return {"path": folder / "images", "size": 8, "length": 12, **diffusion.example(model)}

    @cached_property
    def pictures(self) -> Images:
        """The pictures and captions that are encoded."""
        captions = CaptionsConfig(source="files", tokenizer=self.config.folder / "tokenizer", length=self.config.length)
        options: dict[str, Any] = {"path": self.config.path, "size": self.config.size, "on_error": self.config.on_error}
        return Folder(FolderConfig(captions=captions, holdout=self.config.holdout, **options))

    @cached_property
    def text(self) -> Text:
        """The captions as numbers."""
        config = CaptionsConfig(source="files", length=self.config.length)
        found = self.pictures.text if self._facts is None else Text(config, self._facts.captions, [], False)
        assert found is not None
        return found

    @cached_property
    def vae(self) -> Any:
        """The model's VAE."""
        return read("AutoencoderKL", self.config.folder, "vae").eval().requires_grad_(False)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Of the latent of one picture."""
        if self._facts is not None:
            return self._facts.shape
        factor, channels = 2 ** (len(self.vae.config.block_out_channels) - 1), self.vae.config.latent_channels
        if self.config.size % factor:
            raise UsageError(
                f"data.size={self.config.size} is no multiple of {factor}, by which the VAE makes it smaller"
            )
        return channels, self.config.size // factor, self.config.size // factor

    def facts(self) -> dict[str, Any]:
        """See ``Portable.facts``."""
        return {"shape": list(self.shape), "captions": self.text.facts.model_dump()}

    def spec(self) -> Spec:
        """See ``Data.spec``."""
        return Spec(Leaf(self.shape), *self.text.spec())

    def encode(self, x: Tensor) -> Tensor:
        """The latents of pictures (n, 3, h, w) in [-1, 1]."""
        scale, shift = self._scale
        with torch.no_grad():
            return torch.cat([(self.vae.encode(part).latent_dist.mean - shift) * scale for part in x.split(CHUNK)])

    def decode(self, x: Tensor) -> Tensor:
        """The pictures (n, 3, h, w) of latents, about in [-1, 1]."""
        scale, shift = self._scale
        if self._shown is None or self._shown[0] is not x:
            with torch.no_grad():
                parts = [self.vae.decode(part.float() / scale + shift).sample for part in x.split(CHUNK)]
            self._shown = x, torch.cat(parts)  # what is written is shown next
        return self._shown[1]

    @property
    def _scale(self) -> tuple[float, float]:
        return self.vae.config.scaling_factor, self.vae.config.get("shift_factor") or 0.0

    @cached_property
    def _parts(self) -> tuple[Rows, Rows]:
        self.spec()  # what does not fit is told before anything is encoded
        images, found = self.pictures, []
        for part in (images.train, images.val) if images.holds_out else (images.train,):
            batch = everything(part())
            found.append(Rows(self.encode(batch.x1), batch.condition))
        return found[0], found[-1]

    def train(self) -> Rows:
        """See ``Data.train``."""
        return self._parts[0]

    def val(self) -> Rows:
        """See ``Data.val``."""
        return self._parts[1]

    def tiny(self) -> "Latents":
        """See ``Data.tiny``: sixteen of the pictures, encoded."""
        tiny, images = Latents(self.config, self.facts()), self.pictures
        tiny.pictures = Fixed(images.config, images.read(TINY), images.facts())
        return tiny

    def fingerprint(self) -> str:
        """sha256 of pictures, captions and the VAE's files."""
        digest = hashlib.sha256(self.pictures.fingerprint().encode())
        for path in sorted((self.config.folder / "vae").iterdir()):
            digest.update(files.sha256(path).encode())
        return digest.hexdigest()

    def condition(self, count: int, wanted: str | None) -> Tensor:
        """See ``Text.condition``."""
        return self.text.condition(count, wanted)

    def write(self, samples: Batch, folder: Path) -> None:
        """As ``pictures.write`` does, with the latents themselves in latents.npz."""
        said = None if samples.condition is None else self.text.tokens.texts(samples.condition)
        pictures.write(self.decode(samples.x1), folder, None, [], said)
        tokens = {} if samples.condition is None else {"tokens": samples.condition.numpy()}
        np.savez_compressed(folder / "latents.npz", latents=samples.x1.numpy(), **tokens)

    def read_back(self, folder: Path) -> Batch:
        """See ``Checkable.read_back``: what latents.npz holds."""
        try:
            with np.load(folder / "latents.npz", allow_pickle=False) as file:
                tokens = torch.from_numpy(file["tokens"]) if "tokens" in file.files else None
                return Batch(torch.from_numpy(file["latents"]), tokens)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{folder / 'latents.npz'} cannot be read: {' '.join(str(error).split())}") from error

    def show(self, samples: Batch) -> bytes:
        """A contact sheet of the first sixteen."""
        whole = self._shown is not None and self._shown[0] is samples.x1
        return pictures.sheet(self.decode(samples.x1)[:SHOWN] if whole else self.decode(samples.x1[:SHOWN]))
