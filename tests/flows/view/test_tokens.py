"""The page of a completion's tokens: their texts, their log-probabilities, and what is not measured."""

import math
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from flows.analysis import queries
from flows.view.pages.tokens import EDGES, level, marked
from flows.view.site import Site
from flows.view.token_texts import TokenTexts, token_texts
from pipeline.records import CANDIDATES, to_table
from storage.errors import DamagedFileError
from storage.log.manifest import Key
from storage.log.store import Store
from storage.tables.checkpoints import stage_directory
from support.finished_run import commit, finished_run
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
    with store.run("small").writer() as writer:
        ids = [*tokenizer.encode(SAID).ids, 256]
        rows = [_row(0, ids, [-0.05, -9.0, *[-1.25] * (len(ids) - 2)]), _row(2, [1] * LONG, [-1.0] * LONG)]
        commit(store, writer, "small", 3, "candidates", to_table(rows, CANDIDATES))
    return root


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
    assert "Policy minus reference of each token is not measured" in said
    assert "their sums, which stand above" in said
    assert "minus round 0" not in words(browser.get("/run/small/tokens/2/training/t1/0").text)


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
