"""Named cleaning steps for speeches and responses, applied to many texts on all processors."""

import os
import re
import signal
import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import accumulate, chain, islice, pairwise
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from typing import Any, NamedTuple, TypeVar

from psychocounsel.config.corpus import CleaningConfig
from psychocounsel.corpus.authors import KnownPeople, without_signatures
from psychocounsel.corpus.contacts import UNSPACED, holds, web_addresses
from psychocounsel.corpus.crisis import CrisisServices, speaks_of_crisis
from psychocounsel.corpus.deidentify import Placeholders
from psychocounsel.corpus.deidentify.patterns import find_all
from psychocounsel.corpus.text import Span, blanked, is_foreign, normalise, sentences, touches, without_markup
from psychocounsel.llm.types import without_thoughts

# --- Spaces between sentences --------------------

_LOWER = "a-zß-öø-ÿ"
_UPPER = "A-ZÀ-ÖØ-Þ"
_FILE_TYPES = "PDF|DOCX?|XLSX?|PPTX?|JPE?G|PNG|GIF|TXT|HTML?|CSV|EXE|ZIP|MP[34]|JS|NET|MD|Docx?|Pdf|Txt|Net|Js"
_SMALL_STARTS = "i|im|ive|but|and|so|then|my|he|she|we|they|it|its|because|the|this|that|you|your|if|when|what|now|also"
# The marks that end a sentence, what closes it, and no space; written so that `re` skips to the marks.
_MARK = re.compile(r"(?P<mark>[.!?…](?<![.!?…]{2})[.!?…]*)(?P<closing>[)\]”\u2019]?\"?)(?=[^\s.!?…])")
_OPENING = r"[“\u2018\"¿¡(\[]?"
_CAPITAL = (
    rf"{_OPENING}(?!(?:{_FILE_TYPES})\b)"
    rf"(?:[{_UPPER}][{_LOWER}'\u2019]|[IAÉÓYO](?=[\s'\u2019,])|[A-Z]{{2,}}(?![.\w]))"
)
_ENDS_BEFORE_ADDRESS = re.compile(r"(?:[^\W_]|[.,;:!?…]|[.!?…][)\]\"”])\Z")
_AFTER_ADDRESS = re.compile(rf"\)?[.!?]+(?={_CAPITAL})")
# What precedes the marks, the marks, what follows them.
_MISSING_SPACE = [
    (re.compile(before, re.MULTILINE), re.compile(marks), re.compile(after))
    for before, marks, after in (
        # A word of two letters or a number: "U.S.A", "e.g." and initials have one letter before the stop.
        (
            rf"(?<=[{_LOWER}{_UPPER}0-9'\u2019][{_LOWER}0-9])|(?<=[A-Z]{{3}})|(?<=[)\]\"”\u2019%])|(?<=[{_LOWER}] )",
            r"[.…]+",
            _CAPITAL,
        ),
        (rf"(?<=[{_LOWER}'\u2019][{_LOWER}])", r"\.", rf"(?:{_SMALL_STARTS})(?:['\u2019][a-z]+)?[\s,]"),
        (rf"(?<=[{_LOWER}]{{3}})", r"\.", r"\d+[.)]?\s"),
        (r"(?<=[.!?\s]\d)|(?<=^\d)|(?<=[ap]\.m)", r"\.", rf"[{_UPPER}][{_LOWER}]"),
        (rf"(?<=[{_LOWER}{_UPPER}0-9'\u2019)\]\"”])|(?<=[{_LOWER}{_UPPER}] )", r"[!?][.!?…]*", _CAPITAL),
    )
]


def with_sentence_spacing(text: str, crisis: CrisisServices) -> str:
    """Return the text with a space after every sentence and around every web address.

    `I am sad.I feel alone` becomes `I am sad. I feel alone`; `3.5`, `p.m.`, `U.S.A`, `e.g.`, file names,
    `www.example.org` and the domains of crisis services stay.
    """
    marks = list(_MARK.finditer(text))
    if not marks:
        return text
    pages = crisis.pages(text)
    addresses = [each for each in web_addresses(text) if not holds(pages, each.start)]
    gaps = {_after(text, mark) for mark in marks if not (holds(addresses, mark.start()) or holds(pages, mark.start()))}
    for address in addresses:
        beside = text[max(0, address.start - 2) : address.start], text[address.end : address.end + 1]
        before, after = (UNSPACED.sub("", each) for each in beside)
        if _ENDS_BEFORE_ADDRESS.search(before):
            gaps.add(address.start)
        if after.isalnum() or (after and after in "¿¡"):
            gaps.add(address.end)
        elif closing := _AFTER_ADDRESS.match(text, address.end):
            gaps.add(closing.end())
    edges = [0, *sorted(gaps - {-1}), len(text)]
    return " ".join(text[start:end] for start, end in pairwise(edges))


