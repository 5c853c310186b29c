"""DeidentificationConfig -> Deidentifier: the engine that a config names."""

from psychocounsel.config.corpus import DeidentificationConfig
from psychocounsel.speeches.crisis_lines import crisis_lines
from psychocounsel.speeches.deidentification.patterns import PatternDeidentifier
from psychocounsel.speeches.deidentification.presidio import PresidioDeidentifier
from psychocounsel.speeches.deidentification.spans import CrisisSpans, Deidentifier


def open_deidentifier(
    config: DeidentificationConfig, crisis_spans: CrisisSpans | None = None
) -> Deidentifier | None:
    """Return the engine, or None for `engine: none`.

    Args:
        config: engine, entities and threshold.
        crisis_spans: where in a text crisis lines stand; those of the bundled list when left out.

    Raises:
        ConfigError: the engine or its pipeline is not installed.
    """
    if config.engine == "none":
        return None
    lines = crisis_spans or crisis_lines().spans
    if config.engine == "presidio" and config.spacy_model is not None:
        return PresidioDeidentifier(config.spacy_model, config.entities, config.min_score, lines)
    return PatternDeidentifier(config.entities, config.min_score, lines)
