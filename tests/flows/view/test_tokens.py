"""The page of a completion's tokens: their texts, their log-probabilities, and what is not measured."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from flows.analysis import queries
from flows.view.pages.tokens import EDGES, STEPS, level, marked, step
from flows.view.site import Site
from flows.view.token_texts import TokenTexts, token_texts
from pipeline.records import CANDIDATES, EVALUATION_TOKEN_LOGPS, PREFERENCE_LOGPS, to_table
from storage.errors import DamagedFileError
from storage.log.manifest import Key
from storage.log.store import Store
from storage.tables.checkpoints import stage_directory
from storage.tables.shards import write_table
from support.finished_run import commit, finished_run, small_recipe
from support.view_pages import statements, table, visitor, words

END = "<|end|>"
SAID = "Hi <b>\n\tö\x1b\u202e🙂"
"""Letters of one to four bytes, each byte a token; white space, HTML, and what would turn the direction of writing."""
LONG = 4_000


def byte_tokenizer() -> Tokenizer:
    """A tokenizer whose tokens are the 256 bytes, and a special token with id 256."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(END, special=True)])
    return made


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    store = Store.open(root)
    tokenizer = byte_tokenizer()

    def also(writer: Any, round: int) -> None:
        if round == 0:
            with stage_directory(store, "small", 0, "checkpoint") as staged:
                tokenizer.save(str(staged.path / "tokenizer.json"))
            writer.commit(Key(0, "checkpoint"), staged.files, {})

    finished_run(store, also=also, rounds=2)
    finished_run(store, "bare", rounds=1)
    finished_run(store, "measured", also=lambda writer, round: _measured(store, writer, round), rounds=2)
    off = small_recipe(update={"token_logprobs": False})
    finished_run(store, "off", also=lambda writer, round: _left_out(store, writer, round), rounds=1, recipe=off)
    with store.run("small").writer() as writer:
        ids = [*tokenizer.encode(SAID).ids, 256]
        rows = [_row(0, ids, [-0.05, -9.0, *[-1.25] * (len(ids) - 2)]), _row(2, [1] * LONG, [-1.0] * LONG)]
        commit(store, writer, "small", 3, "candidates", to_table(rows, CANDIDATES))
    return root


def _preference(**changes: Any) -> dict[str, Any]:
    nothing: dict[str, Any] = dict.fromkeys(PREFERENCE_LOGPS.names)
    known = {"prompt_id": "t1", "candidates": [3, 0], "reference": [-3.0] * 2, "after": [-2.25, -15.0]}
    return {**nothing, **known, "loss_after": 0.5, **changes}


def _measured(store: Store, writer: Any, round: int) -> None:
    """Tokens of e1 under earlier policies in round 2, and of t1's preference after the updates of rounds 1 and 2."""
    if round == 2:
        row = {
            "prompt_id": "e1", "candidate": 0, "policy": -3.0, "previous": -7.0, "initial": -7.28, "tokens": 3,
            "policy_tokens": None, "previous_tokens": [-1.0, -2.0, -4.0], "initial_tokens": [-0.98, -1.3, -5.0],
        }  # fmt: skip
        file = write_table(store, "measured", 2, "eval_logps", to_table([row], EVALUATION_TOKEN_LOGPS))
        writer.commit(Key(2, "eval_logps", inputs="with-tokens"), [file])
    if round:
        after = [[-0.5, -1.25, -0.5], [-5.0, -5.5, -4.5]]
        own = _preference(after_tokens=after, reference_tokens=None if round == 2 else [[-1.0] * 3] * 2)
        again = _preference(origin_round=1, after_tokens=[[0.0] * 3] * 2)
        commit(store, writer, "measured", round, "preference_logps", to_table([again, own], PREFERENCE_LOGPS))


def _left_out(store: Store, writer: Any, round: int) -> None:
    if round:
        commit(store, writer, "off", round, "preference_logps", to_table([_preference()], PREFERENCE_LOGPS))


def _row(index: int, ids: list[int], logps: list[float]) -> dict[str, Any]:
    return {
        "prompt_id": "t1", "candidate": index, "token_ids": ids, "logprobs": logps, "text": "", "finish_reason": "stop",
        "seed": 0, "policy": "policy2",
    }  # fmt: skip


@pytest.fixture(scope="module")
def browser(root: Path) -> TestClient:
    return visitor(Site(Store.open(root)))


def rows(page: str) -> list[list[str]]:
    """The cells of the table of tokens: number, id, text, log-probability."""
    return table(page, "Tokens")


