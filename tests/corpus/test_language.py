"""Texts of other languages are recognised; short ones and stage directions are not."""

import subprocess
import sys

import pytest
from counsel_chat import counsel_chat

from psychocounsel.corpus.text import is_foreign
from psychocounsel.errors import ConfigError

FOREIGN = {
    "es": "Me siento muy triste desde que murió mi padre y no sé con quién hablar de ello.",
    "de": "Seit der Trennung schlafe ich kaum noch und kann mich auf nichts mehr konzentrieren.",
    "fr": "Je me sens seule depuis mon déménagement et je pleure presque tous les soirs.",
    "pt": "Sinto-me muito sozinha desde que mudei de cidade e choro quase todas as noites.",
    "it": "Da quando ci siamo lasciati non riesco più a dormire e a concentrarmi.",
    "nl": "Sinds de scheiding slaap ik nauwelijks en kan ik me nergens op concentreren.",
    "pl": "Od rozwodu prawie nie śpię i nie mogę się na niczym skupić.",
    "tr": "Annem benimle konuşmuyor ve kendimi çok üzgün hissediyorum, ne yapsam bilmem.",
    "zh": "我最近总是睡不着觉。工作压力很大。不知道该怎么办。",
    "ar": "أشعر بالحزن منذ وفاة والدي ولا أعرف مع من أتحدث.",
    "hi": "मुझे रात को नींद नहीं आती और काम का बहुत तनाव है।",
    "ru": "После развода я почти не сплю и не могу сосредоточиться на работе.",
    "ja": "離婚してからほとんど眠れず、仕事に集中できません。",
    "ko": "이혼한 뒤로 거의 잠을 자지 못하고 일에 집중할 수가 없어요.",
}
STAGE = "(Nods, wiping away tears and looking at the floor) "


@pytest.mark.parametrize("language", sorted(FOREIGN))
def test_other_languages_are_foreign_to_english_only(language: str) -> None:
    text = FOREIGN[language]
    assert is_foreign(text, ("en",))
    assert is_foreign(STAGE + text, ("en",))
    assert not is_foreign(text, (language,))
    assert not is_foreign(text, ("en", language))
    assert not is_foreign(text, ())


@pytest.mark.parametrize(
    "text",
    [
        "(Nods.)", "(Se seca las l\u00e1grimas) I just can't do this any more, I am so tired.", "ok", "Lol idk",
        "Nothing helps.", "my mum's proper doing my head in innit", "HELP ME PLEASE I CANT BREATHE",
        "d\u00e9j\u00e0 vu, je ne sais quoi, I have it all the time honestly", "*sighs* No.", "[PERSON_1] [URL_1]",
        "Certainly.", "12, 13 and 14!!", "",
    ],
)  # fmt: skip
def test_english_short_texts_and_directions_are_not_foreign(text: str) -> None:
    assert not is_foreign(text, ("en",))


def test_an_unknown_code_names_the_key() -> None:
    with pytest.raises(ConfigError, match=r"corpus.cleaning.languages.*xq"):
        is_foreign(FOREIGN["de"], ("xq", "en"))


def test_every_question_of_counsel_chat_is_english() -> None:
    questions = {answer.question for answer in counsel_chat()}
    assert len(questions) == 824
    assert [text for text in questions if is_foreign(text, ("en",))] == []
    beginnings = [text[:40] for text in sorted(questions)[::4]]
    assert [text for text in beginnings if is_foreign(text, ("en",))] == []


def test_importing_it_loads_no_model() -> None:
    code = "import sys, psychocounsel.corpus.text; print(*({'py3langid', 'numpy'} & {*sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
