"""Crisis services stay in every text, by name, number, link and mail address; other contacts do not."""

# ruff: noqa: RUF001 - full-width marks are those of Chinese

from pathlib import Path

import pytest

from psychocounsel.config.corpus import CleaningConfig, DeidentificationConfig
from psychocounsel.config.loading import load_config
from psychocounsel.corpus.authors import KnownPeople, person
from psychocounsel.corpus.cleaning import prepare, response_steps, speech_steps
from psychocounsel.corpus.crisis import BUNDLED, CrisisServicesFile, Service, crisis_services
from psychocounsel.corpus.deidentify import deidentify, open_deidentifier
from psychocounsel.errors import ConfigError

LISTED = [
    (country.country, service) for country in load_config(CrisisServicesFile, BUNDLED).countries
    for service in country.services
]  # fmt: skip
PATTERNS = open_deidentifier(DeidentificationConfig(engine="patterns"))
AUTHORS = KnownPeople.of(map(person, ["Kiran Roe", "Sneha Patel", "Jane Roe", "Mental Health Professional"]))
STEPS = {
    contacts: response_steps(CleaningConfig.model_validate({"contacts": contacts}), AUTHORS, crisis_services())
    for contacts in ("drop_sentence", "placeholder", "keep")
}


def after_everything(text: str, contacts: str) -> str:
    return deidentify(prepare(text, STEPS[contacts]).text, PATTERNS)


def sentences_on(service: Service) -> list[str]:
    spoken = [f"In a crisis you can reach the {service.name} helpline at any hour."]
    spoken += [f"Please call {number} if you feel unsafe." for number in service.numbers]
    spoken += [f"Their page is https://www.{domain}/get-help, for any day or night." for domain in service.domains]
    spoken += [f"You may write to help@{domain} as well, and see {domain} today." for domain in service.domains]
    spoken += [f"More is at {address} today." for address in service.addresses]
    spoken += [f"GO TO {domain.upper()} NOW." for domain in service.domains]
    return spoken


def test_the_list_covers_many_countries() -> None:
    assert len({country for country, _ in LISTED}) >= 60
    assert len(LISTED) >= 150


@pytest.mark.parametrize("contacts", STEPS)
def test_no_sentence_on_a_listed_service_is_touched(contacts: str) -> None:
    for country, service in LISTED:
        text = " ".join(["I am glad that you wrote.", *sentences_on(service), "How are you now?"])
        assert after_everything(text, contacts) == text, country


@pytest.mark.parametrize(
    "text",
    [
        "My colleague says that the KIRAN helpline answers at night.",
        "In an emergency the local crisis team answers at 555-014-2299.",
        "The suicide hotline of your county is (514) 690-2469.",
        "Write to jo@samaritans.org when the nights are long.",
        "See samaritans.org or www.befrienders.org.",
        "请看www.befrienders.org，那里有人。也可以上988lifeline.org聊天。",
        "I hear you. See childline.org.zw or 1980.org.tw for help.",
        "I hear you. Call 116 123/0800 1111 at night.",
        "I hear you.\n\n- Hjálparsíminn: 1717",
        "Call 1\u2011800\u2011273\u20118255, 1\u2212800\u2212656\u2212HOPE or (800) 273\u20118255.",
        "اتصل على ٠٨٠٠٨٨٨٠٧٠٠ الآن",
        "０１２０－７８３－５５６へ電話してください。",
        "AASRA answers on 91-9820466726 and 022-5550 1234 at any hour.",
        "The Vandrevala Foundation answers on 98765 43210 too.",
        "See https://en.wikipedia.org/wiki/List_of_suicide_crisis_lines or "
        "https://www.reddit.com/r/SuicideWatch/wiki/hotlines?utm=1 for your country.",
    ],
)
def test_what_may_be_a_crisis_service_stays_when_in_doubt(text: str) -> None:
    for contacts in STEPS:
        assert after_everything(text, contacts) == text


def test_the_address_of_a_link_to_a_service_stays_and_no_other() -> None:
    raw = '<p><a href="https://988lifeline.org/chat?x=1">Chat here</a> or <a href="tel:988">call</a> us.</p>'
    for contacts in STEPS:
        left = after_everything(f'{raw}<a href="https://x.org/a">My blog</a>', contacts)
        assert left == "Chat here (https://988lifeline.org/chat?x=1) or call (988) us.\n\nMy blog"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("I hear you. In an emergency, call me at 555-014-2299.", "I hear you."),
        ("I hear you. My office number in a crisis is (514) 690-2469.", "I hear you."),
        ("I hear you. See notsamaritans.org or samaritans.org.evil.com.", "I hear you."),
        ("I hear you. See https://x.org/?from=samaritans.org or write to samaritans.org@x.com.", "I hear you."),
        ("Call 988 or visit www.x.org.", "Call 988."),
        ("Die Rufnummer 112 gilt, www.x.org.", "Die Rufnummer 112 gilt."),
        ("Visit the Trevor Project, or https://www.jane.com/a.", "Visit the Trevor Project."),
    ],
)
def test_other_contacts_still_go(text: str, left: str) -> None:
    assert after_everything(text, "drop_sentence") == left


def test_a_person_named_like_a_service_is_still_hidden() -> None:
    assert deidentify("My sister Sneha moved out.", PATTERNS) == "My sister [PERSON_1] moved out."


def test_a_config_adds_services_of_its_own(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    service = '{name: Quiet Harbour, numbers: ["503-555-0142"], domains: [harbour.example]}'
    own.write_text(f"countries:\n- country: US\n  calling_code: '1'\n  services: [{service}]\n", encoding="utf-8")
    text = "Ring 503-555-0142, see www.harbour.example, or 1-800-273-8255."
    steps = response_steps(CleaningConfig(), AUTHORS, crisis_services(own))
    assert prepare(text, steps).text == text
    assert after_everything(text, "drop_sentence") == "Ring, or 1-800-273-8255."
    # In speeches too.
    linked = prepare('<a href="https://harbour.example/now">Write</a>', speech_steps(crisis_services(own)))
    assert linked.text == "Write (https://harbour.example/now)"


def test_a_country_that_is_no_code_is_refused_with_its_line(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("countries:\n- country: Spain\n  services: [{name: Telefono, numbers: ['024']}]\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"own.yaml line 2: countries.0.country: .*\[A-Z\]\{2\}"):
        crisis_services(own)