def test_each_token_has_its_text_with_white_space_and_controls_made_visible(browser: TestClient) -> None:
    """ö has two bytes, U+202E three, the face four: the last completes the letter, the others stand in brackets."""
    answer = browser.get("/run/small/tokens/3/training/t1/0")
    assert answer.status_code == 200
    spoken = [row[2] for row in rows(answer.text)]
    assert spoken[:9] == ["H", "i", "·", "<", "b", ">", "↵", "⇥", "[Ã]"]
    assert spoken[9:11] == ["ö", "\\x1b"]
    assert spoken[13] == "\\u202e"
    assert spoken[17:] == ["🙂", f"{END} special"]
    assert sum(text.startswith("[") for text in spoken) == 1 + 2 + 3
    assert "\u202e" not in answer.text
    assert "<b>" not in answer.text


def test_sum_mean_and_colours_are_of_the_log_probabilities(browser: TestClient) -> None:
    """19 tokens: -0.05 - 9 - 17 times 1.25 is -30.30, and -1.595 on average."""
    page = browser.get("/run/small/tokens/3/training/t1/0").text
    said = words(page)
    assert "tokens 19 ended by itself sum -30.30 nats per sequence mean -1.595 nats per token" in said
    coloured = page.partition('class="card tokens text"')[2]
    assert coloured.count('class="t p0"') == 1
    assert 'class="t p9" title="token 1: id 72, -9.000 nats">i</span>' in coloured
    assert coloured.count(" p4") == 17  # 1.25 is between 1 and 1.5
    assert ' p4 special"' in coloured


def test_a_colour_begins_where_the_one_before_ends() -> None:
    assert [level(-edge) for edge in EDGES] == list(range(1, 10))
    assert [level(logp) for logp in (0.0, -0.09, -100.0)] == [0, 0, 9]
    assert level(math.nan) is None
    assert level(-math.inf) is None
    assert marked(" a\n\t") == "·a↵\n⇥"


def test_sums_under_other_policies_are_shown_and_tokens_are_not_made_up(browser: TestClient) -> None:
    """Of e1 in round 2: -3 now, -3.11 by the round before, -3.41 by round 0."""
    said = words(browser.get("/run/small/tokens/2/held-out/e1/0").text)
    assert "minus the round before +0.11 -3.00 less -3.11" in said
    assert "minus round 0 +0.41 -3.00 less -3.41" in said
    # The table is of a version without the columns.
    assert "Policy minus reference of each token is not measured: the round is of a version that kept no" in said
    training = words(browser.get("/run/small/tokens/2/training/t1/0").text)
    assert "minus round 0" not in training
    assert "not measured: it is in none of the preferences that the update measured again at its end." in training
    assert "not measured: round 0 has no update." in words(browser.get("/run/small/tokens/0/held-out/e1/0").text)


def test_tokens_are_coloured_by_what_became_of_them(browser: TestClient, root: Path) -> None:
    """Of e1 sampled with -1, -1.5, -0.5: by the round before -1, -2, -4; by round 0 -0.98, -1.3, -5.

    So 0, +0.5 and +3.5 nats, which are 4 in sum; and -0.02, -0.2 and +4.5.
    """
    first = browser.get("/run/measured/tokens/2/held-out/e1/0").text
    assert 'href="/run/measured/tokens/2/held-out/e1/0?by=previous"' in first
    assert "By surprise" in first
    assert "not measured" not in words(first)
    shown = browser.get("/run/measured/tokens/2/held-out/e1/0?by=previous").text
    assert [row[-1] for row in rows(shown)] == ["+0.0000", "+0.5000", "+3.5000"]
    assert re.findall(r'class="t (\w+)" title', shown) == ["d4", "d6", "d8"]
    assert "blue tokens became likelier, red ones less likely; +4.000 nats in sum" in words(shown)
    initial = browser.get("/run/measured/tokens/2/held-out/e1/0?by=initial").text
    assert [row[-1] for row in rows(initial)] == ["-0.0200", "-0.2000", "+4.5000"]
    assert re.findall(r'class="t (\w+)" title', initial) == ["d4", "d3", "d8"]
    for page in (shown, initial):
        found = queries.sql("measured", str(root), statements(page)[0])
        assert [f"{row['change']:+.4f}" for row in found] == [row[-1] for row in rows(page)]


@pytest.mark.parametrize(("candidate", "changes"), [(3, ["+0.5000", "+0.2500", "+0.0000"]), (0, ["-4.0000"] * 3)])
def test_an_update_is_seen_token_by_token(
    browser: TestClient, root: Path, candidate: int, changes: list[str]
) -> None:  # fmt: skip
    """Completion 3 went from -1, -1.5, -0.5, as it was sampled, to -0.5, -1.25, -0.5.

    Completion 0 fell by 4 everywhere, to -5, -5.5 and -4.5. A preference of round 1 stands beside theirs.
    """
    shown = browser.get(f"/run/measured/tokens/2/training/t1/{candidate}?by=update").text
    assert [row[-1] for row in rows(shown)] == changes
    found = queries.sql("measured", str(root), statements(shown)[0])
    assert [f"{row['change']:+.4f}" for row in found] == changes