def _after(text: str, mark: re.Match[str]) -> int:
    """Return where a space is missing after the marks, -1 where none is."""
    end = mark.end()
    if mark["closing"].endswith('"'):
        paragraph = text.rfind("\n", 0, mark.start()) + 1
        end -= text.count('"', paragraph, mark.start()) % 2 == 0  # the quotation mark opens what follows
    for before, marks, after in _MISSING_SPACE:
        if marks.fullmatch(mark["mark"]) and before.match(text, mark.start()) and after.match(text, end):
            return end
    return -1


# --- Responses without contacts --------------------

_GAP_AFTER_ADDRESS = re.compile(r"[)\]\"”.]*\s+(?=[“\"'(¿¡]?[A-ZÀ-ÖØ-Þ])")
_GAP_BEFORE_ADDRESS = re.compile(r"(?<![eE]\.g)(?<![iI]\.e)[.!?…][)\]\"”\u2019]*\s+$")
# What leads up to a contact and means nothing without it; `asked` is what one does with it.
_LEAD = re.compile(
    r"(?:(?:[\s,;\u2013-]*\b(?:or|and|either|also)){1,2})?"
    r"(?:[\s,;]*\b(?P<asked>(?:please )?(?:visit|see|check out|go to|look at|click|use|try|text|call)"
    r"|(?:and |so )?you (?:can|may|could) (?:find|read|see|get) (?:it|them|this|that|more)"
    r"|(?:and |so )?you (?:can|may) (?:call|contact|reach|text|e-?mail) (?:me|us))"
    r"|[\s,;]*\b(?:by going to|(?:(?:found|located|listed) )?(?:here|(?:on|at|via|through|from|by|in)"
    r"(?: (?:the|our|his|her|their|its|my))?(?: web ?site| site| page| link)?)"
    r"|(?:(?:the|our|his|her|their|its|my) )?(?:web ?site|site|e-?mail|link)(?: at| is)?|online)){0,4}"
    r"[\s:,;(\[\u2013—-]*$",
    re.IGNORECASE,
)
_LEAD_CHARS = 80
# A sentence that ends with a contact which it is about says nothing without it.
_ANNOUNCES = re.compile(
    r"\b(?:here(?:['\u2019]?s| is| are)|links?|attached"
    r"|(?:this|these|following|below)(?: \w+)? (?:web ?sites?|sites?|page|articles?|videos?|blog|posts?|books?|reads?"
    r"|lists?|resources?|quiz|apps?))\b|\b(?:these|following|below)\W*$",
    re.IGNORECASE,
)
_LACKS_OBJECT = re.compile(
    r"\b(?:recommend|suggest|consult|read|find|see|use|using|join|watch|download|called|named|am|be|is|are|was|of|like"
    r"|than|with|for|to|the|an?|as|about|me|us|call|text|e-?mail|contact|dial|phone|number|al?|el|llam\w+|visit\w*)\W*$",
    re.IGNORECASE,
)
_CLAUSE_ENDS = re.compile(
    r"\s[-\u2013—]+\s|[;—]|,(?=\s(?:but|or|and|so|which|you|please|visit|see|check|go|look|call|text)\b)"
)
_BEGINS_WITH_IF = re.compile(
    r"^\W*(?:if|when|for|to|should|as|since|si|para)\b|,\s(?:and|but|or)\sif\b[^,]*$", re.IGNORECASE
)
_CLAUSE_GOES_ON = re.compile(r"\s+[a-z]")
_OF_SEVERAL = re.compile(r"\s+(?:are|were|have|both)\b")
_THE_SITE = re.compile(r"(?:^|\W)(?:the|their|his|her|our) (?:web ?site|site|page|blog|group)\s*$", re.IGNORECASE)
_EMPTY_ITEM = re.compile(r"[0-9]\)\s*(?:,|$)")
_SAID_WORD = re.compile(r"[^\W\d_]{2,}|\b[aAI]\b")
_MIN_WORDS, _MIN_WORDS_POINTED_AT, _MIN_WORDS_OF_ITEM = 7, 4, 2
_MAX_CLAUSES = 20  # every one is looked at from the beginning of its sentence
_SOMEBODY = frozenset(("PERSON", "HANDLE", "ADDRESS"))
# The next sentence speaks of what this one names.
_POINTS_BACK = re.compile(r"\s*(?:He|She|They|It|His|Her|Their|Its|This|That|These|Those|There you|Once there)\b")
_MARKDOWN_LINK = re.compile(
    r"!?\[(?P<words>[^\[\]\n]{1,300})\]\((?P<address>(?:https?:|www\.|mailto:|tel:)[^\s()]{1,2000})\)"
)
_SPACE_BEFORE_MARK = re.compile(r"\s+(?=[.,;!?](?:\s|$))")
_BULLET = r"[ \t]*(?:[-*•·\u2013—]|\(?[0-9]{1,2}[.)])"
_ITEM = re.compile(rf"{_BULLET}[ \t]")
_EMPTY_BULLET = re.compile(rf"(?m)^{_BULLET}[ \t]*$\n?")
_CONTACT = "\ue000"  # of private use
_BRACKETS = re.compile(rf"[(\[][^()\[\]{_CONTACT}]*{_CONTACT}[^()\[\]]*[)\]]")


