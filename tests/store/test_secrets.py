import pytest

from psychocounsel.store.publish import home_kinds, key_kinds, kinds_in, redacted

LETTERS = "Ab3" * 12


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (f"key = sk-{LETTERS}", "an API key (sk-)"),
        (f'{{"k": "sk-proj-{LETTERS}"}}', "an API key (sk-)"),
        (f"hf_{LETTERS}", "a Hugging Face token"),
        ("id AKIAABCDEFGHIJKLMNOP.", "an AWS access key"),
        (f"ghp_{LETTERS}", "a GitHub token"),
        (f"github_pat_{LETTERS}", "a GitHub token"),
        (f"AIza{LETTERS[:35]}", "a Google API key"),
        (f"xoxb-{LETTERS}", "a Slack token"),
        ("-----BEGIN RSA PRIVATE KEY-----", "a private key"),
        ("-----BEGIN PRIVATE KEY-----", "a private key"),
    ],
)
def test_keys_are_known_by_their_shape(text: str, kind: str) -> None:
    assert list(kinds_in(text, key_kinds({}))) == [kind]


@pytest.mark.parametrize(
    "text",
    [
        "a risk-taking-behaviour-that-frightens-me",
        "the task-is-done-and-nothing-else-matters",
        "hf_hub_download(repo_id)",
        "sk-short",
        "BAKIAABCDEFGHIJKLMNOPQ",
        "my PRIVATE KEY to happiness",
        "ghp_short",
    ],
)
def test_words_that_look_a_little_alike_are_none(text: str) -> None:
    assert not list(kinds_in(text, key_kinds({})))


def test_the_values_of_this_machines_own_keys_are_looked_for() -> None:
    environment = {
        "MY_API_KEY": "correct.horse.battery",
        "SHORT_TOKEN": "EMPTY",
        "PATH": "/usr/bin/something",
        "hf_token": " padded-value ",
    }
    kinds = key_kinds(environment)
    assert list(kinds_in("x correct.horse.battery y", kinds)) == ["the value of MY_API_KEY"]
    assert list(kinds_in('"padded-value"', kinds)) == ["the value of hf_token"]
    assert not list(kinds_in("EMPTY correctXhorseXbattery /usr/bin/something", kinds))


@pytest.mark.parametrize(
    "text", ["/home/anna/data", "file:///home/anna/x", '"/Users/anna/c.csv"', "C:\\\\Users\\\\anna", "/root/x"]
)
def test_paths_of_home_folders_are_found(text: str) -> None:
    assert list(kinds_in(text, home_kinds())) == ["a path of a home folder"]


@pytest.mark.parametrize("text", ["https://x.org/home/page", "data/home/anna", "/srv/data", "at home/work"])
def test_other_paths_are_none(text: str) -> None:
    assert not list(kinds_in(text, home_kinds()))


def test_this_machines_own_home_is_found_wherever_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/srv/people/anna")
    assert list(kinds_in("in /srv/people/anna/data", home_kinds())) == ["a path of a home folder"]
    assert not list(kinds_in("in /srv/people/annabel", home_kinds()))


def test_messages_are_told_without_the_keys_in_them() -> None:
    told = redacted(f"header b'Bearer hf_{LETTERS}' and my-own-value", {"X_TOKEN": "my-own-value"})
    assert told == "header b'Bearer [...]' and [...]"
