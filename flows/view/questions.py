"""Questions that are asked of most runs, ready to ask: SQL over the store's tables, and how the answer is shown."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

from storage.queries.sql import ROUNDS

Form = Literal["table", "line", "bar", "scatter"]


@dataclass(frozen=True)
class Question:
    """A question with its answer in SQL.

    Attributes:
        title: the question, in a few words.
        sql: one SELECT. In a chart its first column runs along the bottom and its second one upwards; a column
            ``error`` is the standard error of the second, and one that is left is the colour.
        form: how the answer is shown.
        tables: those that it needs.
    """

    title: str
    sql: str
    form: Form
    tables: Collection[str]


_LENGTHS = """\
SELECT round, avg(token_counts[1]) AS tokens, 'chosen' AS answer FROM preferences
WHERE kind <> 'dropped' GROUP BY round
UNION ALL
SELECT round, avg(token_counts[-1]) AS tokens, 'rejected' AS answer FROM preferences
WHERE kind <> 'dropped' GROUP BY round
ORDER BY round, answer"""

QUESTIONS = (
    Question(
        "Held-out reward by round, with its standard error",
        """\
SELECT round, avg(score) AS reward, judge, stddev_samp(score) / sqrt(count(score)) AS error
FROM eval_judgments GROUP BY round, judge ORDER BY round, judge""",
        "line",
        ["eval_judgments"],
    ),
    Question(
        "Distance from the initial policy by round, in nats per sequence",
        """\
SELECT round, avg(policy - initial) AS kl, stddev_samp(policy - initial) / sqrt(count(*)) AS error
FROM eval_logps GROUP BY round ORDER BY round""",
        "line",
        ["eval_logps"],
    ),
    Question("Tokens of chosen and rejected completions", _LENGTHS, "line", ["preferences"]),
    Question(
        "How often the chosen completion is the longer one",
        """\
SELECT round, avg((token_counts[1] > token_counts[-1])::INTEGER) AS share FROM preferences
WHERE kind <> 'dropped' AND token_counts[1] <> token_counts[-1] GROUP BY round ORDER BY round""",
        "line",
        ["preferences"],
    ),
    Question(
        "Why prompts gave no preference",
        """\
SELECT round, count(*) AS prompts, drop_reason FROM preferences
WHERE kind = 'dropped' GROUP BY round, drop_reason ORDER BY round, drop_reason""",
        "bar",
        ["preferences"],
    ),
    Question(
        "Share of prompts whose completions all score the same",
        """\
SELECT round, avg((lowest = highest)::INTEGER) AS share, judge FROM (
    SELECT round, judge, prompt_id, min(score) AS lowest, max(score) AS highest
    FROM judgments WHERE score IS NOT NULL GROUP BY round, judge, prompt_id HAVING count(*) > 1
) GROUP BY round, judge ORDER BY round, judge""",
        "line",
        ["judgments"],
    ),
    Question(
        "How alike two judges score: their correlation",
        """\
SELECT a.round, corr(a.score, b.score) AS correlation, a.judge || ' and ' || b.judge AS judges
FROM eval_judgments AS a JOIN eval_judgments AS b
    ON a.round = b.round AND a.prompt_id = b.prompt_id AND a.candidate = b.candidate AND a.judge < b.judge
GROUP BY ALL ORDER BY a.round, judges""",
        "line",
        ["eval_judgments"],
    ),
    Question(
        "Verdicts that are none",
        """\
SELECT round, count(*) AS verdicts, status FROM judgments
WHERE status <> 'ok' GROUP BY round, status ORDER BY round, status""",
        "bar",
        ["judgments"],
    ),
    Question(
        "Share of completions that were cut at the limit",
        """\
SELECT round, avg((finish_reason = 'length')::INTEGER) AS truncated
FROM candidates GROUP BY round ORDER BY round""",
        "line",
        ["candidates"],
    ),
    Question(
        "Score against length in the newest round",
        """\
SELECT len(c.token_ids) AS tokens, j.score, c.finish_reason, c.round, c.prompt_id, c.candidate
FROM candidates AS c JOIN judgments AS j USING (round, prompt_id, candidate)
WHERE c.round = (SELECT max(round) FROM judgments) AND j.score IS NOT NULL
ORDER BY c.prompt_id, c.candidate LIMIT 2000""",
        "scatter",
        ["candidates", "judgments"],
    ),
    Question(
        "Answers that were given most often",
        """\
SELECT text, count(*) AS times, count(DISTINCT prompt_id) AS prompts, min(round) AS first, max(round) AS last
FROM candidates GROUP BY text HAVING count(*) > 1 ORDER BY times DESC, text LIMIT 200""",
        "table",
        ["candidates"],
    ),
    Question(
        "Preferences with the smallest margins",
        """\
SELECT round, prompt_id, candidates[1] AS candidate, margin, scores, token_counts, rule FROM preferences
WHERE kind <> 'dropped' ORDER BY margin, round, prompt_id LIMIT 200""",
        "table",
        ["preferences"],
    ),
    Question(
        "Held-out prompts that got worse",
        """\
SELECT judge, prompt_id, max(round) AS round, arg_max(score, round) - arg_min(score, round) AS change,
    arg_min(score, round) AS before, arg_max(score, round) AS after
FROM (SELECT judge, prompt_id, round, avg(score) AS score FROM eval_judgments GROUP BY ALL)
WHERE score IS NOT NULL GROUP BY judge, prompt_id HAVING change < 0 ORDER BY change, prompt_id LIMIT 200""",
        "table",
        ["eval_judgments"],
    ),
)  # fmt: skip


def questions_for(stages: Collection[str]) -> Iterator[Question]:
    """Yields the questions that a run with these tables can answer."""
    known = {*stages, ROUNDS}
    return (question for question in QUESTIONS if known.issuperset(question.tables))