def with_placeholders(text: str, crisis: CrisisServices) -> str:
    """Return the text with `[PHONE_1]` or `[URL_1]` for its contacts, except crisis services; equal ones share one."""
    return Placeholders(text).put_in(text, crisis.told_apart(text)[1])


def without_contacts(text: str, crisis: CrisisServices) -> str:
    """Return the text without contacts: each goes with the words that lead up to it; of a Markdown link the words stay.

    Its sentence goes too if it says nothing without, or little but a person's name, and so does one before it that only
    announces it. What names a crisis service stays, and so does what the next sentence points back at, with `his` or
    `it`.
    """
    found = crisis.told_apart(text)[1]
    if not found:
        return text
    if "](" in text:
        text = _MARKDOWN_LINK.sub(lambda link: link.group() if crisis.owns(link["address"]) else link["words"], text)
        found = crisis.told_apart(text)[1]
    services = crisis.spans(text)
    starts = [contact.start for contact in found]
    kept: list[tuple[str, bool]] = []  # a sentence, and whether it names a crisis service
    for start, end in pairwise(_edges(text, found)):
        piece = text[start:end]
        held = found[bisect_left(starts, start) : bisect_left(starts, end)]
        first, last = (bisect_left(services, (edge, 0)) for edge in (start, end))
        ours = [(begin - start, stop - start) for begin, stop in services[first:last]]
        names_service = bool(ours)
        rest, says_enough = _cut_out(piece, [(contact.start - start, contact.end - start) for contact in held], ours)
        is_whole = len(_SAID_WORD.findall(rest)) >= _MIN_WORDS_POINTED_AT and _LACKS_OBJECT.search(rest) is None
        if not held or names_service or says_enough or (is_whole and _POINTS_BACK.match(text, end)):
            kept.append((rest, names_service))
            continue
        if clauses := _clauses_before(piece, held[0].start - start):
            kept.append((clauses, False))
            continue
        if held[0].start == start and kept and not kept[-1][1] and _ANNOUNCES.search(kept[-1][0]):
            kept.pop()  # "Here is a link."
        kept.append((piece[len(piece.rstrip("\n")) :], False))
    while kept and not kept[-1][1] and kept[-1][0].rstrip()[-1:] in ("", ":"):
        kept.pop()  # a last heading such as "Resources:" with nothing under it
    return _EMPTY_BULLET.sub("", "".join(piece for piece, _ in kept)).strip()


def _edges(text: str, found: Sequence[Span]) -> list[int]:
    """Return where sentences begin; an address after a full stop, and a capital after an address, begin one too."""
    edges = {0, *accumulate(map(len, sentences(text)))}
    for contact in found:
        if (gap := _GAP_AFTER_ADDRESS.match(text, contact.end)) is not None:
            edges.add(gap.end())
        if _GAP_BEFORE_ADDRESS.search(text[max(0, contact.start - 8) : contact.start]):
            edges.add(contact.start)
    return sorted(edges)


