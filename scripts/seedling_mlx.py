"""The seedling's training step in MLX, for machines without PyTorch (and the natural one on Apple silicon).

In: token rows (rows, width + 1). Out: the loss in nats per token. fp32 throughout; the whole step is compiled. The same
optimisers as the PyTorch step: Muon on the blocks' matrices, AdamW on the embedding and the norms. The two backends'
states are not interchangeable; their weights are.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.llama import Model, ModelArgs


def is_block_matrix(name: str, weight: mx.array) -> bool:
    """The parameters Muon takes: every two-dimensional one outside the embedding."""
    return weight.ndim == 2 and "embed_tokens" not in name


class MlxTrainer:
    """The model, its optimiser and one compiled step."""

    base_rate = 0.004

    def __init__(self, config: dict[str, Any], seed: int) -> None:
        mx.random.seed(seed)
        self.model = Model(ModelArgs.from_dict(config))
        depth = (2 * config["num_hidden_layers"]) ** -0.5
        fresh = []
        for name, weight in tree_flatten(self.model.parameters()):
            if weight.ndim == 2:
                scale = depth if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
                weight = mx.random.normal(weight.shape, scale=0.02 * scale)
            fresh.append((name, weight))
        self.model.update(tree_unflatten(fresh))
        self.optimiser = optim.MultiOptimizer(
            [
                optim.Muon(learning_rate=self.base_rate, momentum=0.95, weight_decay=0.0),
                optim.AdamW(learning_rate=self.base_rate, betas=[0.9, 0.95], weight_decay=0.0),
            ],
            [is_block_matrix],
        )
        self.optimiser.init(self.model.trainable_parameters())
        mx.eval(self.model.parameters(), self.optimiser.state)
        self.compiled = self._compile()

    def _compile(self) -> Any:
        state = [self.model.state, self.optimiser.state]

        @partial(mx.compile, inputs=state, outputs=state)
        def step(tokens: mx.array) -> mx.array:
            def mean_loss(model: Model) -> mx.array:
                logits = model(tokens[:, :-1])  # (rows, width, vocabulary)
                return nn.losses.cross_entropy(logits, tokens[:, 1:], reduction="mean")

            loss, gradients = nn.value_and_grad(self.model, mean_loss)(self.model)
            gradients, _ = optim.clip_grad_norm(gradients, 1.0)
            self.optimiser.update(self.model, gradients)
            return loss

        return step

    def step(self, tokens: np.ndarray, rate: float) -> float:
        """One update on rows (rows, width + 1); `rate` scales the learning rates. Returns the loss before it."""
        muon, adamw = self.optimiser.optimizers
        # Muon's updates are scaled to AdamW's usual size (0.2 per element), as the PyTorch step does.
        muon.learning_rate = self.base_rate * rate * 0.2 * max(self.model.args.hidden_size, 1) ** 0.5
        adamw.learning_rate = self.base_rate * rate
        loss = self.compiled(mx.array(tokens.astype(np.int32)))
        mx.eval(loss, self.model.parameters(), self.optimiser.state)
        return float(loss.item())

    def weights(self) -> dict[str, np.ndarray]:
        """The fp32 weights under Hugging Face's names."""
        return {name: np.array(weight) for name, weight in tree_flatten(self.model.parameters())}

    def save(self, path: Path) -> None:
        """Write weights and optimiser state to one file."""
        state = {f"model.{name}": value for name, value in tree_flatten(self.model.parameters())}
        state |= {f"optimiser.{name}": value for name, value in tree_flatten(self.optimiser.state)}
        mx.save_safetensors(str(path) + ".safetensors", state)
        Path(str(path) + ".safetensors").rename(path)

    def load(self, path: Path) -> None:
        """Read back what `save` wrote."""
        saved = mx.load(str(path), format="safetensors")
        parts: dict[str, list[tuple[str, mx.array]]] = {"model": [], "optimiser": []}
        for name, value in saved.items():
            part, _, rest = name.partition(".")
            parts[part].append((rest, value))
        self.model.update(tree_unflatten(parts["model"]))
        self.optimiser.state = tree_unflatten(parts["optimiser"])
        mx.eval(self.model.parameters(), self.optimiser.state)
        self.compiled = self._compile()
