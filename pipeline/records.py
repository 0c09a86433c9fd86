"""The tables of a run: one Arrow schema each, versioned, every column documented.

Axes, as they appear in names throughout: ``P`` prompts, ``K`` candidates per prompt, ``B`` sequences in a batch,
``T`` tokens, ``V`` vocabulary; ``rewards_P_K[p][k]`` is the reward of candidate ``k`` of prompt ``p``.
Log-probabilities are natural logarithms, in nats, of the untempered policy.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.errors import DataError

SCHEMA_VERSION = 1

COMPONENTS = pa.list_(pa.struct([("name", pa.string()), ("value", pa.float64())]))
TOKEN_LOGPS = pa.list_(pa.list_(pa.float32()))
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string()), ("fields", pa.string())]))


def _column(name: str, kind: pa.DataType, doc: str, *, unit: str | None = None, nullable: bool = False) -> pa.Field:
    metadata = {"doc": doc} | ({"unit": unit} if unit else {})
    return pa.field(name, kind, nullable=nullable, metadata=metadata)


def _schema(record: str, columns: list[pa.Field], version: int = SCHEMA_VERSION) -> pa.Schema:
    return pa.schema(columns, metadata={"rondo.record": record, "rondo.version": str(version)})


_PROMPT_ID = _column("prompt_id", pa.string(), "first 16 hexadecimal digits of the SHA-256 of the prompt's content")
_CANDIDATE = _column("candidate", pa.int32(), "index of the candidate among the K of its prompt")

PROMPTS = _schema("prompts", [
    _PROMPT_ID,
    _column("text", pa.string(), "the prompt as the policy reads it, template applied"),
    _column("messages", MESSAGES,
            "the conversation that the prompt came from; fields is JSON of what a message has beside role and content, "
            "null for nothing, and absent in version 1", nullable=True),
    _column("token_ids", pa.list_(pa.int32()), "the prompt's token ids, special tokens included"),
    _column("source", pa.string(), "where the prompt came from"),
    _column("reference_answer", pa.string(), "the right answer, where one is known", nullable=True),
    _column("split", pa.string(), "train or evaluation; the two never share a prompt"),
], version=2)  # fmt: skip

CANDIDATES = _schema("candidates", [
    _PROMPT_ID,
    _CANDIDATE,
    _column("token_ids", pa.list_(pa.int32()), "the answer exactly as sampled, end-of-sequence token included"),
    _column("text", pa.string(), "what the answer adds to the decoded prompt, special tokens left out"),
    _column("logprobs", pa.list_(pa.float32()), "log-probability of each token under the sampling policy", unit="nats"),
    _column("finish_reason", pa.string(), "stop (end of sequence) or length (cut at max_tokens)"),
    _column("seed", pa.int64(), "seed of this candidate's random numbers"),
    _column("policy", pa.string(), "hash of the weights that sampled"),
])  # fmt: skip

THINKING_CANDIDATES = _schema("candidates", [
    *CANDIDATES,
    _column("thought_tokens", pa.int32(), "length of the thought that the answer begins with, marks included; null if "
            "it begins with none", unit="tokens", nullable=True),
    _column("answer", pa.string(), "the text after the thought, which judges see; null if the thought never ends, or "
            "there is none", nullable=True),
], version=2)  # fmt: skip
"""The candidates of a policy that thinks; those of all others have neither column."""

JUDGMENTS = _schema("judgments", [
    _PROMPT_ID,
    _CANDIDATE,
    _column("score", pa.float64(), "the judge's score, higher is better; null where status is not ok", nullable=True),
    _column("score_std", pa.float64(), "standard deviation of the score, where the judge states one", nullable=True),
    _column("components", COMPONENTS, "named parts of the score; a map in version 1, which `datasets` cannot read"),
    _column("rationale", pa.string(), "the judge's reason, where it gives one", nullable=True),
    _column("judge", pa.string(), "name of the judge"),
    _column("judge_version", pa.string(), "hash of the judge's settings, libraries and weights, or a library version"),
    _column("status", pa.string(),
            "ok; or unparsable, timed_out, non_finite, too_long, refused, failed, alone or unlabelled"),
    _column("latency", pa.float64(), "time spent on this judgment", unit="seconds"),
    _column("raw", pa.string(), "the verdict as the judge wrote it; version 1 has no such column", nullable=True),
], version=2)  # fmt: skip

ASKED_JUDGMENTS = _schema("judgments", [
    *JUDGMENTS,
    _column("replies", pa.float64(), "a language model's replies that the judgment rests on; of one that several "
            "completions share, its part; null if the judge asks none", nullable=True),
    _column("replies_cached", pa.float64(), "those of them that were there already, and were not asked for anew",
            nullable=True),
    _column("tokens_in", pa.float64(), "tokens read for all of them, whenever that was; null if the endpoint does not "
            "state it", unit="tokens", nullable=True),
    _column("tokens_out", pa.float64(), "tokens written for them, likewise", unit="tokens", nullable=True),
    _column("paid_tokens_in", pa.float64(), "tokens read for those that were asked for anew", unit="tokens",
            nullable=True),
    _column("paid_tokens_out", pa.float64(), "tokens written for these", unit="tokens", nullable=True),
    _column("cost", pa.float64(), "of these, at the recipe's price, in its currency; null if it gives none",
            nullable=True),
], version=3)  # fmt: skip
"""The judgments of judges that ask a language model; those of all others have no column of what it took."""

PREFERENCES = _schema("preferences", [
    _PROMPT_ID,
    _column("kind", pa.string(), "pair, ranking or dropped"),
    _column("candidates", pa.list_(pa.int32()), "indices of the candidates, best first; empty where dropped"),
    _column("ranks", pa.list_(pa.int32()), "their places, equal for ties; null for 0, 1, 2, ..., and in version 1",
            nullable=True),
    _column("scores", pa.list_(pa.float64()), "their scores, in the same order"),
    _column("margin", pa.float64(), "score of the best minus that of the worst, less the recipe's penalty of length",
            nullable=True),
    _column("soft_label", pa.float64(), "probability that the order is right", nullable=True),
    _column("reference_logps", pa.list_(pa.float64()),
            "log-probability of each candidate under the policy that sampled it, summed over tokens", unit="nats"),
    _column("token_counts", pa.list_(pa.int32()), "length of each candidate", unit="tokens"),
    _column("rule", pa.string(), "the rule that selected, or dropped, this prompt"),
    _column("drop_reason", pa.string(), "why the prompt gives no preference", nullable=True),
    _column("policy", pa.string(), "hash of the weights that sampled"),
], version=2)  # fmt: skip

REPLAYED = _schema("replayed", [
    *PREFERENCES,
    _column("origin_round", pa.int32(), "the round of the preference and of its candidates"),
    _column("token_ids", pa.list_(pa.list_(pa.int32())), "of each candidate, exactly as sampled, best first"),
])  # fmt: skip

STEPS = _schema("metrics", [
    _column("step", pa.int32(), "optimizer step, from 0; means are over its preferences, before it is taken"),
    _column("epoch", pa.int32(), "pass over the round's preferences, from 0"),
    _column("loss", pa.float64(), "mean loss"),
    _column("reward_chosen", pa.float64(), "mean implicit reward of the best candidates: beta log(pi/pi_ref)"),
    _column("reward_rejected", pa.float64(), "mean implicit reward of the worst candidates"),
    _column("reward_margin", pa.float64(), "mean difference of the two"),
    _column("accuracy", pa.float64(), "share of preferences whose best candidate has the larger implicit reward"),
    _column("logp_chosen", pa.float64(), "mean log-probability of the best candidates", unit="nats per sequence"),
    _column("logp_rejected", pa.float64(), "mean log-probability of the worst candidates", unit="nats per sequence"),
    _column("logp_chosen_change", pa.float64(), "the former against the reference", unit="nats per sequence"),
    _column("logp_rejected_change", pa.float64(), "the latter against the reference", unit="nats per sequence"),
    _column("kl", pa.float64(), "KL to the reference, estimated by half the mean squared change of all candidates",
            unit="nats per sequence"),
    _column("grad_norm", pa.float64(), "norm of the gradient before clipping"),
    _column("learning_rate", pa.float64(), "learning rate of the step"),
    _column("tokens", pa.int64(), "tokens that the step processed, prompts counted once", unit="tokens"),
    _column("seconds", pa.float64(), "duration of the step", unit="seconds"),
    _column("router_loss", pa.float64(), "mean balancing loss of a mixture of experts, before its weight; null if none "
            "is asked for, and not in version 1", nullable=True),
], version=2)  # fmt: skip

PROBE = _schema("probe", [
    _column("prompt_token_ids", pa.list_(pa.int32()), "what the scored tokens follow"),
    _column("token_ids", pa.list_(pa.int32()), "the scored tokens"),
    _column("logp", pa.float64(), "their log-probability by the trainer, after the update", unit="nats per sequence"),
    _column("previous_logp", pa.float64(), "the same before the update", unit="nats per sequence", nullable=True),
])  # fmt: skip

PREFERENCE_LOGPS = _schema("preference_logps", [
    _PROMPT_ID,
    _column("candidates", pa.list_(pa.int32()), "indices of the preference's candidates, best first"),
    _column("origin_round", pa.int32(), "the round of a preference that was trained on again; null for one of this "
            "round", nullable=True),
    _column("reference", pa.list_(pa.float64()), "log-probability of each candidate under the update's reference, "
            "perhaps as the sampler computed it", unit="nats per sequence"),
    _column("before", pa.list_(pa.float64()), "the same under the policy that the update started from; null, which is "
            "not measured, if the reference is another one", unit="nats per sequence", nullable=True),
    _column("after", pa.list_(pa.float64()), "the same under the policy that the update ended with",
            unit="nats per sequence"),
    _column("loss_before", pa.float64(), "the recipe's objective of this preference by `before`; without what is added "
            "to it (nll_weight, exploration_weight, router_loss_weight) or weighs it (wpo)", nullable=True),
    _column("loss_after", pa.float64(), "the same by `after`"),
    _column("after_tokens", TOKEN_LOGPS, "`after` of each token of each candidate; null if update.token_logprobs is "
            "off", unit="nats", nullable=True),
    _column("reference_tokens", TOKEN_LOGPS, "`reference` of each token; null if it is off, of preferences of other "
            "rounds, and if the reference is the policy that sampled, whose are the `logprobs` of the candidates",
            unit="nats", nullable=True),
])  # fmt: skip
"""Some of a round's preferences, evenly spread: those that are measured again after the last step."""

