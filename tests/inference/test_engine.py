"""The engine by JetStream's contract, driven by hand."""

from __future__ import annotations

from concurrent.futures import wait
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from looptool_jax.inference.batch import generate
from looptool_jax.models import attention
from looptool_jax.models.attention import KV
from looptool_jax.parallel.compilation import bucket
from looptool_jax.parallel.mesh import MeshConfig, ShardingError, make_mesh


def _padded(engine, prompt):
    return np.array(prompt + [engine.pad_id] * (engine.bucket(len(prompt)) - len(prompt)), np.int32)


def _by_hand(engine, params, state, prompt, slot, syncs, **options):
    """Prefill, insert, generate: tokens and log-probs of the slot's rows, with the state after it."""
    params = engine.load_params(params)
    prefix = engine.prefill(params=params, padded_tokens=_padded(engine, prompt), true_length=len(prompt))
    state = engine.insert(prefix, state, slot, **options)
    tokens, logprobs = ([[] for _ in range(engine.group)] for _ in range(2))
    for _ in range(syncs):
        state, result = engine.generate(params, state)
        result = result.convert_to_numpy()
        rows = result.get_result_at_slot(slot)
        assert rows.tokens.shape == rows.valid.shape == (engine.group, engine.steps_per_sync)
        for g in range(engine.group):
            valid = rows.valid[g].astype(bool)
            tokens[g] += rows.tokens[g][valid].tolist()
            logprobs[g] += engine.log_probs(result)[slot * engine.group + g][valid].tolist()
            assert rows.lengths[g] == len(tokens[g])
            assert (rows.tokens[g][~valid] == engine.pad_id).all()
    return tokens, logprobs, state


def test_it_is_a_jetstream_engine(engine):
    from jetstream.engine.engine_api import Engine

    assert isinstance(engine, Engine)
    assert not type(engine).__abstractmethods__
    assert (engine.max_concurrent_decodes, engine.samples_per_slot, engine.max_prefill_length) == (3, 4, 64)
    assert engine.mesh.axis_names == ("data", "fsdp", "expert", "tensor")
    assert engine.get_tokenizer().path == ""


def test_one_request_by_hand(engine, tiny, requests):
    prompt = requests[1].tokens
    tokens, logprobs, state = _by_hand(engine, tiny.params, engine.init_decode_state(), prompt, 1, syncs=3)
    expected = tiny.greedy(prompt, engine.answer_len)
    assert tokens == [expected] * 4
    np.testing.assert_allclose(logprobs[0], tiny.answer_logprobs(prompt, expected), atol=1e-4)
    _, result = engine.generate(engine.load_params(tiny.params), state)
    assert not result.convert_to_numpy().get_result_at_slot(1).valid.any(), "an ended answer goes on"
    assert not result.convert_to_numpy().get_result_at_slot(0).valid.any(), "an empty slot speaks"


def test_guesses_change_how_many_tokens_come_and_not_which(make_engine, tiny):
    """Slots with right, half right and wrong guesses, with none, ended and empty, against `generate`."""
    engine = make_engine(slots=6, group=1, answer_len=12, steps_per_sync=4)
    params = engine.load_params(tiny.params)
    prompts = [[7, 9, 11], [20, 8], [31, 6, 7, 8], [9] * 5, [12, 13]]

    def begin():
        state = engine.init_decode_state()
        for slot, prompt in enumerate(prompts):
            prefix = engine.prefill(params=params, padded_tokens=_padded(engine, prompt), true_length=len(prompt))
            state = engine.insert(prefix, state, slot, max_new=1 if slot == 4 else 12)
        return state

    def collect(state, step):
        answers = [([], [], []) for _ in range(engine.slots)]
        counts = []
        for _ in range(12):
            state, result = step(state, [tokens for tokens, *_ in answers])
            result = result.convert_to_numpy()
            valid = [result.get_result_at_slot(slot).valid[0].astype(bool) for slot in range(engine.slots)]
            counts.append([int(each.sum()) for each in valid])
            for slot, each in enumerate(valid):
                found = (
                    result.get_result_at_slot(slot).tokens[0],
                    engine.log_probs(result)[slot],
                    engine.leads(result)[slot],
                )
                for column, values in zip(answers[slot], found, strict=True):
                    column += values[each].tolist()
        return answers, counts

    plain, _ = collect(begin(), lambda state, _: engine.generate(params, state))
    assert [len(tokens) for tokens, *_ in plain][4:] == [1, 0] and len(plain[0][0]) >= 8

    def follow(state, so_far):
        rest = [tokens[len(had) + 1 :] for (tokens, *_), had in zip(plain, so_far, strict=True)]
        half = [*rest[1][:1], *(token ^ 1 for token in rest[1][1:])]
        return engine.follow(params, state, {0: rest[0], 1: half, 2: [t ^ 1 for t in rest[2]], 4: [7, 7], 5: [7]})

    guessed, counts = collect(begin(), follow)
    for ours, theirs in zip(guessed, plain, strict=True):
        assert ours[0] == theirs[0]
        np.testing.assert_allclose(ours[1:], theirs[1:], atol=1e-3)
    assert counts[0] == [4, 2, 1, 1, 1, 0] and counts[1][0] == 4


