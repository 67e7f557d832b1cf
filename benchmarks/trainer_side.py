"""Two training steps of another MLX trainer by its own functions, in its own environment: what they cost and what they give.

    ENVIRONMENT/bin/python benchmarks/trainer_side.py '{"trainer": "mlx-lm-lora", "setting": {...}, ...}'

`benchmarks/against_trainers.py` starts it, and says there what the request holds. It imports nothing of mlx_gardener, whose
pins are others; of this folder only the shape that all train. The last line of its output is JSON: the figures, or
``failed`` with what stopped it. Each trainer runs its own loop, which calls its own loss, LoRA layers, checkpointing and
compiled step; only the batches and the listener are ours, both through the hooks that it has for them.

The optimiser is plain gradient descent: it keeps nothing, so no side pays for its state, and the loss of the second step
tells whether the gradients of the first were the same.
"""

# mypy: disable-error-code="import-not-found,import-untyped"
from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import sys
import tempfile
import time
import traceback
import types
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Work:
    """What every side does."""

    layers: int
    hidden: int
    vocab: int
    rows: int
    width: int
    rank: int
    scale: float
    learning_rate: float
    tokens: Any = None  # (rows, width)
    weight_bytes: int = 0

    def model(self, library: str = "mlx_lm") -> Any:
        """The base, frozen; its bytes are noted."""
        from half_billion import half_billion_shape, random_tokens
        from mlx.utils import tree_flatten

        model = half_billion_shape(self.layers, hidden=self.hidden, vocab=self.vocab, library=library)
        self.weight_bytes = sum(value.nbytes for _, value in tree_flatten(model.parameters()))
        self.tokens = random_tokens(self.rows, self.width, self.vocab)
        return model


class _EnoughError(Exception):
    """Raised by the listener after the second step: what a trainer writes at its end is not asked for."""


@dataclass
class Listener:
    """Notes each step as the trainer reports it; from the report of one step to that of the next is the next one's time."""

    work: Work
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    processor_seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    begun: tuple[float, float] = (0.0, 0.0)

    def begin(self, model: Any) -> None:
        """The model is ready: from here memory and time count."""
        import mlx.core as mx
        from half_billion import set_first_adapters

        set_first_adapters(model)
        mx.clear_cache()
        mx.reset_peak_memory()
        self.begun = time.perf_counter(), time.process_time()

    def step(self, loss: float) -> None:
        """A step has ended.

        Raises:
            _EnoughError: it was the second.
        """
        import mlx.core as mx

        now = time.perf_counter(), time.process_time()
        self.seconds.append(now[0] - self.begun[0])
        self.processor_seconds.append(now[1] - self.begun[1])
        self.losses.append(float(loss))
        self.peak_bytes = mx.get_peak_memory()
        if len(self.losses) == 2:
            raise _EnoughError
        self.begun = time.perf_counter(), time.process_time()

    def on_train_loss_report(self, report: dict[str, Any]) -> None:
        """mlx-lm's name for it."""
        self.step(report["train_loss"])

    def result(self) -> dict[str, Any]:
        """The figures of the second step, and the peak of both."""
        return {
            "loss_before": self.losses[0],
            "loss": self.losses[1],
            "first_seconds": self.seconds[0],
            "seconds": self.seconds[1],
            "processor_seconds": self.processor_seconds[1],
            "tokens_per_second": self.work.rows * self.work.width / self.seconds[1],
            "peak_beyond_weights_mib": (self.peak_bytes - self.work.weight_bytes) / 2**20,
        }


def in_order(work: Work, rows_at_once: int) -> Callable[..., Iterator[Any]]:
    """An `iterate_batches` as mlx-lm's trainer takes it: all rows in turn, for ever, in whole steps."""
    import mlx.core as mx

    begins = [0]

    def iterate(*_: Any, **__: Any) -> Iterator[Any]:
        while True:  # mlx-lm-lora makes an iterator anew for every batch, so the place is kept outside
            rows = work.tokens[begins[0] : begins[0] + rows_at_once]
            begins[0] = (begins[0] + rows_at_once) % work.rows
            yield mx.array(rows), mx.array([[0, work.width]] * rows_at_once)

    return iterate


