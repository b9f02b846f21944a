"""The warm-up learns, resumes and reproduces; its examples carry true labels; the shipped model is what it says."""

from __future__ import annotations

import random
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import jax
import numpy as np
import pytest

from looptool_jax.data.store import DataError
from looptool_jax.loop import nano_examples as examples
from looptool_jax.loop.nano_mistakes import careless, wrong_response
from looptool_jax.loop.nano_tokenizer import SCAFFOLDS, SPECIAL, TAGS, build_tokenizer
from looptool_jax.loop.prompts import parse_expansion, parse_verdict, written
from looptool_jax.loop.warmup import NanoConfig, Stage, WarmupConfig, sft_warmup, tokenizer_texts, train_nano
from looptool_jax.toolcall import Call, ChatTokenizer, Message, Parsed, Sample, Target, Tool, match, parse
from looptool_jax.world import generate

NANO = Path(str(files("looptool_jax.nano")))
SAMPLES = generate("train", 150, 7)


@pytest.fixture(scope="module")
def tokenizer():
    return ChatTokenizer.from_pretrained(NANO / "policy", "qwen3")


def test_wrong_responses_are_wrong():
    rng = random.Random(1)
    found = [(sample, wrong) for sample in SAMPLES if (wrong := wrong_response(sample, rng)) is not None]
    assert len(found) > 0.9 * len(SAMPLES)
    assert not any(match(wrong, sample.target, sample.tools).ok for sample, wrong in found)


def test_careless_labels_write_numbers_as_strings():
    target = Target((Call("f", {"n": 5, "x": [1.5, "a"], "on": True, "who": {"age": 7}, "s": "t"}),))
    expected = {"n": "5", "x": ["1.5", "a"], "on": "true", "who": {"age": "7"}, "s": "t"}
    assert careless(target).calls == (Call("f", expected),)


def test_every_task_ends_in_what_its_reader_reads():
    mix = {"judge": 1.0, "expand": 1.0}
    made = examples.make(SAMPLES, mix, [], 3)
    assert {example.task for example in made} == set(mix)
    for example in made:
        if example.task == "judge":
            verdict = parse_verdict(example.reply)
            assert verdict is not None and " => " in verdict.analysis
        else:
            new = parse_expansion(example.reply, SAMPLES[0])
            assert not isinstance(new, str), new
            assert isinstance(parse(new.output_text), Parsed)


BOOK = Tool("book", "Book.", {"type": "object", "properties": {"city": {"type": "string"}, "day": {"type": "string"}}})
RIGHT = Target((Call("book", {"city": "Oslo", "day": "Monday"}),))
BOOKING = Sample("s", (BOOK, Tool("rent")), (Message("user", "Oslo, Monday"),), RIGHT)
ASKING = Sample(
    "q", (BOOK,), (Message("user", "Book"),), Target(text="Which city?", intent="clarify", missing=("city",))
)


def _call(**arguments):
    return written(Target((Call("book", arguments),)))


@pytest.mark.parametrize(
    ("sample", "first", "second", "reply"),
    [
        (BOOKING, _call(city="Oslo", day="Monday"), _call(city="Rome", day="Monday"),
         'city: "Oslo" => first\n[RESPONSE2_INCORRECT]'),
        (BOOKING, _call(city="Oslo"), _call(city="Oslo", day="Monday"),
         'day: "Monday" => second\n[RESPONSE1_INCORRECT]'),
        (BOOKING, _call(city="Bonn", day="Monday"), _call(city="Rome", day="Monday"),
         'city: "Oslo" => neither\n[BOTH_INCORRECT]'),
        (BOOKING, _call(city="Bonn", day="Monday"), _call(city="Oslo", day="Friday"),
         'city: "Oslo" => second\nday: "Monday" => first\n[BOTH_INCORRECT]'),
        (BOOKING, "I will not.", _call(city="Oslo", day="Monday"), "response: a call => second\n[RESPONSE1_INCORRECT]"),
        (ASKING, _call(city="Oslo"), "The city, please?",
         "response: a question about city => second\n[RESPONSE1_INCORRECT]"),
    ],
)  # fmt: skip
def test_judge_names_what_belongs_and_who_has_it(sample, first, second, reply):
    example = examples.judge_example(sample, first, second)
    assert example is not None and example.reply == reply


