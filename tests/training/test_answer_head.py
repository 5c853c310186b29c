"""The projection of answers alone gives what trl's own head gives, for losses and gradients."""

from pathlib import Path

import pytest
import torch
from trl.trainer.utils import add_fused_lm_head

from psychocounsel.training.dpo import project_answers_only
from psychocounsel.training.generate import load_causal_model
from psychocounsel.types import Policy

OUTPUTS = ("log_probs", "entropy", "mean_logits", "is_top1")


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    ids = torch.arange(24).reshape(2, 12) % 7 + 20
    labels = ids.clone()
    labels[0, :5] = -100
    labels[1, :3] = -100
    labels[1, 9:] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def test_equals_the_libraries_head_in_value_and_gradient(
    tiny_model_folder: Path, batch: dict[str, torch.Tensor]
) -> None:
    theirs = load_causal_model(Policy(str(tiny_model_folder)), torch.float32)
    ours = load_causal_model(Policy(str(tiny_model_folder)), torch.float32)
    add_fused_lm_head(theirs, outputs=OUTPUTS)
    project_answers_only(ours)
    wanted = theirs(**batch, fused_lm_head=True, use_cache=False)
    got = ours(**batch, fused_lm_head=True, use_cache=False)
    for name in OUTPUTS:
        torch.testing.assert_close(getattr(got, name), getattr(wanted, name), rtol=1e-4, atol=1e-5)
    (-wanted.log_probs.sum()).backward()
    (-got.log_probs.sum()).backward()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-4)


def test_other_calls_go_as_before(tiny_model_folder: Path, batch: dict[str, torch.Tensor]) -> None:
    model = load_causal_model(Policy(str(tiny_model_folder)), torch.float32)
    before = model(**batch).loss
    project_answers_only(model)
    torch.testing.assert_close(model(**batch).loss, before)
