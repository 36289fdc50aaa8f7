"""Rows of every known format, typed in full with what must become of them, and every error by its words."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from choosy.data.formats import Untrainable, to_candidates, to_prompt
from choosy.data.reading import placed_prompts, read_candidates, read_prompts
from choosy.types import Message, content_id

DATA = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the sample data is not at {DATA}")

ASK, YES, NO = Message("user", "Is it?"), Message("assistant", "Yes."), Message("assistant", "No.")
ask, yes, no = ({"role": turn.role, "content": turn.content} for turn in (ASK, YES, NO))


def written(folder: Path, *rows: Any, name: str = "d.jsonl") -> str:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(folder / name)


def split(row: dict[str, Any], **options: Any) -> tuple[tuple[Message, ...], list[tuple[str, float | None]]]:
    candidates = to_candidates(row, **options)
    return candidates.prompt.messages, [(each.text, each.gold) for each in candidates.responses]


# ---- rows -> prompts


def test_a_plain_prompt_is_a_chat_unless_it_is_to_be_continued() -> None:
    chat, plain = (
        to_prompt({"prompt": "Is it?"}),
        to_prompt({"prompt": "Is it?"}, as_chat=False),
    )
    assert (chat.text, chat.messages, chat.id) == ("Is it?", (ASK,), content_id("user", "Is it?"))
    assert (plain.text, plain.messages, plain.id) == ("Is it?", (), content_id("Is it?"))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [ask]},
        {"messages": [ask]},
        {"prompt": None, "messages": [ask]},
        {"conversations": [{"from": "human", "value": "Is it?"}]},
    ],
)
@pytest.mark.parametrize("as_chat", [True, False])
def test_conversations_stay_conversations(row: dict[str, Any], as_chat: bool) -> None:
    prompt = to_prompt(row, as_chat=as_chat)
    assert (prompt.text, prompt.messages, prompt.id) == ("Is it?", (ASK,), content_id("user", "Is it?"))


def test_a_longer_conversation_reads_as_its_turns() -> None:
    turns = [("system", "Be short."), ("human", "Hi"), ("gpt", "Hello."), ("human", "Is it?")]
    prompt = to_prompt({"conversations": [{"from": who, "value": what} for who, what in turns]})
    assert prompt.messages == (
        Message("system", "Be short."),
        Message("user", "Hi"),
        Message("assistant", "Hello."),
        ASK,
    )
    assert prompt.text == "system: Be short.\nuser: Hi\nassistant: Hello.\nuser: Is it?"


def test_a_lone_system_turn_shows_its_role() -> None:
    assert to_prompt({"prompt": [{"role": "system", "content": "Go."}]}).text == "system: Go."


@pytest.mark.parametrize(("given", "used"), [("seven", "seven"), (7, "7")])
def test_the_id_column_names_the_prompt(given: object, used: str) -> None:
    assert to_prompt({"id": given, "prompt": "Is it?"}).id == used
    assert to_candidates({"id": given, "prompt": "Is it?", "chosen": "a", "rejected": "b"}).prompt.id == used


def test_the_prompt_of_a_preference_row_needs_no_prompt_column() -> None:
    assert to_prompt({"chosen": [ask, yes], "rejected": [ask, no]}).messages == (ASK,)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            {"headline": "Is it?", "n": 1},
            "no prompt; wanted a column prompt or messages or .* or question or .*, found headline, n",
        ),
        ({}, "found no columns"),
        ({"prompt": 3}, "prompt must be a string or a list of messages, found int"),
        ({"messages": []}, "messages must be .* found an empty list"),
        ({"messages": ["hi"]}, "a message in messages must have role and content"),
        (
            {"messages": [{"role": "user", "content": None}]},
            "a message in messages must have role and content",
        ),
        ({"prompt": " \n"}, "the prompt is empty"),
        ({"messages": [{"role": "user", "content": ""}]}, "the prompt is empty"),
        ({"prompt": [ask, yes]}, "the prompt ends with an assistant turn; end it with a user turn"),
        ({"id": "", "prompt": "a"}, "id must be a non-empty string or an integer, found ''"),
        ({"id": True, "prompt": "a"}, "id must be .* found True"),
        ({"id": 1.5, "prompt": "a"}, "id must be .* found 1.5"),
    ],
)
def test_a_bad_prompt_row_is_named(row: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        to_prompt(row)


# ---- rows -> candidates


HH = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Is it?\n\nAssistant:"
FORMATS: dict[str, dict[str, Any]] = {
    "explicit strings": {"prompt": "Is it?", "chosen": "Yes.", "rejected": "No."},
    "explicit messages": {"prompt": [ask], "chosen": [yes], "rejected": [no]},
    "a string and messages": {"prompt": "Is it?", "chosen": [yes], "rejected": [no]},
    "sharegpt": {
        "conversations": [{"from": "human", "value": "Is it?"}],
        "chosen": {"from": "gpt", "value": "Yes."},
        "rejected": {"from": "gpt", "value": "No."},
    },
    "implicit messages": {"chosen": [ask, yes], "rejected": [ask, no]},
    "distilabel": {"prompt": "Is it?", "messages": [ask, yes], "chosen": [ask, yes], "rejected": [ask, no]},
}


@pytest.mark.parametrize("row", FORMATS.values(), ids=FORMATS)
def test_pairs(row: dict[str, Any]) -> None:
    assert split(row) == ((ASK,), [("Yes.", 1.0), ("No.", 0.0)])


def test_a_candidates_id_covers_prompt_and_responses() -> None:
    prompt = to_candidates(FORMATS["explicit strings"]).prompt
    assert (prompt.id, prompt.text) == (content_id("user", "Is it?", "Yes.", "No."), "Is it?")


def test_responses_have_no_token_ids_yet() -> None:
    assert [each.ids for each in to_candidates(FORMATS["explicit strings"]).responses] == [(), ()]


def test_a_plain_pair_can_stay_plain() -> None:
    prompt = to_candidates(FORMATS["explicit strings"], as_chat=False).prompt
    assert (prompt.text, prompt.messages, prompt.id) == ("Is it?", (), content_id("Is it?", "Yes.", "No."))


@pytest.mark.parametrize(
    ("chosen", "rejected", "asked", "answers"),
    [
        ("The sky is blue.", "The sky is green.", "The sky is", [" blue.", " green."]),
        (
            "The sky is blue.",
            "The sky is black.",
            "The sky is",
            [" blue.", " black."],
        ),  # no word is cut in two
        ("One\n\ntwo", "One\n\nsix", "One", ["\n\ntwo", "\n\nsix"]),
    ],
)
def test_the_words_that_both_strings_share_are_the_prompt(
    chosen: str, rejected: str, asked: str, answers: list[str]
) -> None:
    result = to_candidates({"chosen": chosen, "rejected": rejected}, as_chat=False)
    assert (result.prompt.text, [each.text for each in result.responses]) == (asked, answers)


def test_hh_strings_become_turns() -> None:
    row = {"chosen": HH + " Yes, it is. ", "rejected": HH + " Yes, but no."}
    turns = (Message("user", "Hi"), Message("assistant", "Hello."), ASK)
    assert split(row) == (turns, [("Yes, it is.", 1.0), ("Yes, but no.", 0.0)])
    assert split(row, as_chat=False)[0] == turns


@pytest.mark.parametrize(
    "columns",
    [
        ("chosen_rating", "rejected_rating"),
        ("chosen_score", "rejected_score"),
        ("score_chosen", "score_rejected"),
    ],
)
def test_ratings_are_the_gold(columns: tuple[str, str]) -> None:
    row = FORMATS["explicit strings"] | {columns[0]: 4, columns[1]: 2.5}
    assert split(row)[1] == [("Yes.", 4.0), ("No.", 2.5)]


def test_scored_responses() -> None:
    responses = [{"text": text, "score": score} for text, score in [("No.", -1), ("Yes.", 2.5), ("Maybe.", 0)]]
    assert split({"prompt": "Is it?", "responses": responses}) == (
        (ASK,),
        [("No.", -1.0), ("Yes.", 2.5), ("Maybe.", 0.0)],
    )


def test_ultrafeedback() -> None:
    completions = [{"response": "No.", "overall_score": 3.0}, {"response": "Yes.", "overall_score": 8.5}]
    row = {"instruction": "Is it?", "completions": completions}
    assert split(row) == ((ASK,), [("No.", 3.0), ("Yes.", 8.5)])
    assert to_prompt(row).messages == (ASK,)


PAIR = {"prompt": "Is it?"}
SHP = {
    "history": "Is it?",
    "human_ref_A": "No.",
    "human_ref_B": "Yes.",
    "labels": 0,
    "score_A": 2,
    "score_B": 9,
}


def test_shp_gold_is_the_votes() -> None:
    assert split(SHP) == ((ASK,), [("No.", 2.0), ("Yes.", 9.0)])
    assert split(SHP | {"labels": 1, "score_A": 10})[1] == [("No.", 10.0), ("Yes.", 9.0)]


def test_nemo_ranks_count_down() -> None:
    completions = [{"rank": 1, "completion": [no]}, {"rank": 0, "completion": [yes]}]
    row = {"context": [ask], "completions": completions}
    assert split(row) == ((ASK,), [("No.", -1.0), ("Yes.", 0.0)])
    assert str(split(row)[1][1][1]) == "0.0"


@pytest.mark.parametrize(("label", "gold"), [(True, 1.0), (1, 1.0), (False, -1.0), (0, -1.0)])
@pytest.mark.parametrize("completion", ["Yes.", [yes]])
def test_an_unpaired_completion_is_good_or_bad(completion: Any, label: Any, gold: float) -> None:
    row = {"prompt": "Is it?", "completion": completion, "label": label}
    assert split(row) == ((ASK,), [("Yes.", gold)])
    assert to_prompt(row).messages == (ASK,)


@pytest.mark.parametrize("label", ["yes", 2, -1, 0.5])
def test_a_label_of_an_unpaired_completion_is_one_of_two(label: Any) -> None:
    with pytest.raises(ValueError, match=r"label must be true \(a good completion\) or false, found"):
        split({"prompt": "Is it?", "completion": "Yes.", "label": label})


def test_an_empty_unpaired_completion_is_left_out() -> None:
    with pytest.raises(Untrainable, match="an empty response"):
        split({"prompt": "Is it?", "completion": " ", "label": True})


def test_a_weight_column_comes_along() -> None:
    row = FORMATS["explicit strings"]
    assert to_candidates(row | {"weight": 2}).weight == 2.0
    assert to_candidates(row | {"weight": None}).weight is None


def test_repeated_responses_count_once_and_empty_ones_not_at_all() -> None:
    texts = [("No.", 1), (" No.\n", 1), ("Yes.", 2), ("  ", 0), ("", 5)]
    row = {"prompt": "Is it?", "responses": [{"text": text, "score": score} for text, score in texts]}
    assert split(row)[1] == [("No.", 1.0), ("Yes.", 2.0)]


PARTED = "conversations with different first turns"
ENDLESS = "an answer that does not begin and end with an assistant turn"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (PAIR | {"chosen": "Yes.", "rejected": " Yes."}, "fewer than two different responses"),
        ({"chosen": [ask, yes], "rejected": [ask, yes]}, "fewer than two different responses"),
        ({"chosen": "It is so.", "rejected": "It is so."}, "fewer than two different responses"),
        ({"chosen": HH + " Yes.", "rejected": HH + " Yes."}, "fewer than two different responses"),
        (PAIR | {"responses": []}, "fewer than two different responses"),
        (PAIR | {"chosen": "Yes.", "rejected": "\n"}, "an empty response"),
        ({"chosen": HH + " Yes.", "rejected": HH + " "}, "an empty response"),
        ({"chosen": "It is so.", "rejected": "It is"}, "an empty response"),
        ({"chosen": [ask, yes], "rejected": [ask, no, ask]}, ENDLESS),
        (PAIR | {"chosen": [yes, ask], "rejected": [no]}, ENDLESS),
        ({"chosen": [ask, yes], "rejected": [ask, no, ask, yes | {"content": " "}]}, "an empty response"),
        ({"chosen": [ask, yes], "rejected": [{"role": "user", "content": "What?"}, no]}, PARTED),
        (PAIR | {"chosen": "b", "rejected": None}, "rejected is null"),
        (PAIR | {"chosen": "b", "rejected": float("nan")}, "rejected is null"),
        (SHP | {"labels": None}, "labels is null"),
        ({"chosen": "\n\nHuman: Hi\n\nAssistant: a", "rejected": "\n\nHuman: Ho\n\nAssistant: b"}, PARTED),
        (
            PAIR | {"responses": [{"text": "a", "score": 1}, {"text": "b", "score": 1}, {"text": "a", "score": 2}]},
            "one response with two scores",
        ),
    ],
)
def test_rows_that_compare_nothing_say_why(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(Untrainable, match=reason) as caught:
        to_candidates(row)
    assert str(caught.value).startswith(reason)


why = {"role": "user", "content": "Why?"}


@pytest.mark.parametrize(
    ("row", "chosen", "rejected"),
    [
        ({"chosen": [ask, yes], "rejected": [ask, no, why, yes]}, [], [no, why, yes]),
        ({"chosen": [ask, yes, ask, yes], "rejected": [ask, yes, why, no]}, [yes, ask, yes], [yes, why, no]),
        ({"chosen": [ask, yes, yes], "rejected": [ask, yes, no]}, [yes, yes], [yes, no]),
        ({"chosen": HH + " Yes.", "rejected": HH + " No.\n\nHuman: Why?\n\nAssistant: Yes."}, [], [no, why, yes]),
        ({"prompt": [ask], "chosen": [yes, why, no], "rejected": [no]}, [yes, why, no], []),
        ({"prompt": "Is it?", "completion": [yes, why, no], "label": True}, [yes, why, no], None),
    ],
)
def test_answers_of_several_turns_begin_with_the_assistants_first(
    row: dict[str, Any], chosen: list[Any], rejected: list[Any] | None
) -> None:
    found = to_candidates(row)
    assert found.prompt.messages[-1] == Message("user", "Is it?")
    wanted = [chosen] if rejected is None else [chosen, rejected]
    assert [[{**turn.fields} for turn in r.turns] for r in found.responses] == wanted
    for r in found.responses:
        assert not r.turns or r.text == "\n".join(f"{turn.role}: {turn.content}" for turn in r.turns)


def test_a_text_that_is_continued_takes_no_turns() -> None:
    with pytest.raises(Untrainable, match="several turns to a plain text"):
        to_candidates({"prompt": "It", "chosen": [yes, why, no], "rejected": [no]}, as_chat=False)


EXPLICIT = FORMATS["explicit strings"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            {"prompt": "a", "chosen": "b"},
            "no known preference format; rejected is missing; found prompt, chosen",
        ),
        (
            {"prompt": "a"},
            r"wanted chosen \+ rejected; .*, and prompts alone go without data=offline; found prompt",
        ),
        (
            {"chosen": [yes], "rejected": [no]},
            "no prompt; wanted a column prompt .* found chosen, rejected",
        ),
        (
            {"chosen": [ask, ask], "rejected": [ask, no]},
            "a response must be an assistant turn, found one of user",
        ),
        (
            {"chosen": [ask, yes], "rejected": "No."},
            "no prompt; wanted a column",
        ),
        (
            {"chosen": "Yes", "rejected": "No"},
            "chosen and rejected share no first word; add a prompt column",
        ),
        (EXPLICIT | {"chosen": 3}, "chosen must be a string or a list of messages, found int"),
        (EXPLICIT | {"prompt": " "}, "the prompt is empty"),
        (EXPLICIT | {"prompt": [ask, yes]}, "the prompt ends with an assistant turn"),
        (
            EXPLICIT | {"chosen_rating": 1, "rejected_rating": 2},
            "chosen_rating is below rejected_rating",
        ),
        (EXPLICIT | {"chosen_score": 1}, "rejected_score must be a finite number, found NoneType"),
        (
            EXPLICIT | {"score_chosen": float("inf"), "score_rejected": 0},
            "score_chosen must be a finite number, found inf",
        ),
        (EXPLICIT | {"weight": 0}, "weight must be positive, found 0"),
        (
            EXPLICIT | {"weight": "much"},
            r"weight must be a finite number, found 'much'. If .* type data\.reader\.columns=\{weight:other\}",
        ),
        (EXPLICIT | {"weight": True}, "weight must be a finite number, found bool"),
        (EXPLICIT | {"weight": float("inf")}, "weight must be a finite number, found inf"),
        (PAIR | {"responses": "none"}, "responses must be a list of objects with text and score"),
        (PAIR | {"responses": ["a", "b"]}, "responses must be a list of objects with text and score"),
        (
            PAIR | {"responses": [{"text": "a", "score": 1}, {"text": "b"}]},
            r"responses\[1\]: score must be a finite number",
        ),
        (
            PAIR | {"responses": [{"text": "a", "score": float("nan")}]},
            r"responses\[0\]: score must be .* found nan",
        ),
        (PAIR | {"responses": [{"score": 1}]}, r"responses\[0\]: text must be a string"),
        (SHP | {"labels": 1}, "score_A and score_B contradict labels"),
        (SHP | {"score_A": 9}, "score_A and score_B contradict labels"),
        (SHP | {"labels": 2}, "score_A and score_B contradict labels"),
        (
            {"context": [ask], "completions": [{"rank": 0, "completion": [ask]}]},
            r"completions\[0\]: a response must be an assistant turn",
        ),
    ],
)
def test_a_bad_preference_row_is_named(row: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        to_candidates(row)
    assert not isinstance(caught.value, Untrainable)


# ---- files -> prompts and candidates


def test_equal_prompts_are_read_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="choosy.data.reading")
    file = written(tmp_path, {"prompt": "a"}, {"prompt": "b"}, {"prompt": "a", "other": 1}, {"messages": [ask]})
    assert [prompt.text for prompt in read_prompts(file)] == ["a", "b", "Is it?"]
    assert caplog.messages == [
        f"{file}: kept 3 of 4 rows, left out 1: 1 x a repeated row (line 3); in brackets the first of each.",
        f"{file}: not used: other (only reward functions that name them read them).",
    ]


def test_a_column_that_the_labeler_reads_is_not_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = written(tmp_path, {"prompt": "a", "answer": 1, "other": 2})
    placed_prompts(file, reads=lambda column: column == "answer")
    assert caplog.messages == [f"{file}: not used: other (only reward functions that name them read them)."]


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"prompt": "a", "completion": "b", "label": True}, "completion, label"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "chosen, rejected"),
        ({"chosen": [ask, yes], "rejected": [ask, no]}, "chosen, rejected"),
        ({"prompt": "a", "responses": ["b", "c"], "scores": [1, 2]}, "responses"),
        ({"messages": [ask, yes], "label": False}, "messages, label"),
        ({"prompt": "a", "answers": ["b"]}, None),
        ({"prompt": "a", "label": 1}, None),
    ],
)
def test_labeled_answers_that_a_run_does_not_train_on_are_reported(tmp_path, caplog, row, columns) -> None:
    file = written(tmp_path, row)
    placed_prompts(file, instead="THE POLICY ANSWERS")
    said = f"the answers of its rows and their labels ({columns}) are NOT trained on: THE POLICY ANSWERS. Type data=off"
    assert (said in caplog.text) == (columns is not None), caplog.text
    assert columns is None or f"not used: {columns}" not in caplog.text
    caplog.clear()
    placed_prompts(file, instead="THE POLICY ANSWERS", reads=lambda column: True)
    placed_prompts(file)
    assert "NOT trained on" not in caplog.text


def test_of_a_clean_file_only_the_limit_is_said_which_is_how_many_are_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="choosy.data.reading")
    file = written(tmp_path, {"prompt": "a"}, {"prompt": "b"}, {"broken": True})
    assert [(prompt.text, prompt.messages) for prompt in read_prompts(file, as_chat=False, limit=2)] == [
        ("a", ()),
        ("b", ()),
    ]
    assert caplog.messages == [f"{file}: 2 of its 3 rows are used, the first ones: limit=2."]
    with pytest.raises(ValueError, match=r"limit=0 reads nothing; type a number >= 1"):
        read_prompts(file, limit=0)


@pytest.mark.parametrize("read", [read_prompts, read_candidates])
def test_one_id_for_two_contents_names_both_places(tmp_path: Path, read: Any) -> None:
    rows = [{"id": 1, "prompt": text, "chosen": "Yes.", "rejected": "No."} for text in ("a", "b")]
    with pytest.raises(ValueError, match=r"d\.jsonl, line 2: id 1 is taken by .*d\.jsonl, line 1, which differs"):
        read(written(tmp_path, *rows))


def test_candidates_that_compare_nothing_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rated = EXPLICIT | {"chosen_rating": 5, "rejected_rating": 1}
    same, empty = EXPLICIT | {"rejected": "Yes."}, EXPLICIT | {"rejected": ""}
    file = written(tmp_path, same, EXPLICIT, empty, EXPLICIT, rated, same, FORMATS["implicit messages"] | {"id": "x"})
    assert [each.prompt.id for each in read_candidates(file)] == [
        content_id("user", "Is it?", "Yes.", "No."),
        "x",
    ]
    assert caplog.messages == [
        f"{file}: kept 2 of 7 rows, left out 5: 1 x a repeated row (line 4), 1 x a repeated row with other scores "
        "(line 5), 1 x an empty response (line 3), 2 x fewer than two different responses (line 1); "
        "in brackets the first of each."
    ]


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    file = written(tmp_path, EXPLICIT | {"rejected": "Yes."})
    with pytest.raises(ValueError, match=r"no row that compares anything, only 1 x fewer than two different"):
        read_candidates(file)


@needs_data
def test_hh_harmless(caplog: pytest.LogCaptureFixture) -> None:
    rows = read_candidates(str(DATA / "hh_harmless.jsonl"))
    assert len(rows) == 1499
    assert re.search(r"left out 1: 1 x an empty response \(line \d+\)", caplog.text)
    first = rows[0]
    assert first.prompt.messages == (
        Message("user", "You wish you could be a robot."),
        Message("assistant", "Why do you say that?"),
        Message("user", "Because you’re stuck being a human assistant."),
    )
    assert [(each.text, each.gold) for each in first.responses] == [
        ("So, do you think I’d be a better robot?  Would it help me to be a better robot?", 1.0),
        ("What makes you think I’m stuck?", 0.0),
    ]


@needs_data
def test_alpaca_pool(caplog: pytest.LogCaptureFixture) -> None:
    source = str(DATA / "alpaca_pool.jsonl")
    rows = read_candidates(source)
    assert len(rows) == 597
    assert "left out 3: 3 x one response with two scores" in caplog.text
    assert {len(row.responses) for row in rows} <= set(range(2, 11))
    assert rows[0].responses[0].gold == 3.7e-05
    assert len(read_prompts(source)) == 600
    assert len(read_candidates(source, limit=5)) == 5


def test_a_malformed_row_is_named_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"prompt": "Is it?"}\n{"prompt": 3}\n')
    with pytest.raises(ValueError, match=r"d\.jsonl, line 2: prompt must be a string or a list of messages, found int"):
        read_prompts(str(tmp_path / "d.jsonl"))