def loop_settings(work: Work, rows_at_once: int, scratch: str, *, accumulation: str) -> dict[str, Any]:
    """Arguments that mlx-lm's loop and those made from it share; one report a step, however many batches it has.

    Args:
        accumulation: the loop's own name for how many batches a step has.
    """
    batches = work.rows // rows_at_once
    return {
        "batch_size": rows_at_once,
        accumulation: batches,
        "iters": 2 * batches,
        "steps_per_report": batches,
        "steps_per_save": 10**6,
        "max_seq_length": work.width,
        "adapter_file": f"{scratch}/adapters.safetensors",
    }


def adapters_of_mlx_lm(work: Work, model: Any) -> None:
    """mlx-lm's LoRA on all linear modules of all layers, as its command and those that build on it make them."""
    from mlx_lm.tuner.utils import linear_to_lora_layers

    config = {"rank": work.rank, "scale": work.scale, "dropout": 0.0}
    linear_to_lora_layers(model, work.layers, config)


def mlx_lm_lora(work: Work, listener: Listener, setting: dict[str, Any], scratch: str) -> None:
    """mlx-lm-lora: `train_sft`, with its ``grad_checkpoint`` and ``loss_type``."""
    import mlx.core as mx
    import mlx.optimizers as optimizers
    from mlx_lm_lora.trainer.sft_trainer import SFTTrainingArgs, get_sft_loss, train_sft

    facts = mx.device_info()
    if "max_recommended_working_set_size" not in facts:  # it asks for a GPU's; a CPU has nothing to wire
        mx.device_info = lambda: {**facts, "max_recommended_working_set_size": 0}  # type: ignore
    model = work.model()
    adapters_of_mlx_lm(work, model)
    loop = loop_settings(work, setting["rows_at_once"], scratch, accumulation="gradient_accumulation_steps")
    listener.begin(model)
    train_sft(
        model,
        optimizers.SGD(learning_rate=work.learning_rate),
        [],
        args=SFTTrainingArgs(grad_checkpoint=setting["checkpoint"], loss_type=setting["loss"], **loop),
        loss=get_sft_loss(setting["loss"]),
        iterate_batches=in_order(work, setting["rows_at_once"]),
        training_callback=listener,
    )


def mlx_train_perf(work: Work, listener: Listener, setting: dict[str, Any], scratch: str) -> None:
    """mlx-train-perf: parts for mlx-lm's own loop; here its `make_loss_fn`."""
    import mlx.optimizers as optimizers
    from mlx_lm.tuner.trainer import TrainingArgs, train
    from mlx_train_perf.adapters.mlx_lm import make_loss_fn

    model = work.model()
    adapters_of_mlx_lm(work, model)
    loop = loop_settings(work, setting["rows_at_once"], scratch, accumulation="grad_accumulation_steps")
    listener.begin(model)
    train(
        model,
        optimizers.SGD(learning_rate=work.learning_rate),
        [],
        args=TrainingArgs(grad_checkpoint=setting["checkpoint"], **loop),
        loss=make_loss_fn(model, impl=setting["loss"]),
        iterate_batches=in_order(work, setting["rows_at_once"]),
        training_callback=listener,
    )


