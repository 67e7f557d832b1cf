"""The seedling's training step in PyTorch: on a CPU with bf16 matrix units several times faster than MLX's fp32.

The same Llama, written out in plain operations with Hugging Face's parameter names, so the weights need no conversion.
In: token rows (rows, width + 1). Out: the loss in nats per token. Master weights are fp32; matrix products run in bf16.
Optimiser: Muon on the blocks' matrices, AdamW on the embedding and the norms.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """One Llama layer: grouped-query attention with rotary positions, then SwiGLU."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width, inner = config["hidden_size"], config["intermediate_size"]
        self.heads, self.kv_heads, self.size = (
            config["num_attention_heads"],
            config["num_key_value_heads"],
            config["head_dim"],
        )
        self.epsilon = config["rms_norm_eps"]
        self.self_attn = nn.ModuleDict(
            {
                "q_proj": nn.Linear(width, self.heads * self.size, bias=False),
                "k_proj": nn.Linear(width, self.kv_heads * self.size, bias=False),
                "v_proj": nn.Linear(width, self.kv_heads * self.size, bias=False),
                "o_proj": nn.Linear(self.heads * self.size, width, bias=False),
            }
        )
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": nn.Linear(width, inner, bias=False),
                "up_proj": nn.Linear(width, inner, bias=False),
                "down_proj": nn.Linear(inner, width, bias=False),
            }
        )
        self.input_layernorm = nn.RMSNorm(width, eps=self.epsilon)
        self.post_attention_layernorm = nn.RMSNorm(width, eps=self.epsilon)

    def forward(self, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        rows, width, _ = hidden.shape
        normed = self.input_layernorm(hidden)
        shape = (rows, width, -1, self.size)
        query = rotate(self.self_attn["q_proj"](normed).view(shape).transpose(1, 2), cos, sin)
        key = rotate(self.self_attn["k_proj"](normed).view(shape).transpose(1, 2), cos, sin)
        value = self.self_attn["v_proj"](normed).view(shape).transpose(1, 2)
        repeat = self.heads // self.kv_heads
        key, value = key.repeat_interleave(repeat, dim=1), value.repeat_interleave(repeat, dim=1)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.self_attn["o_proj"](mixed.transpose(1, 2).reshape(rows, width, -1))
        normed = self.post_attention_layernorm(hidden)
        return hidden + self.mlp["down_proj"](
            F.silu(self.mlp["gate_proj"](normed)) * self.mlp["up_proj"](normed)
        )


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions in Llama's half-split layout, turned in fp32. x: (rows, heads, width, size)."""
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


class Llama(nn.Module):
    """The whole model with tied embeddings; `forward` gives the mean loss in nats per token."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config["vocab_size"], config["hidden_size"])
        self.layers = nn.ModuleList(Block(config) for _ in range(config["num_hidden_layers"]))
        self.norm = nn.RMSNorm(config["hidden_size"], eps=config["rms_norm_eps"])
        size = config["head_dim"]
        inverse = config["rope_theta"] ** (-torch.arange(0, size, 2, dtype=torch.float32) / size)
        angles = torch.outer(torch.arange(config["max_position_embeddings"], dtype=torch.float32), inverse)
        angles = torch.cat((angles, angles), dim=-1)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        depth = (2 * len(self.layers)) ** -0.5
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                scale = depth if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
                nn.init.normal_(parameter, std=0.02 * scale)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        hidden = self.embed_tokens(inputs)  # (rows, width, hidden)
        cos, sin = self.cos[: inputs.shape[1]], self.sin[: inputs.shape[1]]
        for layer in self.layers:
            hidden = layer(hidden, cos, sin)
        logits = F.linear(self.norm(hidden), self.embed_tokens.weight)  # (rows, width, vocabulary)
        return F.cross_entropy(logits.reshape(-1, logits.shape[-1]).float(), targets.reshape(-1))


class TorchTrainer:
    """The model, its optimisers and one compiled step."""

    def __init__(self, config: dict[str, Any], seed: int) -> None:
        torch.manual_seed(seed)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = Llama(config).to(self.device)
        matrices = [p for n, p in self.model.named_parameters() if p.dim() == 2 and "embed" not in n]
        others = [p for n, p in self.model.named_parameters() if p.dim() != 2 or "embed" in n]
        self.optimisers = [
            torch.optim.Muon(
                matrices, lr=0.02, momentum=0.95, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"
            ),
            torch.optim.AdamW(others, lr=0.003, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self.base_rates = [0.004, 0.004]  # tried: 0.012 is worse, AdamW alone far worse
        self.compiled = torch.compile(self.model, dynamic=False)

    def step(self, tokens: np.ndarray, rate: float) -> float:
        """One update on rows (rows, width + 1); `rate` scales both learning rates. Returns the loss before it."""
        batch = torch.from_numpy(tokens.astype(np.int64)).to(self.device)
        with torch.autocast(self.device, dtype=torch.bfloat16):
            loss = self.compiled(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser, base in zip(self.optimisers, self.base_rates, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = base * rate
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        return float(loss.detach())

    def weights(self) -> dict[str, np.ndarray]:
        """The fp32 weights under Hugging Face's names."""
        return {f"model.{n}": p.detach().float().cpu().numpy() for n, p in self.model.named_parameters()}

    def save(self, path: Path) -> None:
        """Write weights and optimiser state to one file."""
        torch.save(
            {"model": self.model.state_dict(), "optimisers": [o.state_dict() for o in self.optimisers]}, path
        )

    def load(self, path: Path) -> None:
        """Read back what `save` wrote."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