EVALUATION_LOGPS = _schema("eval_logps", [
    _PROMPT_ID,
    _CANDIDATE,
    _column("policy", pa.float64(), "log-probability under the policy that sampled", unit="nats per sequence"),
    _column("previous", pa.float64(), "the same under the previous round's policy", unit="nats per sequence"),
    _column("initial", pa.float64(), "the same under the policy of round 0", unit="nats per sequence"),
    _column("tokens", pa.int32(), "length of the candidate", unit="tokens"),
])  # fmt: skip

EVALUATION_TOKEN_LOGPS = _schema("eval_logps", [
    *EVALUATION_LOGPS,
    _column("policy_tokens", pa.list_(pa.float32()), "`policy` of each token; null if these are the sampler's, the "
            "`logprobs` of the candidate", unit="nats", nullable=True),
    _column("previous_tokens", pa.list_(pa.float32()), "`previous` of each token", unit="nats"),
    _column("initial_tokens", pa.list_(pa.float32()), "`initial` of each token", unit="nats"),
], version=2)  # fmt: skip
"""The same with update.token_logprobs; without it, and in version 1, there are no such columns."""


def to_table(rows: Sequence[Mapping[str, object]], schema: pa.Schema) -> pa.Table:
    """Makes an Arrow table of exactly this schema; lone surrogates in texts are replaced, see `storable`.

    Raises:
        DataError: a row lacks a column, has one too many, or holds a value of another type.
    """
    names = set(schema.names)
    for row in rows:
        if set(row) != names:
            raise DataError(
                f"a row of the {_record(schema)} table has the columns {sorted(row)}, not {sorted(names)}: "
                "give each column, and no other"
            )
    try:
        try:
            table = pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
        except UnicodeEncodeError:
            table = pa.Table.from_pylist(storable([dict(row) for row in rows]), schema=schema)
        table.validate(full=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise DataError(f"a row does not fit the {_record(schema)} table: {error}") from error
    for field in schema:
        if not field.nullable and table[field.name].null_count:
            raise DataError(
                f"column '{field.name}' of the {_record(schema)} table has an empty value: it must be given"
            )
    return table


def storable(value: Any) -> Any:
    """Returns the value with texts that can be encoded: each lone surrogate is U+FFFD, and two that belong are one.

    Models, endpoints and exceptions give such texts, cut within a character; UTF-8 cannot hold them.
    """
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, Mapping):
        return {storable(name): storable(item) for name, item in value.items()}
    return [storable(item) for item in value] if isinstance(value, list | tuple) else value


def components_of(parts: Sequence[Any] | None) -> dict[str, float]:
    """Reads the named parts of a score from a row of judgments; those of version 1 are pairs."""
    return dict((part["name"], part["value"]) if isinstance(part, Mapping) else part for part in parts or ())


def _record(schema: pa.Schema) -> str:
    name: bytes = (schema.metadata or {}).get(b"rondo.record", b"unnamed")
    return name.decode()


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)
"""Made once: `json.dumps` makes one for each of a million prompts."""


def content_id(content: object) -> str:
    """Gives a JSON value a short, stable name: the first 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(_CANONICAL.encode(content).encode()).hexdigest()[:16]


def prompt_seed(run_seed: int, round_number: int, prompt_id: str) -> int:
    """Returns the seed of a prompt in a round, below 2**48; candidate ``k`` uses this seed plus ``k``."""
    digest = hashlib.sha256(f"{run_seed}/{round_number}/{prompt_id}".encode()).digest()
    return int.from_bytes(digest[:6], "big")
