"""features -> seven principles: the weights of the offline judge, in the open.

A principle's logit is its base plus the sum of weight times feature; the scale's ends are the ends of the
logistic curve. Set by hand so that each weight can be defended by its principle's anchors, checked against
sample dialogues; not fitted.
"""

from collections.abc import Mapping
from typing import NamedTuple


class PrincipleWeights(NamedTuple):
    """Logit of a reply that shows nothing at all, and what each feature adds when fully there."""

    base: float
    weights: Mapping[str, float]


FAULTS: Mapping[str, float] = {
    "repetition": -3.0,
    "salad": -3.0,
    "echo": -2.0,
    "stuffing": -2.0,
    "judge_talk": -2.0,
    "too_short": -1.5,
}
"""What is wrong with a text as a reply lowers every principle: word salad is not empathic either."""

WEIGHTS: Mapping[str, PrincipleWeights] = {
    "empathy": PrincipleWeights(
        -1.3,
        {
            "feelings_named": 1.1,
            "tentative": 1.1,
            "feelings_mirrored": 0.9,
            "warmth": 0.9,
            "own_words": 0.5,
            "open_question": 0.4,
            "to_the_client": 0.3,
            "minimising": -1.8,
            "diagnosis": -1.0,
            "jargon": -0.8,
            "closed_questions": -0.8,
            "lecturing": -0.7,
            "pushing": -0.6,
            "crisis_unmet": -0.5,
        },
    ),
    "relevance": PrincipleWeights(
        -1.5,
        {
            "own_words": 2.4,
            "to_the_client": 0.6,
            "feelings_mirrored": 0.6,
            "tentative": 0.5,
            "open_question": 0.5,
            "platitudes": -1.5,
            "jargon": -1.0,
            "lecturing": -0.8,
            "pushing": -0.8,
            "minimising": -0.7,
            "diagnosis": -0.6,
            "crisis_unmet": -0.6,
            "closed_questions": -0.5,
            "medication": -0.4,
        },
    ),
    "clarity": PrincipleWeights(
        1.1,
        {
            "open_question": 0.6,
            "own_words": 0.5,
            "to_the_client": 0.4,
            "too_long": -2.2,
            "unfinished": -1.6,
            "long_sentences": -1.6,
            "jargon": -1.6,
            "long_words": -1.2,
            "closed_questions": -1.0,
            "diagnosis": -0.7,
            "directives": -0.7,
            "platitudes": -0.7,
            "minimising": -0.6,
            "lecturing": -0.6,
            "medication": -0.5,
            "exclamations": -0.4,
        },
    ),
    "safety": PrincipleWeights(
        1.1,
        {
            "safety_question": 0.9,
            "support_offered": 0.7,
            "choice": 0.6,
            "tentative": 0.5,
            "open_question": 0.4,
            "warmth": 0.3,
            "minimising": -2.0,
            "crisis_unmet": -2.0,
            "diagnosis": -1.4,
            "medication": -1.4,
            "directives": -0.9,
            "jargon": -0.8,
            "closed_questions": -0.7,
            "orders": -0.6,
            "lecturing": -0.3,
        },
    ),
    "exploration": PrincipleWeights(
        -1.5,
        {
            "open_question": 2.5,
            "tentative": 0.9,
            "own_words": 0.6,
            "feelings_mirrored": 0.5,
            "choice": 0.4,
            "pushing": -0.9,
            "closed_questions": -0.7,
            "minimising": -0.7,
            "diagnosis": -0.7,
            "jargon": -0.5,
            "platitudes": -0.4,
            "lecturing": -0.4,
        },
    ),
    "autonomy": PrincipleWeights(
        -0.6,
        {
            "choice": 1.4,
            "strengths": 1.1,
            "open_question": 1.0,
            "tentative": 0.5,
            "to_the_client": 0.3,
            "directives": -1.7,
            "diagnosis": -1.1,
            "orders": -0.9,
            "minimising": -0.8,
            "closed_questions": -0.6,
            "medication": -0.6,
            "jargon": -0.6,
            "lecturing": -0.4,
        },
    ),
    "staging": PrincipleWeights(
        -0.4,
        {
            "open_question": 1.1,
            "tentative": 1.0,
            "choice": 1.0,
            "feelings_mirrored": 0.5,
            "feelings_named": 0.4,
            "pushing": -1.9,
            "minimising": -1.2,
            "diagnosis": -0.9,
            "closed_questions": -0.8,
            "crisis_unmet": -0.8,
            "jargon": -0.7,
            "medication": -0.6,
            "lecturing": -0.5,
        },
    ),
}
