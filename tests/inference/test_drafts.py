"""Drafts change how much is decoded, never what comes out."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest

from looptool_jax.inference import drafts
from looptool_jax.inference.batch import Request, generate
from looptool_jax.inference.scoring import Scorer
from looptool_jax.parallel.mesh import MeshConfig, make_mesh

PROMPT, ANSWER = 32, 12


@pytest.fixture(scope="module")
def pair(make_engine, tiny):
    """An engine with room for drafts and a scorer of its sizes."""

    def make(mesh, **options):
        engine = make_engine(mesh=mesh, draft_len=ANSWER, **options)
        return engine, Scorer(tiny.cfg, mesh, longest=PROMPT + ANSWER, members=2, dtype="float32")

    one = make(make_mesh(MeshConfig(), jax.devices()[:1]), slots=4)
    return lambda mesh=None, **options: make(mesh, **options) if mesh else one


@pytest.fixture(scope="module")
def corpus(pair, tiny):
    """Prompts cut from dialogues, their step-by-step answers, and drafts: right, half right, wrong, none, two."""
    rng = np.random.default_rng(3)
    requests = []
    for number in range(250):
        dialogue = rng.integers(6, 48, PROMPT).tolist()
        for cut in sorted({int(c) for c in rng.integers(1, PROMPT + 1, 4)}):
            requests.append(Request(f"{number}/{cut}", dialogue[:cut], (0, 0), 0.0, int(rng.integers(1, ANSWER + 1))))
    engine, _ = pair()
    plain = [completion for [completion] in generate(engine, tiny.params, requests)]
    guesses = []
    for number, completion in enumerate(plain):
        right = completion.tokens
        half = [*right[: len(right) // 2], 6 + number % 40, *right[len(right) // 2 + 1 :]]
        longer = [*right, 7, 8] if completion.finish == "length" else right
        guesses.append([[right], [half], [[9, 9, 9]], [], [half, right], [longer], [right[:-1]]][number % 7])
    return requests, plain, guesses


def test_tokens_are_those_of_step_by_step_decoding(pair, tiny, corpus):
    engine, scorer = pair()
    requests, plain, guesses = corpus
    found = drafts.greedy(engine, scorer, tiny.params, requests, guesses)
    for ours, theirs in zip(found, plain, strict=True):
        assert (ours.request_id, ours.tokens, ours.finish) == (theirs.request_id, theirs.tokens, theirs.finish)
        np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=1e-4)
        np.testing.assert_allclose(ours.leads, theirs.leads, atol=1e-4)
    whole = [completion.drafted == len(completion.tokens) for completion in found]
    assert 0.4 * len(requests) < sum(whole) < 0.6 * len(requests)  # of seven kinds of drafts, three hold it all
    assert sum(completion.near_tie for completion in found) < 0.02 * len(requests)


def test_what_follows_a_mismatch_is_a_guess(pair, tiny, corpus, monkeypatch):
    """Drafts with one wrong token: their rest is checked several tokens at a time."""
    engine, scorer = pair()
    requests, plain, guesses = (each[1::7] for each in corpus)
    steps = {"generate": 0, "follow": 0}
    for name in steps:
        whole = getattr(engine, name)
        count = lambda *inputs, name=name, whole=whole: (steps.update({name: steps[name] + 1}), whole(*inputs))[1]  # noqa: E731
        monkeypatch.setattr(engine, name, count)
    found = drafts.greedy(engine, scorer, tiny.params, requests, guesses)
    assert [completion.tokens for completion in found] == [completion.tokens for completion in plain]
    assert steps["follow"] > steps["generate"]
    monkeypatch.setattr(drafts, "FEWEST_GUESSED", 99)  # never
    guessed, steps["generate"] = steps["generate"] * engine.steps_per_sync + 2 * steps["follow"], 0
    drafts.greedy(engine, scorer, tiny.params, requests, guesses)
    assert guessed < 0.7 * steps["generate"] * engine.steps_per_sync, "a step that checks guesses costs up to two"


@pytest.mark.parametrize(
    "answer, rest",
    [
        ([1, 2], [9, 4, 5, 6, 7]),  # as if the 9 were wrong
        ([1, 2, 3], []),  # nothing to go by
        ([1, 2, 3, 4], []),
        ([1, 2, 3, 4, 5], [6, 7]),
        ([1, 2, 3, 3, 3, 5, 6], [7]),  # more tokens than in the draft
        ([1, 2, 5, 6], [7]),  # fewer
        ([1, 2, 3, 4, 5, 6, 7], []),
    ],
)
def test_the_rest_of_a_draft(answer, rest):
    assert list(drafts._rest([1, 2, 9, 4, 5, 6, 7], answer, mismatch=2)) == rest


def between_leads(completions, count) -> float:
    """A bound under which about `count` answers are near a tie; it lies where leads are far apart, as the last bits of
    the two ways differ."""
    leads = np.sort([lead for completion in completions for lead in completion.leads])
    least = np.sort([min(completion.leads) for completion in completions])[count]
    first = int(np.searchsorted(leads, least))
    widest = first + int(np.diff(leads[first : first + 10]).argmax())
    return float(leads[widest : widest + 2].mean())


def test_where_two_logits_are_near_it_is_decoded_step_by_step(pair, tiny, corpus, monkeypatch):
    """From the prompt on, up to the last near tie."""
    engine, scorer = pair()
    requests, plain, _ = (each[:40] for each in corpus)
    near = between_leads(plain, 15)
    monkeypatch.setattr(drafts, "NEAR_TIE", {"float32": near})
    decodings, calls = [], []
    whole = drafts.Decoding.__init__
    monkeypatch.setattr(drafts.Decoding, "__init__", lambda self, *to: (decodings.append(self), whole(self, *to))[1])
    guesses = [[completion.tokens] for completion in plain]
    found = drafts.greedy(engine, scorer, tiny.params, requests, guesses, lambda *numbers: calls.append(numbers))
    assert calls == sorted(calls) and calls[-1][0] == 40
    last = [max((i for i, lead in enumerate(each.leads) if lead < near), default=None) for each in plain]
    assert [completion.near_tie for completion in found] == [place is not None for place in last]
    assert 15 <= sum(completion.near_tie for completion in found) <= 25
    k = engine.steps_per_sync
    syncs = [-(-(place + 1) // k) for place in last if place is not None]
    ends = [len(completion.tokens) for completion, place in zip(plain, last, strict=True) if place is not None]
    assert decodings[0].generated == sum(min(k * sync, end) for sync, end in zip(syncs, ends, strict=True))
    assert [completion.tokens for completion in found] == [completion.tokens for completion in plain]


def test_a_near_tie_that_comes_out_otherwise(pair, tiny, corpus, monkeypatch):
    """A pass that takes every draft for right: step-by-step decoding does not."""
    engine, scorer = pair()
    requests, plain, _ = (each[:20] for each in corpus)
    places = [number % len(completion.tokens) for number, completion in enumerate(plain)]
    guesses = [
        [[*each.tokens[:i], 6 + (each.tokens[i] + 1) % 40, *each.tokens[i + 1 :]]]
        for i, each in zip(places, plain, strict=True)
    ]

    def credulous(params, rows, families, starts):
        scores, computed = scorer(params, rows, families, starts)
        for (family, member), found in scores.items():
            scores[family, member] = found._replace(best=np.asarray(families[family][member][starts[family] :]))
        return scores, computed

    credulous.rows_of, credulous.branch = scorer.rows_of, scorer.branch
    monkeypatch.setattr(drafts, "NEAR_TIE", {"float32": 1e9})
    found = drafts.greedy(engine, credulous, tiny.params, requests, guesses)
    for ours, theirs in zip(found, plain, strict=True):
        assert ours == replace(theirs, near_tie=True)  # to the last bit


@pytest.mark.parametrize("sizes", [{"slots": 1}, {"slots": 2, "prefill_batch": 4}, {"slots": 5, "steps_per_sync": 1}])
def test_whatever_the_engine(pair, tiny, corpus, monkeypatch, make_engine, sizes):
    engine, (_, scorer) = make_engine(draft_len=ANSWER, **sizes), pair()
    requests, plain, guesses = (each[:30] for each in corpus)
    for near in (2e-3, 0.7, 1e9):
        monkeypatch.setattr(drafts, "NEAR_TIE", {"float32": near})
        found = drafts.greedy(engine, scorer, tiny.params, requests, guesses)
        assert [completion.tokens for completion in found] == [completion.tokens for completion in plain]


def test_on_eight_devices(pair, tiny, corpus):
    engine, scorer = pair(make_mesh(MeshConfig(2, 2, 2)), slots=4)
    requests, plain, guesses = (each[:40] for each in corpus)
    found = drafts.greedy(engine, scorer, tiny.params, requests, guesses)
    assert [completion.tokens for completion in found] == [completion.tokens for completion in plain]


def test_progress_and_bad_requests(pair, tiny, corpus):
    engine, scorer = pair()
    requests, plain, guesses = (each[:10] for each in corpus)
    calls = []
    drafts.greedy(engine, scorer, tiny.params, requests, guesses, lambda *numbers: calls.append(numbers))
    assert calls == sorted(calls) and calls[-1] == (10, sum(len(completion.tokens) for completion in plain))
    assert drafts.greedy(engine, scorer, tiny.params, [], []) == []
    with pytest.raises(ValueError, match="request long: the prompt has 33 tokens"):
        drafts.greedy(engine, scorer, None, [replace(requests[0], id="long", tokens=[7] * 33)], [[]])


def test_scores_are_log_probs_of_the_given_tokens(pair, tiny):
    _, scorer = pair()
    families = [[[7, 8, 9, 10], [7, 8, 11]], [[20, 21]]]
    rows = scorer.rows_of(families)
    assert [len(row.tokens) for [row] in rows] == [7]
    scores, _ = scorer(tiny.params, rows[0], families, [2, 1])
    for (family, member), found in scores.items():
        tokens, start = families[family][member], [2, 1][family]
        table = tiny.logprobs(tokens)[start - 1 : -1]
        np.testing.assert_allclose(found.logprobs, table[np.arange(len(table)), tokens[start:]], atol=1e-4)
        assert found.best.tolist() == table.argmax(-1).tolist()
        two = np.sort(table, axis=-1)[:, -2:]
        np.testing.assert_allclose(found.lead, two[:, 1] - two[:, 0], atol=1e-4)


def test_copies_of_a_prompt(pair, tiny):
    """They take no room in a row, but each has its own scores."""
    engine, scorer = pair()
    requests = [Request(str(i), [7, 8, 9], (0, 0), 0.0, ANSWER) for i in range(60)]
    [[plain]] = generate(engine, tiny.params, requests[:1])
    found = drafts.greedy(engine, scorer, tiny.params, requests, [[plain.tokens], [[9]]] * 30)
    assert [completion.tokens for completion in found] == [plain.tokens] * 60


def test_accelerators_never_get_the_bound_of_exact_float32():
    assert drafts.near_tie("float32", "cpu") == drafts.NEAR_TIE["float32"]
    assert drafts.near_tie("float32", "tpu") == drafts.near_tie("bfloat16", "cpu") == drafts.NEAR_TIE["bfloat16"]
