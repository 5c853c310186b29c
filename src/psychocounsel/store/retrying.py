"""Plan -> Plan: a new artifact in which what failed in a sealed one is asked again.

The sealed one stays as it is, for its children point at it.
"""

from dataclasses import replace

from psychocounsel.store.artifacts import Draft, Plan
from psychocounsel.store.store import Store

_FAILED = "failed"


def note_failed(draft: Draft, count: int) -> None:
    """Note in the manifest how many items of a draft another attempt may mend."""
    draft.notes[_FAILED] = count


def asked_again(plan: Plan, store: Store) -> Plan:
    """Return the plan itself, or, where it is sealed with failures, that of the artifact that retries them.

    The retries of a plan form a chain, whose end is returned: the same call goes on with an unfinished one.
    """
    while (sealed := store.find(plan)) is not None and sealed.manifest["notes"].get(_FAILED):
        plan = replace(plan, settings={**plan.settings, "retried_from": plan.id})
    return plan
