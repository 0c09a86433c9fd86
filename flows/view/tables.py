"""What the page holds of a run in memory: its completions, verdicts, preferences and steps, without token ids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from storage.log.run import Run
from storage.log.store import Store
from storage.queries.memory import Held, MemoryTables

KINDS = {"training": "", "held-out": "eval_", "served": "served_", "gate": "gate_"}
"""What a completion was sampled for, and how the names of the stages begin that hold it."""

PROMPT_STAGES = ("prompts", "gate_prompts")
"""Those that hold prompts: the run's, of round 0, and the gate's, of each round from which on it measures others."""

TEXT = pa.large_string()
"""Of texts of models and users: those of a stage may be more than 2 GB, which is all that a plain string can hold."""
_KEY = [("round", pa.int32()), ("kind", pa.string()), ("prompt_id", pa.string()), ("candidate", pa.int32())]

# A token has one log-probability: to count these spares reading the ids.
_COMPLETIONS = """
    SELECT round, '{kind}' AS kind, prompt_id, candidate, text, answer, finish_reason,
        len(logprobs)::INTEGER AS tokens, list_sum(logprobs)::DOUBLE AS logp, policy
    FROM committed"""

# Of judges that compare in both orders, and of ensembles that have such a member.
_COUNTED = "list_sum([c.value FOR c IN components IF c.name = '{name}' OR suffix(c.name, '.{name}')]) AS {name}"
COMPARED = f"{_COUNTED.format(name='flips')}, {_COUNTED.format(name='comparisons')}"
"""Columns of a completion's comparisons with others, and of those whose verdict turned with the order."""

_PROMPTS = """
    SELECT round, prompt_id, coalesce(list_last([m.content FOR m IN messages IF m.role = 'user']), text) AS question
    FROM committed"""

_JUDGMENTS = """
    SELECT round, '{kind}' AS kind, prompt_id, candidate, judge, score, score_std, status, {compared}
    FROM committed"""

_HELD: Mapping[str, Held] = {
    "prompts": Held(
        dict.fromkeys(PROMPT_STAGES, _PROMPTS),
        pa.schema([("round", pa.int32()), ("prompt_id", pa.string()), ("question", TEXT)]),
    ),
    "completions": Held(
        {f"{prefix}candidates": _COMPLETIONS.format(kind=kind) for kind, prefix in KINDS.items()},
        pa.schema([
            *_KEY, ("text", TEXT), ("answer", TEXT), ("finish_reason", pa.string()),
            ("tokens", pa.int32()), ("logp", pa.float64()), ("policy", pa.string()),
        ]),
        optional=pa.schema([("answer", TEXT)]),
    ),
    "judgments": Held(
        {f"{prefix}judgments": _JUDGMENTS.format(kind=kind, compared=COMPARED) for kind, prefix in KINDS.items()},
        pa.schema([
            *_KEY, ("judge", pa.string()), ("score", pa.float64()), ("score_std", pa.float64()),
            ("status", pa.string()), ("flips", pa.float64()), ("comparisons", pa.float64()),
        ]),
        optional=pa.schema([("score_std", pa.float64())]),
    ),
    "preferences": Held(
        {"preferences": "SELECT round, prompt_id, kind, candidates, margin, drop_reason FROM committed"},
        pa.schema([
            ("round", pa.int32()), ("prompt_id", pa.string()), ("kind", pa.string()),
            ("candidates", pa.list_(pa.int32())), ("margin", pa.float64()), ("drop_reason", pa.string()),
        ]),
    ),
    "logps": Held(
        {"eval_logps": "SELECT round, prompt_id, candidate, policy, previous, initial FROM committed"},
        pa.schema([
            ("round", pa.int32()), ("prompt_id", pa.string()), ("candidate", pa.int32()), ("policy", pa.float64()),
            ("previous", pa.float64()), ("initial", pa.float64()),
        ]),
    ),
}  # fmt: skip