def _cut_out(sentence: str, spans: Sequence[tuple[int, int]], services: Sequence[tuple[int, int]]) -> tuple[str, bool]:
    """Cut the spans out of a sentence, each with the words that lead up to it, or with the brackets around it.

    Also return whether what is left says something by itself. `services` are where crisis services stand.
    """
    if not spans:
        return sentence, True
    asides = _asides(sentence, spans, services)
    outside = [span for span in spans if not holds(asides, span[0])]
    said, position, stands = "", 0, True
    for start, end in sorted([*asides, *outside]):
        before, after = sentence[position:start], sentence[end:]
        position = end
        if holds(asides, start):
            said += before.rstrip()
            continue
        goes_on = _CLAUSE_GOES_ON.match(after) is not None
        # In "their site WWW says that …" it belongs to what follows.
        leads = not (goes_on and _THE_SITE.search(before))
        lead = _LEAD.search(before, max(0, len(before) - _LEAD_CHARS)) if leads else None
        said += before.rstrip() if lead is None else before[: lead.start()]
        stands = stands and not _OF_SEVERAL.match(after) and not _is_needed(said, lead, goes_on)
    rest = _SPACE_BEFORE_MARK.sub("", said + sentence[position:])
    body = rest.rstrip()
    enough = _MIN_WORDS_OF_ITEM if _ITEM.match(sentence) else _MIN_WORDS if outside else _MIN_WORDS_POINTED_AT
    words = len(_SAID_WORD.findall(body))
    stands = stands and words >= enough and _EMPTY_ITEM.search(body) is None
    stands = stands and (words >= _MIN_WORDS or not _tells_of_somebody(body))  # "- Jane Roe, LMFT: WWW"
    if not sentence[position:].strip(" \n.!?…"):  # it ended with a contact
        stands = stands and _ANNOUNCES.search(body) is None
        # A stop would part a number from a word such as "hotline" behind it, by which it is a service's.
        if stands and body[-1].isalnum() and (words >= _MIN_WORDS or not services):
            rest = f"{body}.{sentence[len(sentence.rstrip()) :]}"
    return rest, stands


