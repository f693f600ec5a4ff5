"""RADD for transformers, and the network that this plugin trains: one file that needs torch and transformers alone.

A pre-norm transformer that looks both ways and is told no time: logits of p(x1^i | what is known), for every i at once
(Ou et al. 2024, arXiv 2406.03736). It is saved along with a model's weights, so that

    AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True)

reads it where nothing else of this is installed.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput


class RaddConfig(PreTrainedConfig):
    """``vocab_size`` counts the mask, which is the token ``mask_token_id``; which is never predicted."""

    model_type = "radd"

    def __init__(
        self,
        vocab_size: int = 258,
        mask_token_id: int = 256,
        eos_token_id: int | None = 257,
        hidden_size: int = 128,
        num_hidden_layers: int = 4,
        num_attention_heads: int = 4,
        max_position_embeddings: int = 128,
        hidden_dropout_prob: float = 0.0,
        rope_theta: float = 10000.0,
        **kwargs: object,
    ) -> None:
        self.vocab_size = vocab_size
        self.mask_token_id = mask_token_id
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.max_position_embeddings = max_position_embeddings
        self.hidden_dropout_prob = hidden_dropout_prob
        self.rope_theta = rope_theta
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(eos_token_id=eos_token_id, **kwargs)


class Norm(nn.LayerNorm):
    """LayerNorm in single precision, whatever the rest is computed in.

    Its bias is 1 at first, as in RADD's own code: queries and keys, which have no bias, share a direction then that
    positions turn, and a token can look for its neighbours before it knows what they are.
    """

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.bias is not None:
            nn.init.ones_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.float(), None if self.bias is None else self.bias.float()
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); positions turn queries and keys. ``causal`` looks back alone."""

    causal = False

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1, self.norm2 = Norm(width), Norm(width)
        self.attn_qkv = nn.Linear(width, 3 * width, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], known: Tensor | None) -> Tensor:
        batch, length, width = x.shape
        qkv = self.attn_qkv(self.norm1(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        q, k = rotated(q, *turn), rotated(k, *turn)
        seen = F.scaled_dot_product_attention(q, k, v, known, is_causal=self.causal)
        seen = self.attn_out(seen.transpose(1, 2).reshape(batch, length, width))
        x = x + F.dropout(seen, self.dropout, self.training)
        return x + F.dropout(self.mlp(self.norm2(x)), self.dropout, self.training)


class Radd(nn.Module):
    """Tokens (B, L) to logits (B, L, V), V counting the mask, of which the logit means nothing."""

    def __init__(
        self, size: int, width: int, depth: int, heads: int, dropout: float = 0.0, theta: float = 10000.0
    ) -> None:
        super().__init__()
        self.theta, self.each = theta, width // heads
        self.embedding = nn.Embedding(size, width)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(depth))
        self.norm = Norm(width)
        self.head = nn.Linear(width, size)
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """First weights: at first every token is as likely as any other.

        An embedding is N(0, 1), which is what each block adds to it: of the published codes' smaller one little is left
        behind the first block, and a model learns the shares of letters for some hundred steps before it sees more.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.LayerNorm | nn.Embedding):
                module.reset_parameters()
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor, known: Tensor | None = None) -> Tensor:
        """``known`` (B, 1, L, L), bool, says which positions each one sees; all where it is None."""
        x = self.embedding(tokens)
        turn = angles(tokens.shape[1], self.each, self.theta, x.device)
        for block in self.blocks:
            x = block(x, turn, known)
        return self.head(self.norm(x))


def angles(length: int, width: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine, (length, width / 2) each. Not kept in a buffer: what is no weight is not in a checkpoint, and a
    model that is read from one would have whatever was in its memory."""
    rate = theta ** -(torch.arange(0, width, 2, device=device, dtype=torch.float32) / width)
    angle = torch.arange(length, device=device, dtype=torch.float32)[:, None] * rate
    return angle.cos(), angle.sin()


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Each pair of the first and the second half of the last dimension, turned by its position's angle."""
    a, b = x.float().chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


class RaddForMaskedLM(PreTrainedModel):
    """The network in the clothes of transformers: logits of tokens given those that are not the mask."""

    config_class = RaddConfig
    base_model_prefix = "radd"
    main_input_name = "input_ids"
    _supports_sdpa = True

    def __init__(self, config: RaddConfig) -> None:
        super().__init__(config)
        self.radd = Radd(
            config.vocab_size, config.hidden_size, config.num_hidden_layers, config.num_attention_heads,
            config.hidden_dropout_prob, config.rope_theta,
        )  # fmt: skip
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if module is self.radd.head:
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear | nn.LayerNorm | nn.Embedding):
            module.reset_parameters()

    def get_input_embeddings(self) -> nn.Module:
        return self.radd.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.radd.embedding = value

    def get_output_embeddings(self) -> nn.Module:
        return self.radd.head

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.radd.head = value

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: object,
    ) -> MaskedLMOutput:
        """Logits (B, L, V), -inf for the mask. With ``labels`` (-100 is left out) the mean cross-entropy too.

        ``attention_mask`` (B, L) is 0 where there is padding, which nothing looks at.
        """
        known = None if attention_mask is None else attention_mask[:, None, None, :].bool()
        logits = self.radd(input_ids, known)
        mask = torch.arange(logits.shape[-1], device=logits.device) == self.config.mask_token_id
        logits = logits.float().masked_fill(mask, -math.inf)
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        return MaskedLMOutput(loss=loss, logits=logits)
