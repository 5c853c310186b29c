"""The settings of docs/how-to/public-sets.md read files that are laid out as those of the sets."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from psychocounsel.config.corpus import CorpusConfig
from psychocounsel.config.loading import config_of
from psychocounsel.config.schema import ImportPreferencesConfig
from psychocounsel.corpus.build import make_corpus
from psychocounsel.corpus.preferences import read_preference_rows
from psychocounsel.store.schemas import read_candidates, read_speeches
from psychocounsel.store.store import Store
from release_files import speech

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "public-sets.md"
BLOCKS = re.findall(r"```yaml[^\n]*\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
COLUMNS = re.findall(r"^\| ([^|`]+) \| `(\{.*\})` \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
ASKED = [speech(1), speech(2)]
ANSWER = "So you say."


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def talk(role: str, text: str, client: str, helper: str) -> list[list[dict[str, Any]]]:
    """Return two talks in which the client speaks twice, with an empty turn between."""
    return [
        [
            {role: who, text: said}
            for who, said in (
                *((client, asked), (helper, ANSWER)),
                *((client, f"{asked} Too."), (client, " "), (helper, f"{ANSWER}\n")),
            )
        ]
        for asked in ASKED
    ]


def csv_talks(sign: str) -> str:
    rows = [
        f"hit:{at}_conv:{at}{sign}{number}{sign}sad{sign}{2 * at + number % 2}{sign}{message['text']}"
        for at, said in enumerate(talk("speaker", "text", "a", "b"))
        for number, message in enumerate((each for each in said if each["text"].strip()), start=1)
    ]
    header = sign.join(("conv_id", "utterance_idx", "context", "speaker_idx", "utterance"))
    return "\n".join([header, *rows]).replace(ANSWER, '"So_comma_ you say.').replace(" Too", "_comma_ too") + "\n"


def interview(said: list[dict[str, Any]]) -> str:
    rows = "".join(f"36.5\t39.6\t{each['speaker']}\t{each['value'].strip()}\n" for each in said)
    return f"start_time\tstop_time\tspeaker\tvalue\n{rows}"


def files() -> dict[str, str]:
    """Return texts by the path of a file."""
    comments = [
        {"id": f"c{at}{number}", "parent_id": parent, "link_id": f"t3_p{at}", "body": f"{ANSWER} {number}"}
        for at in range(2)
        for number, parent in enumerate((f"t3_p{at}", f"t1_c{at}0"))
    ]
    trees = [
        {"message_id": f"m{at}{number}", "text": text, "role": role} | ({"parent_id": f"m{at}0"} if number else {})
        for at, asked in enumerate(ASKED)
        for number, (role, text) in enumerate((("prompter", asked), ("assistant", ANSWER), ("assistant", "No.")))
    ]
    return {
        "ESConv.json": json.dumps(
            [{"problem_type": "job", "dialog": said} for said in talk("speaker", "content", "seeker", "supporter")]
        ),
        "empatheticdialogues.csv": csv_talks(","),
        **{
            f"{at}_TRANSCRIPT.csv": interview(said)
            for at, said in enumerate(talk("speaker", "value", "Participant", "Ellie"), 300)
        },
        **{
            f"smile/{at}.json": json.dumps(said)
            for at, said in enumerate(talk("role", "content", "client", "counselor"))
        },
        "combined_dataset.json": lines(
            *({"Context": asked, "Response": f"{asked} {n}"} for asked in ASKED for n in (1, 2))
        ),
        "PsyQA_full.json": json.dumps(
            [
                {"question": "?", "description": asked, "questionID": at, "answers": [{"answer_text": ANSWER}] * at}
                for at, asked in enumerate(ASKED)
            ]
        ),
        "CPsyCounD.json": json.dumps(
            [
                {"instruction": "", "input": asked, "output": ANSWER, "history": [["Hello.", "Yes?"]] * at}
                for at, asked in enumerate(ASKED)
            ]
        ),
        "submissions.jsonl": lines(
            *({"id": f"p{at}", "title": "Help", "selftext": asked} for at, asked in enumerate([*ASKED, "[removed]"]))
        ),
        "comments.jsonl": lines(*comments),
        "oasst.messages.jsonl.gz": lines(*trees),
        "nectar.jsonl": lines(
            *(
                {
                    "prompt": f"\n\nHuman: Hello.\n\nAssistant: Yes?\n\nHuman: {asked}\n\nAssistant: ",
                    "answers": [{"answer": f"{ANSWER} {n}", "model": f"m{n}", "rank": n} for n in (1, 2, 3)],
                }
                for asked in ASKED
            )
        ),
    }


EXPECTED = {
    "ESConv.json": (4, 4),
    "empatheticdialogues.csv": (4, None),
    "*_TRANSCRIPT.csv": (4, None),
    "smile/*.json": (4, None),
    "wildchat/*.parquet": (4, None),
    "CPsyCounD.json": (2, 2),
    "combined_dataset.json": (2, 4),
    "PsyQA_full.json": (2, 1),
    "submissions.jsonl": (2, 2),
    "oasst.messages.jsonl.gz": (2, 4),
    "nectar.jsonl": (2, 6),
}
"""Speeches and responses by the path of the speeches."""


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[0][2:].split(":")[0])
def test_a_set_is_read_whole(tmp_path: Path, block: str) -> None:
    for name, content in files().items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    (tmp_path / "wildchat").mkdir()
    chats = [
        {"language": "English", "toxic": False, "conversation": said}
        for said in talk("role", "content", "user", "assistant")
    ]
    pq.write_table(pa.Table.from_pylist(chats), tmp_path / "wildchat" / "0.parquet")
    given = yaml.safe_load(block)
    name = given["speeches"][0]["path"]
    for source in (*given["speeches"], *given.get("candidates", ())):
        source["path"] = str(tmp_path / source["path"])
    kept = {"cleaning": {"min_chars": 1, "languages": []}, "deidentification": {"engine": "none"}}
    given |= {"name": "set", "split": {"test_share": 0, "dev_share": 0}, **kept}
    made = make_corpus(config_of(CorpusConfig, given), Store(tmp_path / "store"))
    speeches = [each.speech for each in read_speeches(made.speeches)]
    answers = None if made.candidates is None else len(read_candidates(made.candidates))
    assert (len(speeches), answers) == EXPECTED[name]
    assert made.speeches.metrics["funnel"]["rows_in"] == len(speeches) + 2 * (name == "combined_dataset.json")
    said = [*(each.text for each in speeches), *(turn.content for each in speeches for turn in each.history)]
    assert all(any(asked in text for text in said) for asked in ASKED)
    assert not any(mark in text for text in said for mark in ("_comma_", "Human:", "removed"))


def responses(one: str, two: str, at: int) -> dict[str, str]:
    """Return a good and a bad response; in every second row the bad one comes first."""
    return dict(zip((one, two), ("Bad.", "Good.") if at % 2 else ("Good.", "Bad."), strict=True))


@pytest.mark.parametrize(("name", "columns"), COLUMNS, ids=[name for name, _ in COLUMNS])
def test_the_preferred_response_is_the_chosen_one(tmp_path: Path, name: str, columns: str) -> None:
    rows: list[dict[str, Any]] = []
    for at, asked in enumerate((*ASKED, "?")):
        user = {"role": "user", "content": asked}
        strength, winner = ((-2, "model_a"), (2, "model_b"), (0, "tie (bothbad)"))[at]
        sides = responses("conversation_a", "conversation_b", at)
        chats = {side: [user, {"role": "assistant", "content": text}] for side, text in sides.items()}
        ranked = [{"answer": text, "rank": n} for n, text in enumerate(("Good.", "So so.", "Bad."), start=1)]
        rows.append(
            {
                "HelpSteer3": {"context": [user], "overall_preference": strength}
                | responses("response1", "response2", at),
                "PKU-SafeRLHF": {"prompt": asked, "better_response_id": at % 2}
                | responses("response_0", "response_1", at),
                "SHP": {"history": asked, "labels": 1 - at % 2} | responses("human_ref_A", "human_ref_B", at),
                "Nectar": {"prompt": f"\n\nHuman: {asked}\n\nAssistant: ", "answers": ranked},
                "Chatbot Arena": {"winner": winner, **chats},
            }[name]
        )
    (tmp_path / "train.json").write_text(lines(*rows), encoding="utf-8")
    given = {"name": "set", "source": str(tmp_path), "licence": "mit", "data_class": "public"}
    found = read_preference_rows(config_of(ImportPreferencesConfig, {**given, "columns": yaml.safe_load(columns)}))
    assert [row.question for row in found[:2]] == ASKED
    assert {(row.chosen.text, row.rejected.text) for row in found[:2]} == {("Good.", "Bad.")}
    assert (found[2].fault == "no_preference") == (name in ("HelpSteer3", "Chatbot Arena"))