def test_a_reference_that_did_not_sample_has_tokens_of_its_own(browser: TestClient) -> None:
    """In round 1 the reference gave completion 3 -1 everywhere, and the policy after the update -0.5, -1.25, -0.5."""
    shown = browser.get("/run/measured/tokens/1/training/t1/3?by=update").text
    assert [row[-1] for row in rows(shown)] == ["+0.5000", "-0.2500", "+0.5000"]


def test_what_the_recipe_left_out_names_the_switch(browser: TestClient) -> None:
    for address in ("held-out/e1/0", "training/t1/3"):
        shown = words(browser.get(f"/run/off/tokens/1/{address}").text)
        assert "of each token is not measured: update.token_logprobs is off in the recipe." in shown
        answer = browser.get(f"/run/off/tokens/1/{address}?by=update")
        assert answer.status_code == 400
        assert "the change 'update' of these tokens was not measured; those that were: none" in words(answer.text)


def test_a_change_has_the_colour_of_its_size() -> None:
    assert [step(edge) for edge in STEPS] == list(range(1, 9))
    assert [step(change) for change in (-9.0, 0.0, 9.0)] == [0, 4, 8]
    assert step(math.nan) is None


def test_without_a_tokenizer_there_are_ids(browser: TestClient) -> None:
    page = browser.get("/run/bare/tokens/1/training/t1/1").text
    assert "No checkpoint that is left of this run has a tokenizer" in words(page)
    assert [row[2] for row in rows(page)] == ["4", "1", "0"]


def test_a_long_completion_comes_in_parts(browser: TestClient) -> None:
    """4,000 tokens are three parts, the last from 3,000 on."""
    first = browser.get("/run/small/tokens/3/training/t1/2")
    assert len(first.content) < 1_000_000
    assert "tokens 0 to 1,499 of 4,000" in words(first.text)
    assert 'href="/run/small/tokens/3/training/t1/2?start=1500"' in first.text
    last = browser.get("/run/small/tokens/3/training/t1/2?start=999999").text
    assert [len(rows(last)), rows(last)[0][:2]] == [1000, ["3000", "1"]]
    assert "start=1500" in last
    assert "start=4500" not in last


def test_completions_of_the_prompt_are_a_key_away(browser: TestClient) -> None:
    page = browser.get("/run/small/tokens/3/training/t1/0").text
    assert 'href="/run/small/tokens/3/training/t1/2" rel="next"' in page  # there is no completion 1
    assert 'rel="prev"' not in page


def test_the_same_stands_in_sql(browser: TestClient, root: Path) -> None:
    page = browser.get("/run/small/tokens/3/training/t1/0").text
    sql, command = statements(page)
    found = queries.sql("small", str(root), sql)
    assert [f"{row['logp']:.4f}" for row in found] == [row[3] for row in rows(page)]
    assert command.startswith("rondo show small@3 --table completions --prompt t1 --where")


@pytest.mark.parametrize(
    ("address", "status"),
    [
        ("9/training/t1/0", 404), ("3/training/t1/1", 404), ("3/training/t/0", 404), ("3/other/t1/0", 400),
        ("3/training/t1/-1", 400), ("99999999999/training/t1/0", 400),
    ],
)  # fmt: skip
def test_what_is_not_there_is_said_in_a_sentence(browser: TestClient, address: str, status: int) -> None:
    assert browser.get(f"/run/small/tokens/{address}").status_code == status


def test_a_token_has_the_space_that_it_begins_with_and_what_no_tokenizer_has_a_name() -> None:
    """SentencePiece's kind drops the space of a text's first token: that of a completion is not the first."""
    made = Tokenizer(models.WordLevel({"▁a": 0, "▁b": 1}, unk_token="▁a"))
    made.decoder = decoders.Metaspace()
    assert [token.text for token in TokenTexts(made).of([0], [1, 0])] == [" b", " a"]
    assert TokenTexts(made).of([], [7])[0].name == "no token 7"


def test_bytes_that_never_make_a_letter_do_not_pile_up() -> None:
    first = byte_tokenizer().encode("🙂").ids[0]
    found = TokenTexts(byte_tokenizer()).of([], [first] * 50 + byte_tokenizer().encode("a").ids)
    assert found[-1].text is not None
    assert found[-1].text.endswith("a")


def test_a_damaged_tokenizer_is_not_used(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["of this test alone"])  # what was loaded once is kept by its content
    run = store.create_run("damaged", {})
    with run.writer() as writer, stage_directory(store, "damaged", 0, "checkpoint") as staged:
        tokenizer.save(str(staged.path / "tokenizer.json"))
    with run.writer() as writer:
        writer.commit(Key(0, "checkpoint"), staged.files, {})
    file = tmp_path / staged.files[0].path
    file.write_bytes(file.read_bytes().replace(b"alone", b"other"))
    run.refresh()
    with pytest.raises(DamagedFileError, match=r"tokenizer\.json is damaged"):
        token_texts(store, run, 0)
    file.unlink()
    assert token_texts(store, run, 0) is None