def test_caches_are_read_only_as_far_as_answers_reach(make_engine, tiny, monkeypatch):
    monkeypatch.setattr(attention, "BLOCK_BYTES", 1)
    monkeypatch.setattr(attention, "SMALLEST_BLOCK", 8)
    engine = make_engine(slots=2, group=2, answer_len=24)
    params, prompt = engine.load_params(tiny.params), [7, 9, 11]
    prefix = engine.prefill(params=params, padded_tokens=_padded(engine, prompt), true_length=len(prompt))
    found = []
    for behind in (0.0, np.nan):
        state = engine.insert(prefix, engine.init_decode_state(), 0, max_new=7)
        caches = ((x.at[..., 16:, :].set(behind) for x in kv) for kv in (state.prompt_kv, state.answer_kv))
        prompt_kv, answer_kv = (KV(*kv) for kv in caches)
        state = jax.device_put(state._replace(prompt_kv=prompt_kv, answer_kv=answer_kv), engine.state_shardings)
        state, result = engine.generate(params, state)
        found.append((result.convert_to_numpy().data, engine.log_probs(result)))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert np.isfinite(found[1][1]).all()


def test_a_slot_is_taken_over_while_others_go_on(engine, tiny, requests):
    long, short = requests[2].tokens, requests[4].tokens
    _, _, state = _by_hand(engine, tiny.params, engine.init_decode_state(), long, 0, syncs=1)
    tokens, _, state = _by_hand(engine, tiny.params, state, short, 0, syncs=3, max_new=6)
    assert tokens == [tiny.greedy(short, 6)] * 4


def test_new_weights_slots_and_temperatures_need_no_compilation(make_engine, tiny, requests):
    engine = make_engine(group=4)
    compiled = (engine._prefill, engine._insert_prompts, engine._insert_rows, engine._generate)
    before = generate(engine, tiny.params, requests)
    sizes = [function._cache_size() for function in compiled]
    after = generate(engine, tiny.other_params, requests[::-1])
    assert [function._cache_size() for function in compiled] == sizes
    assert sizes == [2, 2, 1, 1], "one for each bucket, and one"
    assert before != after[::-1], "the engine did not take the new weights"


def test_what_is_compiled_ahead_is_what_runs(make_engine, tiny, requests, caplog):
    engine = make_engine(slots=5)
    engine.compile_ahead(tiny.params)
    wait([engine._compiling])
    with jax.log_compiles():
        generate(engine, tiny.params, requests)
    compiled = [record.message for record in caplog.records if "Finished XLA compilation" in record.message]
    assert sum("jit(_insert_rows_fn)" in line for line in compiled) == 1
    assert sum("jit(traced)" in line for line in compiled) == 2, "prefill for two buckets, and nothing else"


def test_the_decode_state_is_donated(engine, tiny):
    state = engine.init_decode_state()
    engine.generate(engine.load_params(tiny.params), state)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_buckets_are_powers_of_two_up_to_the_prompt_length(engine):
    assert [engine.bucket(length) for length in (1, 16, 17, 32)] == [16, 16, 32, 32]
    assert {bucket(length, 16, 40) for length in range(1, 41)} == {16, 32, 40}
    assert {bucket(length, 16, 9) for length in range(1, 10)} == {9}


def test_long_buckets_are_finer():
    """At most a third of padding, whatever the limit."""
    from looptool_jax.inference.engine import FINE_BUCKETS, DecoderEngine

    def sizes(limit: int) -> set[int]:
        engine = SimpleNamespace(prompt_len=limit)
        found = {length: DecoderEngine.bucket(engine, length) for length in range(1, limit + 1)}
        assert all(length <= size <= limit for length, size in found.items())
        assert all(size <= 3 / 2 * length for length, size in found.items() if length > FINE_BUCKETS)
        return set(found.values())

    small = {16, 32, 64, 128, 256, 512}
    assert sizes(2048) == small | {768, 1024, 1536, 2048}
    assert sizes(1000) == small | {768, 1000}
    assert sizes(600) == small | {600}
    assert sizes(700) == small | {700}
    assert sizes(11000) == small | {768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 11000}
    assert sizes(10240) == small | {768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 10240}


def test_bad_sizes_are_refused(make_engine):
    from looptool_jax.inference.engine import EngineError

    with pytest.raises(EngineError, match="slots is 0"):
        make_engine(slots=0)
    with pytest.raises(EngineError, match="eos_ids is empty"):
        make_engine(eos_ids=())
    with pytest.raises(EngineError, match="32760 prompt and 12 answer tokens are more than the 32768 positions"):
        make_engine(prompt_len=32760)
    for limits in ({"top_p": 0.0}, {"top_p": 1.5}, {"top_p": float("nan")}, {"top_k": -1}):
        with pytest.raises(EngineError, match=r"top_k is .* and top_p .*; they must be"):
            make_engine(**limits)
    with pytest.raises(ShardingError, match="slots of 3 rows"):
        make_engine(mesh=make_mesh(MeshConfig(4, 1, 2)))


def test_bad_calls_are_refused(engine, tiny):
    from looptool_jax.inference.engine import EngineError

    with pytest.raises(EngineError, match="existing prefix"):
        engine.prefill(params=tiny.params, existing_prefix=(), padded_tokens=np.zeros(16, np.int32), true_length=3)
    with pytest.raises(EngineError, match="a prompt of 20 tokens padded to 16"):
        engine.prefill(params=tiny.params, padded_tokens=np.zeros(16, np.int32), true_length=20)
