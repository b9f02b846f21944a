"""Continuous batching: what a request gets is its own greedy or sampled answer, whatever runs beside it."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest

from looptool_jax.inference.batch import PromptTooLong, Request, RequestError, generate
from looptool_jax.inference.scoring import Scorer
from looptool_jax.parallel.mesh import MeshConfig, make_mesh


@pytest.mark.parametrize("name", ["single", "engine"])
def test_greedy_answers_equal_plain_step_by_step_decoding(name, tiny, requests, request):
    engine = request.getfixturevalue(name)
    greedy = [replace(each, temperature=0.0) for each in requests]
    groups = generate(engine, tiny.params, greedy)
    assert [group[0].request_id for group in groups] == [each.id for each in greedy]
    for each, group in zip(greedy, groups, strict=True):
        expected = tiny.greedy(each.tokens, each.max_new)
        assert [completion.index for completion in group] == list(range(engine.group))
        for completion in group:
            assert completion.tokens == expected
            logprobs = tiny.answer_logprobs(each.tokens, completion.tokens)
            np.testing.assert_allclose(completion.logprobs, logprobs, atol=1e-4)


@pytest.mark.parametrize("name", ["single", "engine"])
def test_prompts_that_begin_alike_are_computed_once_and_answered_the_same(name, tiny, request):
    rng = np.random.default_rng(5)
    shared, ends = rng.integers(6, 48, 20).tolist(), (0, 5, 5, 1, 8, 12, 3)
    requests = [
        Request(f"r{i}", [*shared[: 20 - i % 2], *rng.integers(6, 48, end).tolist()], (7, i), (0.0, 1.2)[i % 2], 12)
        for i, end in enumerate(ends)
    ]
    requests.append(replace(requests[4], id="again", key=(7, 99), temperature=1.2))
    engine = request.getfixturevalue(name)
    scorer = Scorer(tiny.cfg, engine.mesh, longest=engine.prompt_len, dtype="float32")
    plain = generate(engine, tiny.params, requests)
    found = generate(engine, tiny.params, requests, scorer=scorer)
    for ours, theirs in zip([a for group in found for a in group], [a for group in plain for a in group], strict=True):
        assert (ours.request_id, ours.index, ours.tokens) == (theirs.request_id, theirs.index, theirs.tokens)
        np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=1e-4)
    rows = scorer.rows_of([[each.tokens] for each in requests])
    computed = sum(len(row.tokens) for [row] in rows)
    assert computed <= 20 * len(rows) + sum(ends) < sum(len(each.tokens) for each in requests) / 2
    assert found[4][0].tokens != found[-1][0].tokens


def test_sampled_answers_end_where_they_must_and_carry_raw_log_probs(engine, tiny, requests):
    groups = generate(engine, tiny.params, [replace(each, temperature=1.5) for each in requests])
    finishes = set()
    for each, group in zip(requests, groups, strict=True):
        for completion in group:
            *body, last = completion.tokens
            assert not set(body) & set(engine.eos_ids)
            assert completion.finish == ("stop" if last in engine.eos_ids else "length")
            assert completion.finish == "stop" or len(completion.tokens) == each.max_new
            assert len(completion.tokens) <= each.max_new
            logprobs = tiny.answer_logprobs(each.tokens, completion.tokens)
            np.testing.assert_allclose(completion.logprobs, logprobs, atol=1e-4)
            finishes.add(completion.finish)
    assert finishes == {"stop", "length"}


def test_the_key_of_a_token_is_request_then_group_index_then_token_index(engine, tiny, requests):
    @jax.jit
    def noise(request_key, index, token):
        row_key = jax.random.fold_in(jax.random.wrap_key_data(request_key, impl="threefry2x32"), index)
        return jax.random.gumbel(jax.random.fold_in(row_key, token), (tiny.cfg.vocab_size,))

    each = replace(requests[2], temperature=1.5)
    [group] = generate(engine, tiny.params, [each])
    for completion in group:
        table = tiny.logprobs([*each.tokens, *completion.tokens])[len(each.tokens) - 1 : -1]
        key = np.array(each.key, np.uint32)
        drawn = [int(np.argmax(row / 1.5 + noise(key, completion.index, t))) for t, row in enumerate(table)]
        assert completion.tokens == drawn


def test_answers_of_a_group_differ_and_keys_decide(engine, tiny, requests):
    sampled = replace(requests[0], temperature=1.5)
    first, again, other = generate(engine, tiny.params, [sampled, sampled, replace(sampled, key=(9, 1000))])
    assert first == again
    assert len({tuple(completion.tokens) for completion in first}) > 1
    assert [completion.tokens for completion in first] != [completion.tokens for completion in other]


def test_answers_do_not_depend_on_company_slot_or_order(engine, tiny, requests):
    together = generate(engine, tiny.params, requests)
    backwards = generate(engine, tiny.params, requests[::-1])[::-1]
    alone = [generate(engine, tiny.params, [each])[0] for each in requests]
    assert together == backwards == alone
    by_length = sorted(requests, key=lambda each: len(each.tokens))
    # The longest enter first: without them the others are in other slots.
    for count in range(2, len(requests)):
        fewer = generate(engine, tiny.params, by_length[:count])
        assert fewer == [alone[requests.index(each)] for each in by_length[:count]]


@pytest.mark.parametrize("axes", [MeshConfig(8, 1, 1), MeshConfig(2, 2, 2)])
def test_eight_devices_and_another_group_size_give_the_same_answers(axes, engine, make_engine, tiny, requests):
    short = [each for each in requests if len(each.tokens) <= 16]
    sharded = make_engine(mesh=make_mesh(axes, jax.devices()[:8]), slots=8, group=2)
    for ours, expected in zip(generate(sharded, tiny.params, short), generate(engine, tiny.params, short), strict=True):
        for a, b in zip(ours, expected[:2], strict=True):
            assert (a.tokens, a.finish) == (b.tokens, b.finish)
            np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-4)


def test_progress_counts_finished_requests_and_tokens(engine, tiny, requests):
    calls = []
    groups = generate(engine, tiny.params, requests, lambda finished, tokens: calls.append((finished, tokens)))
    assert calls == sorted(calls)
    assert calls[-1] == (len(requests), sum(len(completion.tokens) for group in groups for completion in group))


def test_no_requests_give_no_answers(engine, tiny):
    assert generate(engine, tiny.params, []) == []


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (Request("long", [7] * 33, (0, 0), 0.0, 5), PromptTooLong, "request long: the prompt has 33 tokens, .* 32"),
        (Request("empty", [], (0, 0), 0.0, 5), RequestError, "request empty: the prompt has 0 tokens"),
        (Request("much", [7], (0, 0), 0.0, 13), RequestError, "request much: max_new is 13, .* 1 to 12"),
        (Request("none", [7], (0, 0), 0.0, 0), RequestError, "request none: max_new is 0"),
        (Request("cold", [7], (0, 0), -1.0, 5), RequestError, "request cold: temperature is -1.0"),
        (Request("alien", [7, 48], (0, 0), 0.0, 5), RequestError, "request alien: token 48 .* 48"),
    ],
)
def test_bad_requests_are_refused_before_anything_runs(bad, error, message, engine, requests):
    with pytest.raises(error, match=message):
        generate(engine, None, [*requests, bad])
