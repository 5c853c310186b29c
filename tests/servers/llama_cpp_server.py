"""A folder of Llama weights -> GGUF -> llama.cpp's server on 127.0.0.1, in its own process, on one thread.

    with serving(folder, log) as base_url: ...

Run by itself, it serves: `python tests/servers/llama_cpp_server.py MODEL.gguf NAME`.
"""

import json
import math
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

CONTEXT_TOKENS = 16384
_ARCHITECTURE = "llama"
_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(folder: Path, path: Path) -> None:
    """Write weights and tokenizer of a `from_pretrained` folder of a small Llama 3 as one GGUF file."""
    from gguf import GGUFWriter
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    writer = GGUFWriter(path, _ARCHITECTURE)
    _add_shape(writer, config)
    _add_tokenizer(writer, folder, config)
    writer.add_tensor("rope_freqs.weight", _rope_factors(config))
    for name, weights in load_file(folder / "model.safetensors").items():
        writer.add_tensor(_gguf_name(name), _interleaved(name, weights, config).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_shape(writer: Any, config: dict[str, Any]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def _add_tokenizer(writer: Any, folder: Path, config: dict[str, Any]) -> None:
    from gguf import TokenType

    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    special = {each["content"]: each["id"] for each in tokenizer["added_tokens"]}
    by_id = {index: token for token, index in (tokenizer["model"]["vocab"] | special).items()}
    tokens = [by_id.get(index, f"[unused{index}]") for index in range(config["vocab_size"])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if each in special else TokenType.NORMAL for each in tokens])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(special["<|eot_id|>"])
    writer.add_add_bos_token(True)
    writer.add_chat_template((folder / "chat_template.jinja").read_text(encoding="utf-8"))


def _gguf_name(name: str) -> str:
    if name in _NAMES:
        return _NAMES[name]
    _, _, layer, part = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{_NAMES[part]}.weight"


def _interleaved(name: str, weights: Any, config: dict[str, Any]) -> Any:
    """Return the weights in the order of rotary pairs that GGUF has: each angle's two rows next to each other."""
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    key = next((heads[part] for part in heads if part in name), None)
    if key is None:
        return weights
    rows, columns = weights.shape
    halves = weights.reshape(config[key], 2, rows // config[key] // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, columns))


def _rope_factors(config: dict[str, Any]) -> Any:
    """Return by how much each rotary frequency is slowed down, as Llama 3.1 does it."""
    rope = config["rope_parameters"]
    pairs = range(0, config["head_dim"], 2)
    turns = [
        rope["original_max_position_embeddings"] / (2 * math.pi * rope["rope_theta"] ** (pair / config["head_dim"]))
        for pair in pairs
    ]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    kept = [min(1.0, max(0.0, (each - low) / (high - low))) for each in turns]
    return np.array([1 / (share + (1 - share) / rope["factor"]) for share in kept], dtype=np.float32)


@contextmanager
def serving(gguf: Path, name: str, log: Path) -> Generator[str]:
    """Yield the base URL of a server that lists its model under `name`."""
    command = [sys.executable, __file__, str(gguf), name]
    with log.open("wb") as errors, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as child:
        assert child.stdout is not None
        address = next((line.strip() for line in child.stdout if line.startswith("http://127.0.0.1:")), "")
        try:
            assert address, f"the server ended:\n{log.read_text(errors='replace')}"
            yield f"{address}/v1"
        finally:
            child.kill()


def _serve(gguf: str, name: str) -> None:
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = gguf
    parameters.model_alias = {name}
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    parameters.n_ctx = CONTEXT_TOKENS
    parameters.n_parallel = 1
    parameters.cpuparams.n_threads = 1
    parameters.cpuparams_batch.n_threads = 1
    parameters.n_threads_http = 2
    parameters.warmup = False
    server = xllamacpp.Server(parameters)
    sys.stdout.write(f"{server.listening_address}\n")
    sys.stdout.flush()
    while True:
        time.sleep(60)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
