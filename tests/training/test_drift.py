"""Token log-probabilities of answers: as a model computes them one answer at a time, of the ids that were sampled."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from preference_runs import CHAT

from psychocounsel.config.components import SamplingConfig
from psychocounsel.evaluation.probes import kl_estimates
from psychocounsel.training.drift import token_statistics
from psychocounsel.training.generate import AnswerGenerator, load_causal_model
from psychocounsel.training.tokenize import encode_exchange, encode_prompt, load_tokenizer
from psychocounsel.types import Candidate, Policy, SampledAnswer, Speech


def ignore(done: int, total: int) -> None:
    pass


def test_log_probabilities_and_entropies_of_an_answer_are_those_of_the_model(
    tiny_model_folder: Path, speeches: Sequence[Speech]
) -> None:
    policy = Policy(str(tiny_model_folder))
    texts = ("What is hard about it?", "No.", "You should simply make a list and get on with it.", "")
    sampled_ids = (None, (7, 301, 7, 3), None, None)  # not those of the text
    answers = [
        (speech, SampledAnswer(Candidate(speech.id, "policy", text, finished), ids))
        for speech, text, finished, ids in zip(speeches, texts, (True, True, False, True), sampled_ids, strict=True)
    ]
    done: list[tuple[int, int]] = []
    found = token_statistics(policy, answers, CHAT, 3, lambda *step: done.append(step))
    assert done == [(3, 4), (4, 4)]
    model, tokenizer = load_causal_model(policy, torch.float32).eval(), load_tokenizer(policy)
    for (speech, (answer, sampled)), each in zip(answers, found, strict=True):
        prompt, ids = encode_exchange(tokenizer, speech.text, answer.text, CHAT)
        ids = ids if answer.finished else ids[:-1]  # it has no terminator
        ids = list(sampled or ids)
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        logps = logits.log_softmax(-1)
        own = logps[torch.arange(len(ids)), torch.tensor(ids)]
        assert each.logps == pytest.approx(own.tolist(), abs=1e-4)
        assert each.entropies == pytest.approx((-(logps.exp() * logps).sum(-1)).tolist(), abs=1e-3)


def test_the_divergence_of_sampled_ids_is_unbiased_and_that_of_their_texts_is_not(
    tiny_model_folder: Path, tiny_generator: AnswerGenerator, speeches: Sequence[Speech], tmp_path: Path
) -> None:
    reference, moved = Policy(str(tiny_model_folder)), Policy(str(tmp_path))
    model = load_causal_model(reference, torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(tmp_path)
    tiny_generator.tokenizer.save_pretrained(tmp_path)
    asked = [speech for speech in speeches for _ in range(100)]
    prompts = [encode_prompt(tiny_generator.tokenizer, each.text, CHAT) for each in asked]
    sampled = AnswerGenerator.load(moved).generate(prompts, SamplingConfig(max_new_tokens=20, batch_size=64), 3)
    answers = [
        (speech, SampledAnswer(Candidate(speech.id, "policy", each.text, each.finished), each.token_ids))
        for speech, each in zip(asked, sampled, strict=True)
    ]
    # Under the sampling distribution a token's ratio of reference to policy has mean 1, whatever the two models are.
    surprises: list[float] = []
    for known in (answers, [(speech, SampledAnswer(answer, None)) for speech, (answer, _) in answers]):
        mine, theirs = (token_statistics(each, known, CHAT, 64, ignore) for each in (moved, reference))
        ratios = [
            math.exp(right - left)
            for own, other in zip(mine, theirs, strict=True)
            for left, right in zip(own.logps, other.logps, strict=True)
        ]
        error = statistics.stdev(ratios) / math.sqrt(len(ratios))
        surprises.append(abs(statistics.fmean(ratios) - 1) / error)
        if known is answers:
            kl = kl_estimates([each.logps for each in mine], [each.logps for each in theirs])
            assert kl["per_token"] == pytest.approx(kl["k3_per_token"], rel=0.2)
            assert kl["per_answer"] > 0
    assert surprises[0] < 3
    assert surprises[1] > 3