def _asides(
    sentence: str, spans: Sequence[tuple[int, int]], services: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Return the brackets that hold a contact and little else, such as `(see WWW)`: a sentence stands without them.

    What names a crisis service, or says that a number is one's, is more.
    """
    marked = blanked(sentence, spans, _CONTACT)
    return [
        bracket.span()
        for bracket in _BRACKETS.finditer(marked)
        if len(_SAID_WORD.findall(bracket.group())) < _MIN_WORDS
        and not touches(*bracket.span(), services)
        and not speaks_of_crisis(bracket.group())
    ]


def _is_needed(said: str, lead: re.Match[str] | None, goes_on: bool) -> bool:
    """Return whether a sentence makes no sense without a contact, of which `said` is left before it."""
    led = "" if lead is None else lead.group().rstrip()
    is_subject = goes_on and (not said.rstrip()[-1:].isalnum() or ":" in led or led.endswith((",", ";")))
    is_asked = lead is not None and lead["asked"] is not None
    return is_subject or is_asked or _LACKS_OBJECT.search(said, max(0, len(said) - _LEAD_CHARS)) is not None


def _clauses_before(sentence: str, position: int) -> str:
    """Return the clauses of a sentence before the one that holds a position, as a sentence.

    Empty if they say too little, or tell of somebody whom the contact is of.
    """
    ends = [match.start() for match in _CLAUSE_ENDS.finditer(sentence, 0, position)]
    for end in reversed(ends[-_MAX_CLAUSES:]):
        said = sentence[:end].rstrip()
        lacks = any(pattern.search(said) for pattern in (_LACKS_OBJECT, _ANNOUNCES, _BEGINS_WITH_IF))
        if not lacks and len(_SAID_WORD.findall(said)) >= _MIN_WORDS:
            return "" if _tells_of_somebody(said) else f"{said}.{sentence[len(sentence.rstrip()) :]}"
    return ""


def _tells_of_somebody(text: str) -> bool:
    """Return whether a text gives the name, the account or the street of a person."""
    return any(span.entity in _SOMEBODY for span in find_all(text))


# --- Steps --------------------

DEIDENTIFICATION = "deidentification"

_MAX_ROUNDS = 20


class Step(NamedTuple):
    """One pure change of a text, and the name under which the funnel counts it."""

    name: str
    change: Callable[[str], str]


class Change(NamedTuple):
    """What one step did to a text, when it changed it."""

    step: str
    before: str
    after: str


class Prepared(NamedTuple):
    """A clean text before and after de-identification, and the names of the steps that changed it, in their order.

    `is_foreign` says that it is in none of the wanted languages.
    """

    plain: str
    text: str
    changed_by: tuple[str, ...]
    is_foreign: bool = False


SPEECH_STEPS = ("markup", "characters", "sentence_spacing")


def speech_steps(crisis: CrisisServices) -> tuple[Step, ...]:
    """Return the steps for speeches, by their names in `SPEECH_STEPS`; what names a service of `crisis` stays whole."""
    changing = (partial(without_markup, is_kept=crisis.owns), normalise, partial(with_sentence_spacing, crisis=crisis))
    return tuple(map(Step, SPEECH_STEPS, changing))


def response_steps(config: CleaningConfig, known: KnownPeople, crisis: CrisisServices) -> tuple[Step, ...]:
    """Return the steps for responses: those for speeches, then thoughts, and signatures and contacts as configured.

    The names of `known` authors are looked for in every response. The services of `crisis` stay.
    """
    steps = [*speech_steps(crisis), Step("thoughts", without_thoughts)]
    if config.signatures == "remove":
        in_addresses = config.contacts == "keep"  # else addresses go whole
        change = partial(without_signatures, known=known, crisis=crisis, in_addresses=in_addresses)
        steps.append(Step("signatures", change))
    if config.contacts != "keep":
        remove = without_contacts if config.contacts == "drop_sentence" else with_placeholders
        steps.append(Step("contacts", partial(remove, crisis=crisis)))
    return tuple(steps)


def changes(text: str, steps: Sequence[Step]) -> list[Change]:
    """Apply the steps in order, again and again, until none changes the text; return each change."""
    made: list[Change] = []
    for _ in range(_MAX_ROUNDS):
        before = text
        for step in steps:
            after = step.change(text)
            if after != text:
                made.append(Change(step.name, text, after))
            text = after
        if text == before:
            break
    return made


def prepare(
    raw: str,
    steps: Sequence[Step],
    deidentify: Callable[[str], str] | None = None,
    languages: Iterable[str] = (),
) -> Prepared:
    """Clean a text, de-identify it, and see whether it is in none of the languages, if any are named."""
    made = changes(raw, steps)
    plain = made[-1].after if made else raw
    names = {change.step for change in made}
    changed_by = tuple(step.name for step in steps if step.name in names)
    if not plain:
        return Prepared(plain, plain, changed_by)
    text = plain if deidentify is None else deidentify(plain)
    changed_by = changed_by if text == plain else (*changed_by, DEIDENTIFICATION)
    return Prepared(plain, text, changed_by, is_foreign(plain, languages))


# --- Many texts --------------------

_Result = TypeVar("_Result")
_Function = Callable[[str], _Result]


def parallel_map(
    open_function: Callable[[], _Function[_Result]],
    texts: Iterable[str],
    workers: int,
    first: int = 4_000,
    chunk: int = 250,
) -> Iterator[_Result]:
    """Yield what a function returns for each text, in order; texts are read no further ahead than the workers need.

    `open_function`, which is picklable, returns the function, here and in each of the `workers` processes. The `first`
    texts are done here, because workers take a second or two to start, the others in chunks. A worker that dies costs
    time only: what remains is done here. Workers end with their parent, however it ends.
    """
    function, remaining = open_function(), iter(texts)
    yield from map(function, islice(remaining, first if workers else None))
    chunks = iter(lambda: list(islice(remaining, chunk)), [])
    if (beyond := next(chunks, None)) is None:
        return
    chunks = chain([beyond], chunks)
    # Spawned, not forked: a fork would inherit locks that other threads of this process hold.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (open_function,))
    batches, futures = deque[list[str]](), deque[Future[list[_Result]]]()
    try:
        for batch in chunks:
            batches.append(batch)
            futures.append(pool.submit(_work, batch))
            if len(futures) == workers * 3:
                yield from futures.popleft().result()
                batches.popleft()
        for future in futures:
            yield from future.result()
            batches.popleft()
    except BrokenProcessPool:
        yield from map(function, chain.from_iterable(chain(batches, chunks)))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def worker_count() -> int:
    """Return one worker per processor, at most eight, none on a single processor."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(count, 8) if count > 1 else 0


_function: _Function[Any]  # of a worker


def _start_worker(open_function: Callable[[], _Function[Any]]) -> None:
    global _function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _function = open_function()


def _end_with_parent() -> None:
    if (parent := parent_process()) is not None:
        wait([parent.sentinel])
        os._exit(1)


def _work(texts: Sequence[str]) -> list[Any]:
    return [_function(text) for text in texts]
