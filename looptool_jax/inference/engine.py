"""The decoding engine: JetStream's `Engine` over the project's decoders.

A slot holds one prompt and the `group` answers that share its keys and values. `prefill` computes prompts, `insert`
puts them into slots and draws the first token of every answer, `generate` runs `steps_per_sync` decode steps in one
compiled scan, `follow` checks guesses of as many tokens in one step. Weights are arguments of every compiled function,
so a new policy needs no compilation.

Importing this module imports JetStream, which imports TensorFlow (seconds): import it inside functions.
Parameters come from `load_params`; weights of another placement would be compiled for anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt32
from jetstream.engine import engine_api, tokenizer_pb2

from looptool_jax.inference.decode_state import DecodeState, Prefix, Rows, append, caches_at_work, put_into_slots
from looptool_jax.inference.sampling import best_and_lead, only, row_keys, sample
from looptool_jax.inference.token_ids import NO_BOS, TokenIdsOnly
from looptool_jax.models import decoder, linear
from looptool_jax.models.attention import KV, Cache
from looptool_jax.models.config import DecoderConfig
from looptool_jax.models.decoder import Params
from looptool_jax.parallel import mesh as meshes
from looptool_jax.parallel import rules
from looptool_jax.parallel.compilation import bucket, compiled_ahead

SMALLEST_BUCKET = 16
FINE_BUCKETS = 512


class EngineError(ValueError):
    """An engine that cannot be built, or a call that it cannot serve."""


class DecoderEngine(engine_api.Engine):
    """JetStream engine with shared-prompt groups, seeded sampling and log-probs.

    Args:
        cfg: the decoder.
        mesh: made by `make_mesh`; slots are split over its batch axes. Default: the first device alone.
        slots: prompts decoded at a time (S).
        group: answers per prompt (G); JetStream's `samples_per_slot`.
        prompt_len, answer_len: most tokens of a prompt and of an answer, its end token included (R).
        draft_len: most tokens of an answer that may be known beforehand; there is room for them behind the prompt.
        eos_ids: tokens that end an answer. pad_id: what stands where there is no token.
        steps_per_sync: decode steps of one `generate` (k).
        prefill_batch: prompts that the batch loop prefills at a time. Default: one for each shard of the batch axes.
        top_k, top_p: restrict sampling (0 and 1.0: no restriction).
        dtype: of activations and caches. attention: of prompts.

    Raises:
        EngineError: a size is not positive, there is no end token, the model has too few positions, or top_k or top_p
            restrict to nothing.
        ShardingError: slots, heads or features do not divide by the mesh.
    """

    def __init__(
        self,
        cfg: DecoderConfig,
        *,
        mesh: Mesh | None = None,
        slots: int,
        group: int = 1,
        prompt_len: int,
        answer_len: int,
        draft_len: int = 0,
        eos_ids: tuple[int, ...],
        pad_id: int,
        steps_per_sync: int = 8,
        prefill_batch: int | None = None,
        top_k: int = 0,
        top_p: float = 1.0,
        dtype: Any = jnp.float32,
        attention: decoder.Attention = "xla",
    ) -> None:
        self._mesh = mesh if mesh is not None else meshes.make_mesh(meshes.MeshConfig(), jax.devices()[:1])
        if prefill_batch is None:
            prefill_batch = rules.batch_shards(self._mesh)
        sizes = {
            "slots": slots, "group": group, "prompt_len": prompt_len, "answer_len": answer_len,
            "steps_per_sync": steps_per_sync, "prefill_batch": prefill_batch,
        }  # fmt: skip
        for name, size in sizes.items():
            if size < 1:
                raise EngineError(f"engine: {name} is {size}; it must be at least 1")
        if not eos_ids:
            raise EngineError("engine: eos_ids is empty; without an end token no answer ends before its limit")
        if prompt_len + answer_len > cfg.max_position_embeddings:
            raise EngineError(
                f"engine: {prompt_len} prompt and {answer_len} answer tokens are more than the "
                f"{cfg.max_position_embeddings} positions of the model"
            )
        if top_k < 0 or not 0 < top_p <= 1:
            raise EngineError(f"engine: top_k is {top_k} and top_p {top_p}; they must be 0 or more, and in (0, 1]")
        self.cfg, self.slots, self.group, self.prompt_len, self.answer_len = cfg, slots, group, prompt_len, answer_len
        self.draft_len, self.eos_ids, self.pad_id = draft_len, tuple(eos_ids), pad_id
        self.steps_per_sync, self.prefill_batch = steps_per_sync, prefill_batch
        self.top_k, self.top_p, self.dtype, self.attention = top_k, top_p, jnp.dtype(dtype), attention
        self._compiling: Future[jax.stages.Compiled] | None = None
        self._compile()

    # --- shardings and compiled functions ---------------------------------------------------------------------------

    def _compile(self) -> None:
        mesh = self._mesh
        rules.check_batch(mesh, self.slots, "an engine's slots")
        replicated: Any = rules.replicated(mesh)
        slot: Any = rules.batch_sharding(mesh, 1)
        prompt_kv: Any = rules.kv_sharding(mesh, 5)
        answer_kv: Any = rules.kv_sharding(mesh, 6)
        prefix_kv: Any = rules.prefix_sharding(mesh)
        self.placement(decoder.abstract_params(self.cfg))  # what does not divide is found before anything is compiled
        self.prefix_shardings = Prefix(KV(prefix_kv, prefix_kv), replicated, replicated)
        rows = Rows(*len(Rows._fields) * (slot,))
        self.state_shardings = DecodeState(KV(prompt_kv, prompt_kv), KV(answer_kv, answer_kv), rows)

        def on_mesh(function: Callable) -> Callable:
            def traced(*args: Any) -> Any:
                with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                    return function(*args)

            return traced

        self._init = jax.jit(self._init_fn, out_shardings=self.state_shardings)
        self._prefill = jax.jit(
            on_mesh(self._prefill_fn),
            in_shardings=(None, replicated, replicated),
            out_shardings=self.prefix_shardings,
        )
        self._insert_prompts = jax.jit(
            self._insert_prompts_fn,
            donate_argnums=0,
            in_shardings=(self.state_shardings.prompt_kv, self.prefix_shardings.kv, replicated),
            out_shardings=self.state_shardings.prompt_kv,
        )
        self._insert_rows = jax.jit(
            self._insert_rows_fn, donate_argnums=0, in_shardings=(rows, *6 * (replicated,)), out_shardings=rows
        )
        self._generate = jax.jit(
            on_mesh(self._generate_fn),
            donate_argnums=1,
            in_shardings=(None, self.state_shardings),
            out_shardings=(self.state_shardings, replicated),
        )
        self._restricted = jax.jit(
            on_mesh(self._restricted_fn),
            donate_argnums=1,
            in_shardings=(None, self.state_shardings, replicated),
            out_shardings=(self.state_shardings, replicated),
        )
        self._only = jax.jit(only, in_shardings=(replicated, replicated), out_shardings=replicated)
        self._pending = jax.jit(lambda token: token, in_shardings=slot, out_shardings=replicated)
        self._follow = jax.jit(
            on_mesh(self._follow_fn),
            donate_argnums=1,
            in_shardings=(None, self.state_shardings, replicated, replicated),
            out_shardings=(self.state_shardings, replicated),
        )

    def _init_fn(self) -> DecodeState:
        cfg, s, g = self.cfg, self.slots, self.group

        def cache(*rows: int, time: int) -> KV:
            shape = (cfg.num_layers, *rows, cfg.num_kv_heads, time, cfg.head_dim)
            return KV(jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype))

        rows = Rows(
            prompt_length=jnp.zeros((s,), jnp.int32),
            token=jnp.full((s, g), self.pad_id, jnp.int32),
            logprob=jnp.zeros((s, g), jnp.float32),
            lead=jnp.zeros((s, g), jnp.float32),
            length=jnp.zeros((s, g), jnp.int32),
            done=jnp.ones((s, g), bool),
            max_new=jnp.zeros((s,), jnp.int32),
            temperature=jnp.zeros((s,), jnp.float32),
            key=jnp.zeros((s, g, 2), jnp.uint32),
        )
        return DecodeState(cache(s, time=self.prompt_len + self.draft_len), cache(s, g, time=self.answer_len), rows)

    def _prefill_fn(self, params: Params, tokens: Int[Array, "N T"], length: Int[Array, " N"]) -> Prefix:
        n, t = tokens.shape
        positions = jnp.broadcast_to(jnp.arange(t), (n, t))
        ends = jnp.where(positions < length[:, None], length[:, None], 0)
        hidden, kv = decoder.forward(params, self.cfg, tokens, positions, ends, attention=self.attention)
        last = jnp.take_along_axis(hidden, (length - 1)[:, None, None], axis=1)[:, 0]
        return Prefix(decoder.cached(kv, self.dtype), decoder.logits(params, self.cfg, last), length)

    def _insert_prompts_fn(self, prompt_kv: KV, prefix_kv: KV, slots: Int[Array, " N"]) -> KV:
        return jax.tree.map(lambda target, new: put_into_slots(target, new, slots, axis=1), prompt_kv, prefix_kv)

    def _insert_rows_fn(
        self,
        rows: Rows,
        logits: Float[Array, "N vocab"],
        prompt_length: Int[Array, " N"],
        slots: Int[Array, " N"],
        keys: UInt32[Array, "N 2"],
        temperature: Float[Array, " N"],
        max_new: Int[Array, " N"],
    ) -> Rows:
        n, g = slots.shape[0], self.group
        key = row_keys(keys, g)
        token, logprob, lead = sample(
            jnp.repeat(logits, g, axis=0), key.reshape(n * g, 2), jnp.zeros((n * g,), jnp.int32),
            jnp.repeat(temperature, g), top_k=self.top_k, top_p=self.top_p,
        )  # fmt: skip
        new = Rows(
            prompt_length=prompt_length,
            token=token.reshape(n, g),
            logprob=logprob.reshape(n, g),
            lead=lead.reshape(n, g),
            length=jnp.zeros((n, g), jnp.int32),
            done=jnp.zeros((n, g), bool),
            max_new=max_new,
            temperature=temperature,
            key=key,
        )
        return jax.tree.map(lambda target, entries: put_into_slots(target, entries, slots), rows, new)

    def _generate_fn(self, params: Params, state: DecodeState) -> tuple[DecodeState, Int[Array, "rows columns"]]:
        return self._steps(params, state, self.steps_per_sync)

    def _restricted_fn(
        self, params: Params, state: DecodeState, allowed: Int[Array, "S G words"]
    ) -> tuple[DecodeState, Int[Array, "rows columns"]]:
        return self._steps(params, state, 1, allowed)

    def _steps(
        self, params: Params, state: DecodeState, k: int, allowed: Int[Array, "S G words"] | None = None
    ) -> tuple[DecodeState, Int[Array, "rows columns"]]:
        s, g = self.slots, self.group
        prompt_length, answered = state.rows.prompt_length, state.rows.length
        caches = caches_at_work(state)
        temperature = jnp.repeat(state.rows.temperature, g)
        eos_ids = jnp.asarray(self.eos_ids, jnp.int32)

        def step(carry: tuple[KV, Rows], number: Array) -> tuple[tuple[KV, Rows], tuple[Array, ...]]:
            recent_kv, rows = carry
            valid = ~rows.done
            emitted = (rows.token, valid, rows.logprob, rows.lead)
            length = rows.length + valid
            ended = jnp.isin(rows.token, eos_ids) | (length >= rows.max_new[:, None])
            recent = Cache(recent_kv, number[None, None], number)
            position = prompt_length[:, None] + rows.length
            hidden, new = decoder.decode_step(
                params, self.cfg, rows.token[..., None], position[..., None], (*caches, recent)
            )
            logits = decoder.logits(params, self.cfg, hidden).reshape(s * g, -1)
            if allowed is not None:
                logits = only(logits, allowed.reshape(s * g, -1))
            token, logprob, lead = sample(
                logits, rows.key.reshape(s * g, 2), length.reshape(-1), temperature,
                top_k=self.top_k, top_p=self.top_p,
            )  # fmt: skip
            rows = rows._replace(
                token=token.reshape(s, g), logprob=logprob.reshape(s, g), lead=lead.reshape(s, g), length=length,
                done=rows.done | ended,
            )  # fmt: skip
            recent_kv = decoder.put(recent_kv, new, number)
            return (recent_kv, rows), emitted

        # Rows are at different places of their answers. While all steps go to one place of a small cache, the large one
        # is only read; it takes in what the steps have made in one pass behind them.
        shape = (self.cfg.num_layers, s, g, self.cfg.num_kv_heads, k, self.cfg.head_dim)
        recent_kv = KV(jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype))
        (recent_kv, rows), emitted = jax.lax.scan(step, (recent_kv, state.rows), jnp.arange(k))
        answer_kv = jax.tree.map(lambda cache, new: append(cache, new, answered), state.answer_kv, recent_kv)
        result = self._result(rows, *(jnp.moveaxis(x, 0, -1) for x in emitted))
        return DecodeState(state.prompt_kv, answer_kv, rows), result

    def _follow_fn(
        self, params: Params, state: DecodeState, guesses: Int[Array, "S k-1"], count: Int[Array, " S"]
    ) -> tuple[DecodeState, Int[Array, "rows columns"]]:
        rows, place = state.rows, jnp.arange(self.steps_per_sync)
        tokens = jnp.concatenate([rows.token, guesses], axis=1)
        positions = rows.prompt_length[:, None] + rows.length + place
        hidden, new = decoder.decode_step(params, self.cfg, tokens[:, None], positions[:, None], caches_at_work(state))
        logits = decoder.logits(params, self.cfg, hidden[:, 0])
        best, lead, logsumexp = best_and_lead(logits)
        logprob = jnp.take_along_axis(logits, best[..., None], axis=-1)[..., 0] - logsumexp
        right = (guesses == best[:, :-1]) & (place[:-1] < count[:, None])
        ended = jnp.isin(tokens, jnp.asarray(self.eos_ids)) | (rows.length + place + 1 >= rows.max_new[:, None])
        valid = jnp.cumprod(jnp.concatenate([~rows.done, right & ~ended[:, :-1]], axis=1), axis=1).astype(bool)
        given = valid.sum(axis=1, keepdims=True)

        def at_last(x: Array) -> Array:
            return jnp.take_along_axis(x, jnp.maximum(given - 1, 0), axis=1)

        logprobs, leads = (
            jnp.concatenate([x, more[:, :-1]], axis=1) for x, more in ((rows.logprob, logprob), (rows.lead, lead))
        )
        # What was wrong stands behind the answer's end, where it is not seen, until it is written over.
        answer_kv = jax.tree.map(
            lambda cache, x: append(cache, x.astype(cache.dtype), rows.length), state.answer_kv, new
        )
        rows = rows._replace(
            token=at_last(best), logprob=at_last(logprob), lead=at_last(lead), length=rows.length + given,
            done=rows.done | at_last(ended),
        )  # fmt: skip
        return DecodeState(state.prompt_kv, answer_kv, rows), self._result(rows, tokens, valid, logprobs, leads)

    def _result(self, rows: Rows, *columns: Array) -> Int[Array, "rows columns"]:
        """The next tokens of every row, whether each is one, log-probs and leads [S, G, up to k], as the host reads
        them."""
        flat = [x.reshape(self.slots * self.group, -1) for x in columns]
        tokens, valid, logprobs, leads = (jnp.pad(x, ((0, 0), (0, self.steps_per_sync - x.shape[1]))) for x in flat)
        floats = [jax.lax.bitcast_convert_type(jnp.where(valid, x, 0.0), jnp.int32) for x in (logprobs, leads)]
        tokens = jnp.where(valid, tokens, self.pad_id)
        return jnp.concatenate([tokens, valid.astype(jnp.int32), rows.length.reshape(-1, 1), *floats], axis=-1)

    # --- ahead of time ----------------------------------------------------------------------------------------------

    def abstract(self, params: Params) -> Params:
        """Shapes, dtypes and shardings of parameters (arrays or shapes) as the compiled functions take them."""
        return rules.placed(params, self.placement(params))

    @property
    def abstract_state(self) -> DecodeState:
        """Shapes, dtypes and shardings of the state that decoding reads and writes."""
        return rules.placed(jax.eval_shape(self._init_fn), self.state_shardings)

    def lower_prefill(self, params: Params) -> jax.stages.Lowered:
        """Prefill of a whole batch at the largest bucket, to be compiled without arrays."""
        return self._prefill.lower(self.abstract(params), *self._abstract_prompts())

    def lower_insert(self, params: Params) -> jax.stages.Lowered:
        """The copy of a batch of prefilled prompts into their slots, to be compiled without arrays."""
        prefix = jax.eval_shape(self._prefill_fn, params, *self._abstract_prompts())
        slots = jax.ShapeDtypeStruct((self.prefill_batch,), jnp.int32)
        return self._insert_prompts.lower(self.abstract_state.prompt_kv, prefix.kv, slots)

    def compile_ahead(self, params: Params) -> None:
        """Begin to compile `generate` in the background, once; its first call waits for it."""
        if self._compiling is None:
            abstract = self.abstract(params)
            self._compiling = compiled_ahead(lambda: self.lower_generate(abstract))

    def lower_generate(self, params: Params) -> jax.stages.Lowered:
        """The `steps_per_sync` decode steps of `generate`, to be compiled without arrays."""
        return self._generate.lower(self.abstract(params), self.abstract_state)

    def lower_among(self, params: Params) -> jax.stages.Lowered:
        """The step of `generate_among`, to be compiled without arrays."""
        allowed = jax.ShapeDtypeStruct((self.slots, self.group, self.words), jnp.int32)
        return self._restricted.lower(self.abstract(params), self.abstract_state, allowed)

    def lower_follow(self, params: Params) -> jax.stages.Lowered:
        """The step of `follow`, to be compiled without arrays."""
        guesses = jax.ShapeDtypeStruct((self.slots, self.steps_per_sync - 1), jnp.int32)
        count = jax.ShapeDtypeStruct((self.slots,), jnp.int32)
        return self._follow.lower(self.abstract(params), self.abstract_state, guesses, count)

    def _abstract_prompts(self) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        n = self.prefill_batch
        return jax.ShapeDtypeStruct((n, self.prompt_len), jnp.int32), jax.ShapeDtypeStruct((n,), jnp.int32)

    # --- what the batch loop calls ----------------------------------------------------------------------------------

    def bucket(self, length: int) -> int:
        """The padded length that a prompt of `length` tokens is computed at. It depends on nothing else. Above
        `FINE_BUCKETS`, where computing costs more than compiling, three quarters of a power of two are one too."""
        size = bucket(length, SMALLEST_BUCKET, self.prompt_len)
        smaller = 3 << (length - 1).bit_length() >> 2
        return min(size, smaller) if FINE_BUCKETS < length <= smaller else size

    def prefill_many(self, params: Params, tokens: Int[np.ndarray, "N T"], length: Int[np.ndarray, " N"]) -> Prefix:
        """Prefill of N prompts padded to one bucket T."""
        return self._prefill(params, jnp.asarray(tokens, jnp.int32), jnp.asarray(length, jnp.int32))

    def insert_many(
        self,
        prefix: Prefix,
        decode_state: DecodeState,
        slots: Int[np.ndarray, " N"],
        keys: UInt32[np.ndarray, "N 2"],
        temperature: Float[np.ndarray, " N"],
        max_new: Int[np.ndarray, " N"],
    ) -> DecodeState:
        """Puts N prompts into N slots and draws the first token of their answers. `decode_state` is donated.

        The same prompt may stand for the same slot several times (padding of a batch).
        """
        where = jnp.asarray(slots, jnp.int32)
        prompt_kv = self._insert_prompts(decode_state.prompt_kv, prefix.kv, where)
        rows = self._insert_rows(
            decode_state.rows, prefix.logits, prefix.length, where, jnp.asarray(keys, jnp.uint32),
            jnp.asarray(temperature, jnp.float32), jnp.asarray(max_new, jnp.int32),
        )  # fmt: skip
        return DecodeState(prompt_kv, decode_state.answer_kv, rows)

    def follow(
        self, params: Params, decode_state: DecodeState, guesses: Mapping[int, Sequence[int]]
    ) -> tuple[DecodeState, engine_api.ResultTokens]:
        """As `generate`, for greedy answers of groups of one: one step, in which each slot's next token and the guesses
        of those behind it, the first k - 1 at most, are computed at once. Slots get as many tokens as were guessed
        right, and one. `decode_state` is donated.

        The tokens are those of `generate` but where two logits are near each other.
        """
        width = self.steps_per_sync - 1
        tokens, count = np.full((self.slots, width), self.pad_id, np.int32), np.zeros(self.slots, np.int32)
        for slot, guess in guesses.items():
            count[slot] = min(len(guess), width)
            tokens[slot, : count[slot]] = guess[:width]
        decode_state, data = self._follow(params, decode_state, jnp.asarray(tokens), jnp.asarray(count))
        return decode_state, self._results(data)

    def generate_among(
        self, params: Params, decode_state: DecodeState, allowed: Int[np.ndarray, "S G words"]
    ) -> tuple[DecodeState, engine_api.ResultTokens]:
        """As `generate`, one step: hands out the next token of every row and chooses the one behind it among those that
        have a bit set (token t: bit t % 32 of word t // 32). Log-probs are then among those. `decode_state` is
        donated."""
        decode_state, data = self._restricted(params, decode_state, jnp.asarray(allowed))
        return decode_state, self._results(data)

    def begin_among(self, prefix: Prefix, allowed: Int[np.ndarray, "N words"]) -> Prefix:
        """The prefix of N prompts whose answers begin with tokens that have a bit set."""
        return prefix._replace(logits=self._only(prefix.logits, jnp.asarray(allowed)))

    def pending(self, decode_state: DecodeState) -> Int[np.ndarray, "S G"]:
        """The next token of every row, which the next step hands out."""
        return np.asarray(self._pending(decode_state.rows.token))

    @property
    def words(self) -> int:
        """Of 32 bits each, that hold one for every token of the model."""
        return -(-self.cfg.vocab_size // 32)

    def log_probs(self, result: engine_api.ResultTokens) -> Float[np.ndarray, "rows k"]:
        """The log-probs of the tokens of `result` (0 where nothing is valid), read from the same array."""
        return self._floats(result, 0)

    def leads(self, result: engine_api.ResultTokens) -> Float[np.ndarray, "rows k"]:
        """By how much the largest logit was above the next for each token of `result`, likewise."""
        return self._floats(result, 1)

    def _floats(self, result: engine_api.ResultTokens, number: int) -> Float[np.ndarray, "rows k"]:
        start = 2 * self.steps_per_sync + 1 + number * self.steps_per_sync
        columns = np.asarray(result.data)[:, start : start + self.steps_per_sync]
        return np.ascontiguousarray(columns).view(np.float32)

    # --- JetStream's Engine -----------------------------------------------------------------------------------------

    def prefill(
        self,
        *,
        params: Params,
        existing_prefix: Prefix | None = None,
        padded_tokens: Int[Array | np.ndarray, " T"],
        true_length: int,
        sampler: Any = None,
        request_id: Any = None,
    ) -> Prefix:
        """Prefill of one prompt, padded at its end. `sampler` and `request_id` are not used.

        Raises:
            EngineError: `existing_prefix` is given, or the prompt is empty or longer than `padded_tokens`.
        """
        if existing_prefix is not None:
            raise EngineError("engine: prefill on an existing prefix is not supported; prefill the whole prompt")
        prompt = np.asarray(padded_tokens)[:true_length]
        if len(prompt) and prompt[0] == NO_BOS:
            prompt, true_length = prompt[1:], true_length - 1
        if not 1 <= true_length == len(prompt) <= self.prompt_len:
            raise EngineError(
                f"engine: a prompt of {true_length} tokens padded to {len(padded_tokens)} does not fit; "
                f"it must have 1 to {self.prompt_len} tokens"
            )
        padding = (0, self.bucket(true_length) - true_length)
        tokens = np.pad(prompt, padding, constant_values=self.pad_id)
        return self.prefill_many(params, tokens[None], np.array([true_length]))

    def insert(
        self,
        prefix: Prefix,
        decode_state: DecodeState,
        slot: int,
        request_id: Any = None,
        *,
        key: tuple[int, int] = (0, 0),
        temperature: float = 0.0,
        max_new: int | None = None,
    ) -> DecodeState:
        """Puts one prompt into `slot`; greedy up to `answer_len` tokens unless told. `decode_state` is donated."""
        return self.insert_many(
            prefix, decode_state, np.array([slot]), np.array([key], np.uint32), np.array([temperature]),
            np.array([self.answer_len if max_new is None else max_new]),
        )  # fmt: skip

    def generate(
        self, params: Params, decode_state: DecodeState, sampler: Any = None
    ) -> tuple[DecodeState, engine_api.ResultTokens]:
        """`steps_per_sync` tokens of every row. `decode_state` is donated; `sampler` is not used.

        The result's speculation width is k = steps_per_sync: row `slot * group + g` holds its next tokens, 1 or 0
        for each (0 from the end of the answer on) and the length of the answer; `log_probs` and `leads` read the rest.
        """
        if self._compiling is not None:
            wait([self._compiling])  # what could not be compiled there is compiled here, and says why not
        decode_state, data = self._generate(params, decode_state)
        return decode_state, self._results(data)

    def _results(self, data: Int[Array, "rows columns"]) -> engine_api.ResultTokens:
        k = self.steps_per_sync
        return engine_api.ResultTokens(data, (0, k), (k, 2 * k), (2 * k, 2 * k + 1), self.group)

    def load_params(self, params: Params) -> Params:
        """The parameters where decoding wants them (no copy when they are there)."""
        return jax.device_put(params, self.placement(params))

    def placement(self, params: Params) -> Params:
        """The shardings that decoding wants for these parameters, whatever their weights are made of."""
        axes = linear.axes_of(params, decoder.logical_axes(self.cfg))
        return rules.param_shardings(self._mesh, axes, params, rules.DECODING)

    def init_decode_state(self) -> DecodeState:
        """All slots empty, all rows done."""
        return self._init()

    def get_prefix_destination_sharding(self) -> Prefix:
        return self.prefix_shardings

    def get_tokenizer(self) -> tokenizer_pb2.TokenizerParameters:
        """The engine works on token ids and knows no tokenizer file."""
        return tokenizer_pb2.TokenizerParameters(path="", extra_ids=0)

    def build_tokenizer(self, metadata: tokenizer_pb2.TokenizerParameters) -> TokenIdsOnly:
        return TokenIdsOnly(self.eos_ids, self.pad_id)

    @property
    def max_concurrent_decodes(self) -> int:
        return self.slots

    @property
    def samples_per_slot(self) -> int:
        return self.group

    @property
    def max_prefill_length(self) -> int:
        """JetStream's Driver pads to powers of two up to this one, the mark in front of a prompt included."""
        return max(SMALLEST_BUCKET, 1 << self.prompt_len.bit_length())

    @property
    def mesh(self) -> Mesh:
        return self._mesh

    @property
    def colocated_cpus(self) -> None:
        return None