def test_a_mistake_that_both_make_cannot_be_judged_by_differences():
    assert examples.judge_example(BOOKING, _call(city="Rome", day="Monday"), _call(city="Rome", day="Friday")) is None


def test_most_pairs_can_be_judged():
    made = examples.make(SAMPLES, {"judge": 1.0}, [], 4)
    assert len(made) > 0.9 * len(SAMPLES)


def test_tokenizer_is_lossless_and_speaks_the_template(tokenizer):
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(NANO / "policy")
    assert tokenizer.vocab_size == 2048 == len(reference)
    for sample in SAMPLES[:60]:
        assert tokenizer.decode(tokenizer.encode_target(sample.target)) == written(sample.target)
        ids = reference.apply_chat_template(
            [_as_hf(message) for message in sample.messages],
            tools=[{"type": "function", "function": tool.to_json()} for tool in sample.tools],
            add_generation_prompt=True, enable_thinking=False, return_dict=False,
        )  # fmt: skip
        assert list(ids) == tokenizer.encode_prompt(sample.messages, sample.tools, False)


def test_tokenizer_reads_scaffolds_as_one_token_and_control_tokens_as_text(tokenizer):
    for scaffold in SCAFFOLDS:
        assert len(tokenizer.encode_text(scaffold)) == 1, scaffold
    for tag in (*SPECIAL, *TAGS):
        ids = tokenizer.encode_text(f"a {tag} b")
        assert len(ids) > 4 and tokenizer.decode(ids) == f"a {tag} b"
    text = 'Zażółć 漢字 🙂 \t\r\n 12.5 HB-204 {"name": ""}'
    assert tokenizer.decode(tokenizer.encode_text(text)) == text


def test_building_the_tokenizer_again_gives_the_same_one(tmp_path):
    cfg = NanoConfig(tokenizer_samples=3000)
    for name in ("a", "b"):
        build_tokenizer(tokenizer_texts(cfg), tmp_path / name)
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (tmp_path / "b" / "tokenizer.json").read_bytes()


def test_a_value_is_the_same_tokens_in_the_request_and_in_the_call(tokenizer):
    for value in ("Oslo", "San Jose", "HB-2041", "2026-03-09", "bruno@belcor.io", "Silent Harbour", "12.5"):
        inside = tokenizer.encode_text(f'"{value}"')[1:-1]
        said = tokenizer.encode_text(f"it is: {value}; yes")
        assert any(said[i : i + len(inside)] == inside for i in range(len(said))), value


_SMALL = {
    "hidden_size": 32, "intermediate_size": 64, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "head_dim": 16,
    "warmup_steps": 2, "tokenizer_samples": 3000, "chunk_samples": 40, "checkpoint_chunks": 2,
    "evaluation_samples": 2, "mistakes": 8,
}  # fmt: skip


def test_the_embedded_model_can_be_made_in_other_sizes():
    made = NanoConfig.with_sizes(["hidden_size=256", "num_heads=8", "seed=0"])
    assert (made.hidden_size, made.num_heads, made.seed) == (256, 8, 0)
    assert replace(made, hidden_size=128, num_heads=4, seed=1) == NanoConfig()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("hidden_size=0", "a whole number"), ("hidden_size=-8", "a whole number"), ("head_dim=1e3", "a whole number"),
        ("stages=3", "a whole number can be given for seed, hidden_size"), ("hidden_size", "such as hidden_size=256"),
        (f"seed={10**30}", "from 0 to 999999"),
        ("num_kv_heads=3", "does not divide num_heads=4"), ("head_dim=31", "even number"),
    ],
)  # fmt: skip
def test_sizes_that_the_embedded_model_cannot_have(setting, words):
    with pytest.raises(DataError, match=words):
        NanoConfig.with_sizes([setting])


