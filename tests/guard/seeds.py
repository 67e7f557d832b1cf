"""Inputs to begin with for the parsers of `tests/guard/targets.py`: what is usual, and what has been wrong before."""

from __future__ import annotations

import json
import struct

from gguf import GGMLQuantizationType as Kind

from mlx_gardener.source.languages import GRAMMARS, LANGUAGES
from tests.model.gguf.files import smallest_file

CUT = b"\n---8<---\n"
GGUF_KINDS = (
    Kind.F16, Kind.BF16, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0, Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K,
    Kind.IQ4_NL, Kind.IQ4_XS, Kind.MXFP4,
)  # fmt: skip
_SUFFIX_OF = {language: suffix for suffix, language in reversed(LANGUAGES.items())}
SUFFIXES = [_SUFFIX_OF[language] for language in (*GRAMMARS, "markdown", "json")]


def safetensors(header: object, body: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with this header, true or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def seeds(name: str) -> list[bytes]:
    """Inputs to begin with: what is usual, and what has been wrong before."""
    from tests.guard import served  # which cuts its own by `CUT`

    array = {"model.layers.0.q.lora_a": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]}}
    good = safetensors(array, b"\0" * 8)
    huge = safetensors(
        {"a": {"dtype": "F32", "shape": [2**31, 2**31], "data_offsets": [0, 2**60]}}, b"\0" * 8
    )
    settings = {
        "fine_tune_type": "lora",
        "num_layers": 2,
        "lora_parameters": {"rank": 1, "scale": 2.0, "dropout": 0.0, "keys": ["self_attn.q_proj"]},
    }
    deep = b"[" * 100_000
    place = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    pair = safetensors(
        {
            f"{place}A.weight": {"dtype": "F32", "shape": [1, 256], "data_offsets": [0, 1024]},
            f"{place}B.weight": {"dtype": "F32", "shape": [256, 1], "data_offsets": [1024, 2048]},
        },
        b"\0" * 2048,
    )
    lora = {"peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": ["q_proj"]}
    body = {
        "format_version": 2,
        "state": {"step": 1, "fingerprint": "0" * 64, "validation": [[1, 2.0, 1.0]]},
        "origin": {"config": {}, "plan": {"budget_bytes": 2**32, "rows_of_width": {"64": 1}, "notes": []}},
    }
    manifest = {
        "base": {"weights_sha256": ""}, "config": {}, "data": {}, "metrics": {}, "training": {},
        "files": {"mlx/adapter_config.json": {"sha256": "", "bytes": 1}},
    }  # fmt: skip
    sizes = {
        "model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9,
        "num_experts": 4, "quantization": {"bits": 4}, "text_config": {},
    }  # fmt: skip
    codes = (
        b"class A:\n    def f(self):\n        return 1\n\n\ndef g(x):\n    import os\n    return x\n",
        b"import { a } from 'b';\nexport const f = () => { return a; };\n// c\nclass A { m() {} }\n",
        b"#include <a.h>\n#ifdef A\nint f(int a) { return a; }\n#endif\nnamespace a { namespace b { class C {}; } }\n",
        b'package a\n\nimport (\n\t"b"\n)\n\nfunc F() int { return 1 }\n',
        b"key = 'AKIAIOSFODNN7EXAMPLF'\nurl = 'https://user:hunter2abc@host'\n-----BEGIN PRIVATE KEY-----\n",
    )
    vocabulary = {"<s>": 0, "a": 1, "b": 2, "ab": 3, "</s>": 4}
    words = {
        "version": "1.0",
        "added_tokens": [
            {"id": 4, "content": "</s>", "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}
        ],
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [["a", "b"]]},
    }  # fmt: skip
    digest = f"sha256:{'0' * 64}"
    layers = {
        "layers": [
            {"mediaType": f"application/vnd.ollama.image.{kind}", "digest": digest, "size": 1}
            for kind in ("model", "license")
        ]
    }
    event = {"event": "WarningRaised", "message": "w", "timestamp": 1.0}
    step = {
        "event": "StepCompleted", "step": 1, "total_steps": 2, "epoch": 0.1, "loss": 2.0, "tokens": 3,
        "learning_rate": 0.1, "gradient_norm": 1.0, "seconds": 0.1, "tokens_per_second": 30.0, "memory_bytes": 1,
        "peak_bytes": 2, "budget_bytes": 3, "eta_seconds": None, "timestamp": 1.0,
    }  # fmt: skip
    prepared = {
        "event": "DataPrepared",
        "summary": {"languages": {"python": {"bytes": 3}}, "chunks_kept": 1, "files_kept": 1,
                    "train_loss_tokens": 5, "padding_fraction": 0.1},
    }  # fmt: skip
    planned = {
        "event": "PlanChosen",
        "plan": {"rows_of_width": {"64": 1}, "predicted_peak_bytes": 1, "budget_bytes": 2, "notes": ["n"]},
    }
    ended = {"event": "TrainingEnded", "phase": "completed", "message": "m", "result": {}}
    lines = [
        json.dumps(values).encode() + b"\n"
        for values in (event, step, prepared, planned, ended)
    ]  # fmt: skip
    job = {
        "training_id": "a", "project": "p", "config": {}, "resume": "never", "journal_offset": 0,
    }  # fmt: skip

    def text(value: object) -> bytes:
        return json.dumps(value).encode()

    def message(method: str, params: object, number: int | None = None) -> dict[str, object]:
        told = {"jsonrpc": "2.0", "method": method, "params": params}
        return told if number is None else told | {"id": number}

    opened, caret = {"uri": "file:///a/b%20c.py"}, {"line": 1, "character": 9}
    there = {"start": {"line": 0, "character": 1}, "end": caret}
    talk = [
        message("initialize", {"processId": None, "rootUri": None, "capabilities": {"general": {"positionEncodings": ["utf-8"]}}}, 1),
        message("initialized", {}),
        message("textDocument/didOpen", {"textDocument": opened | {"languageId": "python", "version": 1,
                "text": "a\f\u2028\r\n\U0001f600 = b"}}),
        message("textDocument/didChange", {"textDocument": opened | {"version": 2},
                "contentChanges": [{"range": there, "text": "x\n"}]}),
        message("textDocument/inlineCompletion", {"textDocument": opened, "position": caret, "context": {"triggerKind": 2}}, 2),
        message("$/cancelRequest", {"id": 2}),
        message("textDocument/inlineCompletion", {"textDocument": opened, "position": {"line": 9**9, "character": 0},
                "context": {"triggerKind": 1, "selectedCompletionInfo": {"range": there, "text": "\ud800"}}}, "3"),
        message("textDocument/didChange", {"textDocument": opened | {"version": 3}, "contentChanges": [{"text": "y"}]}),
        message("textDocument/didClose", {"textDocument": opened}),
        message("shutdown", None, 4),
        message("exit", None),
    ]  # fmt: skip

    found: dict[str, list[bytes]] = {
        "source": [bytes([number]) + code for number in range(len(SUFFIXES)) for code in codes],
        "ignore": [b"a.py" + CUT + b"*.py\n!b\n/c/\n**/d\n[a-z]?\n#x\n", b"a" * 99 + CUT + b"*a" * 30 + b"b\n"],
        "attributes": [b"a.py\nb\n" + CUT + b"*.py linguist-generated\nb linguist-vendored=true\n[attr]m -a\n"],
        "config": [b'model = "seedling"\n[lora]\nrank = 8\n[data]\nsequence_lengths = [64, 128]\n', b"a = " + deep],
        "adapter": [
            CUT.join((text(manifest), text(settings), good)),
            CUT.join((text(manifest), text(settings), huge)),
            CUT.join((deep, deep, safetensors(deep))),
            CUT.join((text(manifest), text(settings), safetensors(array, length=2**60))),
        ],
        "checkpoint": [
            CUT.join((text(body), b"{}", good)),
            CUT.join((text(body), deep, huge)),
            CUT.join((deep, b"[]", b"")),
        ],
        "journal": [b"".join(lines), *lines, lines[0] + lines[1][:20], deep + b"\n", b"[1]\n",
                    b'{"event": "DataPrepared", "summary": {}}\n', b'{"event": "PlanChosen", "plan": {}}\n'],
        "gguf": [
            *(smallest_file(kind) for kind in GGUF_KINDS),
            smallest_file(byte_level=True), smallest_file()[:700], b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60),
        ],
        "stores": [
            CUT.join((text(layers), text(sizes), text(words), b"---\nlicense: mit\n---\n", b"Apache License")),
            CUT.join((text({"layers": [{"digest": "sha256:../../x"}]}), b"[]", b"[]", b"---\n" * 99, b"\xff")),
            CUT.join((deep, deep, b'{"added_tokens": ' + deep, b"---\nlicense: [", b"")),
            CUT.join((b"[]", text({**sizes, "architectures": 3, "quantization": {"bits": 0}}), b'{"added_tokens": [3]}', b"", b"")),
        ],
        "model": [
            text(sizes) + CUT + good,
            text(sizes) + CUT + huge,
            deep + CUT + safetensors(deep),
            text(sizes | {"hidden_size": 1e999, "head_dim": -1}) + CUT + good,
        ],
        "tokenizer": [text(words) + CUT + text({"eos_token": "</s>"}), deep + CUT + deep],
        "peft": [
            CUT.join((text(lora), pair)),
            CUT.join((text(lora | {"rank_pattern": {"^(a|a)*$": 1, "q_proj": 1}, "use_rslora": True}), pair)),
            CUT.join((text(lora | {"rank_pattern": {"(.*.*.*.*.*.*.*.*)*!": 3}}), pair)),
            CUT.join((text(lora | {"r": 10**6}), huge)),
            CUT.join((deep, good)),
        ],
        "requests": [
            b"\0" + text({"prompt": "def f(", "suffix": "pass", "path": "a.py", "max_tokens": 3, "stop": ["\n"]}),
            b"\0" + text({"prompt": [[1, 2], [8192]], "n": 2, "seed": -1, "temperature": 0.5, "logprobs": 2}),
            b"\1" + text({"input_prefix": "a", "input_suffix": "b", "input_extra": [{"text": "c", "filename": "d"}],
                          "n_predict": -1, "samplers": ["top_k"], "t_max_predict_ms": 1e300}),
            b"\2" + text({"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}),
            b"\4" + text({"prompt": "<|repo_name|>a\n<|file_sep|>b.py\nc\n<|file_sep|>d.py"
                           "<|system_separator_istruction_repository_level|>def f(", "suffix": "pass", "keep_alive": "5m",
                           "options": {"num_predict": 3, "stop": "x", "num_ctx": 9, "seed": -1, "top_k": 0}}),
            b"\4" + text({"prompt": "x", "raw": True, "stream": False, "keep_alive": 0, "images": []}),
            b"\5" + text({"messages": [{"role": "USER", "content": "hi", "images": None}], "think": False}),
            b"\0" + deep, b"\1[]", b"\4" + deep,
        ],
        "messages": [
            b"\1" + CUT.join(map(text, talk)), b"\1" + CUT.join(map(text, [*talk[:2], *talk[3:]])), b"\1" + deep,
            b"\0Content-Length: 2\r\n\r\n[]Content-Length: x\r\n\r\nContent-Length: 99\r\n\r\n{", b"\0" + deep,
            b"\0Content-Length: %d\r\n\r\n{}" % 10**30,
        ],
        "editor_settings": [
            b'\0{\n  // c\n  "a": { "b": 1, },\n}\n', b"\0", b"\1/* only */", b'\1{"a": [1, 2], "b": {}}',
            b'\2{\r\n\t"edit_predictions": null /* x */ ,\r\n\t"\\u0061": 1e3\r\n}', b"\0" + deep,
            b'\1{"a": null}', '\0{\r\n"x": {}, // \u00e9\n}'.encode(), '\2{ // \u00e9\r\n // \ufffd\n}'.encode(),
        ],
        "run_files": [text(job), text({"key": "k", "kind": "cpu", "cores": 2}), deep, b"[]"],
        "names": [b"projects/own/runs/a", b"../x", b"/etc", b"nul.txt", b"a\xff", "\uff41".encode()],
        **served.seeds(),
    }  # fmt: skip
    return found[name]
