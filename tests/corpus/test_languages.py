"""Texts in other languages and scripts pass reading, cleaning, duplicates and splits undamaged."""

# ruff: noqa: RUF001 - full-width marks are those of Chinese

import json
from pathlib import Path

import pytest

from psychocounsel.config.corpus import CorpusConfig
from psychocounsel.config.schema import BuildPreferencesConfig
from psychocounsel.corpus.build import make_corpus
from psychocounsel.store.schemas import read_candidates, read_speeches
from psychocounsel.store.store import Store

TEXTS = {
    "zh": (
        "我最近总是睡不着，心里很烦。（流泪）妈妈说我太敏感了！可是我真的很难过……第{}天晚上，我都躺着想工作的事情，你能帮帮我吗？",
        "听起来你很累。晚上躺下时，脑子里在想什么？如果你想伤害自己，请拨打心理援助热线12356。",
    ),
    "de": (
        "Ich kann seit {} Wochen nicht schlafen. (weint) Meine Mutter sagt, ich sei zu empfindlich... "
        "Am 3. Mai war z.B. alles zu viel, u.a. die Arbeit.",
        "Das klingt sehr anstrengend. Wann hat es angefangen? Rufen Sie die Telefonseelsorge unter 0800 111 0 111 an.",
    ),
    "es": (
        "Últimamente no puedo dormir, ya van {} noches. ¿Qué me pasa? Mi hermana dice que soy demasiado sensible…",
        "Suena agotador. ¿Desde cuándo te pasa? Llama al 024 si piensas en hacerte daño.",
    ),
    "ar": (
        "لا أستطيع النوم منذ {} أسابيع. (تبكي) أمي تقول إنني حساسة جداً... ماذا أفعل؟ أشعر بأنني وحيدة تماماً.",
        "يبدو أن هذا مرهق. متى بدأ ذلك؟ اتصل بالخط 16328 إذا فكرت في إيذاء نفسك.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("language", TEXTS)
def test_nothing_is_damaged_and_near_duplicates_stay_together(tmp_path: Path, language: str) -> None:
    speech, answer = TEXTS[language]
    speeches = [speech.format(number) for number in range(2, 5)]
    speeches += ["".join(sorted(speech.format(number))) for number in range(6)]
    rows = [
        {"key": str(at), "text": text, "who": who, "answer": answer} for at, text in enumerate(speeches) for who in "ab"
    ]
    for name, lines in (("speeches", rows[::2]), ("answers", rows)):
        content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (tmp_path / f"{name}.jsonl").write_text(content, encoding="utf-8")
    config = CorpusConfig.model_validate(
        {
            "name": "talk",
            "speeches": [{
                "path": str(tmp_path / "speeches.jsonl"), "columns": {"text": "text", "key": "key"},
                "licence": "cc0-1.0", "data_class": "public",
            }],
            "candidates": [{
                "path": str(tmp_path / "answers.jsonl"),
                "columns": {"text": "answer", "author": "who", "speech_key": "key"},
                "licence": "cc0-1.0", "data_class": "public",
            }],
            "cleaning": {"min_chars": 20, "languages": []},
            "deidentification": {"engine": "patterns"},
            "split": {"dev_share": 0.0, "test_share": 0.3},
        }
    )  # fmt: skip
    corpus = make_corpus(config, Store(tmp_path / "store"))
    rows_of = read_speeches(corpus.speeches)
    assert [row.speech.text for row in rows_of[:3]] == speeches[:3]
    assert len({row.cluster for row in rows_of[:3]}) == len({row.split for row in rows_of[:3]}) == 1
    assert corpus.candidates is not None
    assert {each.text for each in read_candidates(corpus.candidates)} == {answer}


def test_the_offline_judge_refuses_languages_that_its_word_lists_do_not_have(tmp_path: Path) -> None:
    source = {"path": "s.jsonl", "columns": {"text": "text"}, "licence": "cc0-1.0", "data_class": "public"}
    corpus = {"name": "talk", "speeches": [source], "cleaning": {"languages": ["zh"]}}
    with pytest.raises(ValueError, match=r"English words .* cannot read zh; name a model as judge"):
        BuildPreferencesConfig.model_validate({"name": "talk", "corpus": corpus})
    corpus["cleaning"] = {"languages": ["zh", "en"]}
    assert BuildPreferencesConfig.model_validate({"name": "talk", "corpus": corpus}).judge.backend == "offline"