class _Placeholders(types.ModuleType):
    """A module in which any name is an empty class, for ``isinstance`` to say no to."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        setattr(self, name, type(name, (), {}))
        return self.__dict__[name]


def stand_in_for(*modules: str) -> None:
    """Placeholders for modules that are imported and, for the work at hand, never called; nothing where they are installed."""
    if importlib.util.find_spec(modules[0]) is None:
        for name in modules:
            sys.modules[name] = _Placeholders(name)


def gmlx(work: Work, listener: Listener, setting: dict[str, Any], scratch: str) -> None:
    """gmlx: what `gmlx train` calls after it has read its GGUF, on the same shape in float32 of its own copy of mlx-lm.

    Its extension for K-quants, mlx-kquant, has wheels for macOS only; a float32 base has no layer of its kinds.
    """
    stand_in_for("mlx_kquant", "mlx_kquant.nn", "mlx_kquant.codec_geometry")
    if not setting["blocked_attention"]:
        os.environ["GMLX_TRAIN_BLOCKED_ATTN"] = "0"
    import mlx.optimizers as optimizers
    from gmlx._vendor.mlx_lm.tuner.trainer import TrainingArgs, train
    from gmlx.tune.attention import install_training_attention
    from gmlx.tune.checkpoint import checkpoint_layers
    from gmlx.tune.lora import prepare_lora_student

    model = work.model("gmlx._vendor.mlx_lm")
    prepare_lora_student(model, rank=work.rank, scale=work.scale)
    model.train()
    install_training_attention(model)
    if setting["checkpoint"]:
        checkpoint_layers(model)
    loop = loop_settings(work, setting["rows_at_once"], scratch, accumulation="grad_accumulation_steps")
    listener.begin(model)
    train(
        model,
        optimizers.SGD(learning_rate=work.learning_rate),
        [],
        args=TrainingArgs(**loop),
        iterate_batches=in_order(work, setting["rows_at_once"]),
        training_callback=listener,
    )


def unsloth_zoo(work: Work, listener: Listener, setting: dict[str, Any], scratch: str) -> None:
    """unsloth-zoo: `MLXTrainer`, compiled, with its `get_peft_model`; the clipping and decay that it adds are off."""
    os.environ["UNSLOTH_ZOO_DISABLE_GPU_INIT"] = "1"  # its own switch: it looks for CUDA on Linux otherwise
    from unsloth_zoo.mlx.loader import FastMLXModel
    from unsloth_zoo.mlx.trainer import MLXTrainer, MLXTrainingConfig

    model = FastMLXModel.get_peft_model(
        work.model(), r=work.rank, lora_alpha=work.rank * work.scale, lora_dropout=0
    )
    trainer = MLXTrainer(
        model,
        None,
        [{"input_ids": row.tolist()} for row in work.tokens],
        args=MLXTrainingConfig(
            per_device_train_batch_size=setting["rows_at_once"],
            gradient_accumulation_steps=work.rows // setting["rows_at_once"],
            max_steps=2,
            warmup_steps=0,
            learning_rate=work.learning_rate,
            lr_scheduler_type="constant",
            optim="sgd",
            weight_decay=0.0,
            max_grad_leaf_norm=0.0,
            output_dir=scratch,
            max_seq_length=work.width,
            use_cce=setting["loss"] == "chunked",
            gradient_checkpointing=setting["checkpoint"],
        ),
    )
    trainer.add_step_callback(lambda step, total, loss, *_, **__: listener.step(loss))
    listener.begin(model)
    trainer.train()


TRAINERS: dict[str, Callable[[Work, Listener, dict[str, Any], str], None]] = {
    "mlx-lm-lora": mlx_lm_lora,
    "mlx-train-perf": mlx_train_perf,
    "gmlx": gmlx,
    "unsloth-zoo": unsloth_zoo,
}


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Run the trainer of ``request`` on its work; what stops it is a result too."""
    listener = Listener(Work(**request["work"]))
    with tempfile.TemporaryDirectory() as scratch, redirect_stdout(sys.stderr):
        try:
            TRAINERS[request["trainer"]](listener.work, listener, request["setting"], scratch)
        except _EnoughError:
            pass
        except Exception as error:
            if len(listener.losses) < 2:
                traceback.print_exc()
                return {"failed": f"{type(error).__name__}: {error}".splitlines()[-1]}
    return listener.result()


def main() -> None:
    """Read the request, open its BLAS before MLX is imported, measure, print."""
    request = json.loads(sys.argv[1])
    if request["blas"]:
        ctypes.CDLL(request["blas"], mode=ctypes.RTLD_GLOBAL)
    result = measure(request)
    print(json.dumps(result), flush=True)
    os._exit(0)  # MLX's threads abort an interpreter that is taken down


if __name__ == "__main__":
    main()
