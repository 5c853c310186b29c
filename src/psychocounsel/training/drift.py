"""Log-probabilities of sampled answers, token by token: how far a policy has moved is read from them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from psychocounsel.config.components import ChatFormat
from psychocounsel.training.generate import load_for_inference
from psychocounsel.training.packing import response_logprobs
from psychocounsel.training.tokenize import encode_exchange, encode_prompt, load_tokenizer
from psychocounsel.types import Policy, SampledAnswer, Speech


class TokenStatistics(NamedTuple):
    """For each token of an answer its log-probability, and the entropy of the distribution it came from, in nats."""

    logps: list[float]
    entropies: list[float]


def token_statistics(
    policy: Policy,
    answers: Sequence[tuple[Speech, SampledAnswer]],
    chat: ChatFormat,
    batch_size: int,
    progress: Callable[[int, int], None],
) -> list[TokenStatistics]:
    """Return what a policy gives to each token of some answers, in their order.

    The tokens are those that were sampled. An answer of which only the text is known, one from an endpoint, is
    tokenized again, with a terminator if it is finished: these may be other tokens than the sampled ones, which biases
    estimates of the KL divergence. `progress` is called with the number of answers done, and of all.
    """
    tokenizer, model = load_tokenizer(policy), load_for_inference(policy)
    sides: list[tuple[list[int], list[int]]] = []
    for speech, (answer, sampled_ids) in answers:
        if sampled_ids is not None:
            sides.append((encode_prompt(tokenizer, speech.text, chat, speech.history), list(sampled_ids)))
        else:
            prompt, ids = encode_exchange(tokenizer, speech.text, answer.text, chat, speech.history)
            sides.append((prompt, ids if answer.finished else ids[:-1]))
    found = response_logprobs(model, sides, batch_size, progress)
    return [TokenStatistics(each.log_probs.tolist(), each.entropy.tolist()) for each in found]