def test_a_folder_with_a_model_of_another_recipe_is_left_alone(tmp_path):
    (tmp_path / "recipe.json").write_text('{"hidden_size": 32}\n')
    with pytest.raises(DataError, match="other sizes or another seed; choose another --out"):
        train_nano(NanoConfig(), tmp_path, print)
    assert [file.name for file in tmp_path.iterdir()] == ["recipe.json"]


@pytest.mark.slow
def test_training_nano_continues_where_it_stopped(tmp_path):
    stages = (
        Stage(6, 2, 256, categories={"single": 1.0}, learning_rate=1e-3),
        Stage(4, 2, 512, {"answer": 0.4, "judge": 0.6}, learning_rate=1e-3),
    )
    cfg = NanoConfig(**_SMALL, stages=stages, judge_stage=2, mistakes_from=1)
    whole: list[dict] = []
    train_nano(cfg, tmp_path / "whole", whole.append)
    assert (tmp_path / "whole" / "policy" / "model.safetensors").is_file()

    class Stop(Exception):
        pass

    def stop_late(row):
        if row["step"] >= 8:
            raise Stop

    with pytest.raises(Stop):
        train_nano(cfg, tmp_path / "cut", stop_late)
    train_nano(cfg, tmp_path / "cut", lambda row: None)
    for model in ("policy", "judge"):
        one, other = ((tmp_path / run / model / "model.safetensors").read_bytes() for run in ("whole", "cut"))
        assert one == other


def test_sft_warmup_learns_the_targets_and_continues_where_it_stopped(tmp_path):
    from looptool_jax.inference.lm import ModelConfig, load_language_model
    from looptool_jax.parallel.mesh import MeshConfig, make_mesh

    lm = load_language_model(
        ModelConfig(str(NANO / "policy"), "qwen3", "float32"), make_mesh(MeshConfig(), jax.devices()[:1])
    )
    taught = [_shouting(sample) for sample in SAMPLES if sample.target.is_call][:24]
    cfg = WarmupConfig(epochs=4, rows=2, length=512, learning_rate=1e-3, checkpoint_every=3)
    after, losses = sft_warmup(lm, taught, cfg, str(tmp_path / "whole"), lambda row: None)
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    assert not np.array_equal(after.params["embedding"], lm.params["embedding"])

    class Stop(Exception):
        pass

    def stop_late(row):
        if row.get("step") == 7:
            raise Stop

    with pytest.raises(Stop):
        sft_warmup(lm, taught, cfg, str(tmp_path / "cut"), stop_late)
    rows: list[dict] = []
    again, same_losses = sft_warmup(lm, taught, cfg, str(tmp_path / "cut"), rows.append)
    assert rows[0]["done"] == 6
    assert same_losses == losses and np.array_equal(again.params["embedding"], after.params["embedding"])


def test_too_few_samples_for_a_batch_are_refused(tmp_path):
    from looptool_jax.data.store import DataError
    from looptool_jax.inference.lm import ModelConfig, load_language_model
    from looptool_jax.parallel.mesh import MeshConfig, make_mesh

    lm = load_language_model(
        ModelConfig(str(NANO / "policy"), "qwen3", "float32"), make_mesh(MeshConfig(), jax.devices()[:1])
    )
    with pytest.raises(DataError, match="fewer than the 64 of a batch"):
        sft_warmup(lm, SAMPLES[:2], WarmupConfig(rows=64, length=512), str(tmp_path), lambda row: None)


def _shouting(sample):
    from dataclasses import replace

    calls = tuple(replace(call, name=call.name.upper()) for call in sample.target.calls)
    return replace(sample, target=replace(sample.target, calls=calls))


def _as_hf(message: Message) -> dict:
    out: dict = {"role": message.role, "content": message.content}
    if message.calls:
        out["tool_calls"] = [{"type": "function", "function": call.to_json()} for call in message.calls]
    return out