# A row for each completion with the verdict that counts; see JudgeOrder. With several pairs of a prompt, a completion
# that is chosen in one and rejected in another is called chosen, and one that is in any pair is not dropped.
_ANSWERS = """
    WITH counts AS (
        SELECT j.round, j.kind,
            arg_min(j.judge, (j.judge IS DISTINCT FROM f.judge, coalesce(o.place, 1000), j.judge)) AS judge
        FROM judgments AS j LEFT JOIN judge_order AS o ON o.judge = j.judge
        LEFT JOIN first_judges AS f ON f.round = j.round GROUP BY ALL
    ), verdicts AS (
        SELECT j.* FROM judgments AS j JOIN counts AS c ON c.round = j.round AND c.kind = j.kind AND c.judge = j.judge
    ), chosen AS (
        SELECT round, prompt_id, candidates[1] AS candidate, max(margin) AS margin, true AS found FROM preferences
        WHERE kind <> 'dropped' GROUP BY ALL
    ), rejected AS (
        SELECT round, prompt_id, candidates[-1] AS candidate, max(margin) AS margin, true AS found FROM preferences
        WHERE kind <> 'dropped' GROUP BY ALL
    ), dropped AS (
        SELECT round, prompt_id, max(drop_reason) AS drop_reason, true AS found FROM preferences
        WHERE kind = 'dropped' GROUP BY ALL
    )
    SELECT c.*, v.judge, v.score, v.score_std, v.status,
        CASE
            WHEN c.kind <> 'training' THEN NULL
            WHEN p.found THEN 'chosen'
            WHEN r.found THEN 'rejected'
            WHEN d.found THEN 'dropped'
        END AS role,
        CASE WHEN c.kind = 'training' THEN coalesce(p.margin, r.margin) END AS margin,
        CASE WHEN c.kind = 'training' AND p.found IS NULL AND r.found IS NULL THEN d.drop_reason END AS drop_reason,
        CASE WHEN count(v.score) OVER of_prompt > 1
            THEN min(v.score) OVER of_prompt = max(v.score) OVER of_prompt END AS tied,
        l.policy - l.initial AS log_ratio
    FROM completions AS c
    LEFT JOIN verdicts AS v USING (round, kind, prompt_id, candidate)
    LEFT JOIN chosen AS p USING (round, prompt_id, candidate)
    LEFT JOIN rejected AS r USING (round, prompt_id, candidate)
    LEFT JOIN dropped AS d USING (round, prompt_id)
    LEFT JOIN logps AS l
        ON c.kind = 'held-out' AND l.round = c.round AND l.prompt_id = c.prompt_id AND l.candidate = c.candidate
    WINDOW of_prompt AS (PARTITION BY c.round, c.kind, c.prompt_id)
    ORDER BY c.round, c.kind, c.prompt_id, c.candidate"""


@dataclass(frozen=True)
class JudgeOrder:
    """Says which of several judges' verdicts counts in a round: of those that judged there, the one that comes first.

    Attributes:
        names: the judges in the recipe's order.
        first: by round, the judge that comes before all of these, as in rounds of a fork that its parent judged.
    """

    names: Sequence[str]
    first: Mapping[int, str] = field(default_factory=dict)


def run_tables(store: Store, run: Run, judges: JudgeOrder) -> MemoryTables:
    """Prepares the tables of a run: prompts, completions, judgments, preferences, logps, and ``answers``.

    A row of ``answers`` is a completion with its score, the part that it has in a preference (role: chosen, rejected,
    dropped, or null), and of held-out ones the log-ratio of the policy that sampled to the initial one, in nats.
    ``tied`` says whether all scores of its prompt in the round are the same; null if there are not two of them.

    Args:
        judges: the first of them that has judged the completions of a round gives their scores there.
    """
    places, first = range(len(judges.names)), judges.first
    order = {"judge": pa.array(judges.names, pa.string()), "place": pa.array(places, pa.int32())}
    of_rounds = {"round": pa.array(first.keys(), pa.int32()), "judge": pa.array(first.values(), pa.string())}
    beside = {"judge_order": pa.table(order), "first_judges": pa.table(of_rounds)}
    return MemoryTables(store, run, _HELD, {"answers": _ANSWERS}, beside=beside, common=("prompts",))
