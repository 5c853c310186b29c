"""What the preflight predicts is what the tensors of training steps take, counted without their values."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from transformers import LlamaConfig

from psychocounsel.training.memory import ModelSize, memory_per_device
from psychocounsel.training.packing import KEPT_BYTES, LOGITS_BYTES

BENCH = Path(__file__).parents[2] / "scripts" / "bench"
SHAPE = LlamaConfig(
    vocab_size=32_000,
    hidden_size=1024,
    intermediate_size=3584,
    num_hidden_layers=3,
    num_attention_heads=16,
    num_key_value_heads=4,
)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    import training_memory

    for size in (LOGITS_BYTES, KEPT_BYTES):
        monkeypatch.setitem(size, True, 1 << 25 if size is LOGITS_BYTES else 0)
        monkeypatch.setitem(size, False, size[True])
    return training_memory


@pytest.mark.integration
@pytest.mark.parametrize(
    ("way", "checkpointing"),
    [("full, fp32", True), ("full, bf16", False), ("LoRA, fp32", False), ("LoRA, bf16", True)],
)
def test_predicted_memory_is_that_of_the_tensors(bench: ModuleType, way: str, checkpointing: bool) -> None:
    options: dict[str, Any] = {"gradient_checkpointing": checkpointing, **bench.WAYS[way]}
    optimisation = bench.OptimisationConfig(learning_rate=5e-7, global_batch_size=16, **options)
    batch = bench.Batch(2048)
    counted = bench.peak_bytes(SHAPE, optimisation, batch, None)
    predicted = memory_per_device(ModelSize.of_config(SHAPE), optimisation, len(batch.packed.token_ids))
    assert (predicted.total - predicted.context) / counted == pytest.approx(1, abs=0.15)
