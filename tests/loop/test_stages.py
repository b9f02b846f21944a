"""Stages with models that say what they are told: order of responses, verdicts, tiers, chunks, readers of the truth."""

from dataclasses import replace
from itertools import count

import pytest

from looptool_jax.config import load_config
from looptool_jax.data.store import DataError, read_jsonl, read_samples
from looptool_jax.inference.answers import Answer, AnswerConfig
from looptool_jax.loop import runner
from looptool_jax.loop.console import Console
from looptool_jax.loop.expand import ExpandConfig, expand
from looptool_jax.loop.judge import ErrorSeed, JudgeConfig, judge
from looptool_jax.loop.probe import Probe, ProbeConfig, probe
from looptool_jax.loop.reward import RewardConfig
from looptool_jax.loop.runner import Runner
from looptool_jax.loop.train import TrainConfig, schedule
from looptool_jax.models.config import ModelError
from looptool_jax.parallel.chunks import process_in_chunks
from looptool_jax.toolcall import Call, ChatError, Message, Origin, Sample, Target, Tool

QUIET = Console(quiet=True)
TOOL = Tool("go", "Go.", {"type": "object", "properties": {"to": {"type": "string"}}, "required": ["to"]})


def sample(name: str, to: str = "Ulm") -> Sample:
    return Sample(name, (TOOL,), (Message("user", f"{name}: {to}"),), Target(calls=(Call("go", {"to": to}),)))


def answer(to: str) -> str:
    return f'<tool_call>\n{{"name": "go", "arguments": {{"to": "{to}"}}}}\n</tool_call>'


def probed(name: str, text: str, correct: bool = False, finish: str = "stop") -> Probe:
    return Probe(name, text, correct, "", 1.0, [7, 8, 9], finish)


class Scripted:
    """A model whose replies follow from the text of the prompt (`say`), or are one text (`text`) to any sample."""

    def __init__(self, say=None, text: str = ""):
        self.say, self.text, self.requests, self.sampling = say, text, [], {}

    def chat(self, requests, cfg, on_tokens, **sampling):
        self.requests += requests
        self.sampling = sampling
        return [Answer(self.say(request.messages[-1].content), [], [], "stop") for request in requests]

    def draft(self, target):
        return [target]

    def greedy(self, samples, cfg, on_tokens, drafts):
        assert len(drafts) == len(samples) and all(len(guesses) == 1 for guesses in drafts)
        return [Answer(self.text, [], [], "stop") for _ in samples]

    def prompt_length(self, sample):
        return len(sample.messages[-1].content)


def prefers(good: str):
    """A judge for whom the response that goes to `good` is right."""

    def say(prompt: str) -> str:
        first, second = prompt.split("Response 1:")[1].split("Response 2:")
        right = (good in first, good in second)
        tags = {
            (True, False): "RESPONSE2_INCORRECT",
            (False, True): "RESPONSE1_INCORRECT",
            (True, True): "BOTH_CORRECT",
        }
        return f"It goes elsewhere.\n[{tags.get(right, 'BOTH_INCORRECT')}]"

    return say


def judged(model, tmp_path, probes, **cfg):
    samples = [sample(row.id) for row in probes]
    metrics = judge(model, samples, probes, 0, 1, JudgeConfig(chunk=2, **cfg), str(tmp_path), QUIET)
    verdicts = {row["id"]: row["verdict"] for row in read_jsonl(tmp_path / "judgements.jsonl")}
    errors = [ErrorSeed.from_json(row) for row in read_jsonl(tmp_path / "errors.jsonl")]
    return metrics, verdicts, errors


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize(
    ("good", "verdict", "label"), [("Ulm", "prediction_wrong", "Ulm"), ("Bonn", "label_wrong", "Bonn")]
)
def test_the_judge_means_the_same_response_in_both_orders(swap, good, verdict, label, tmp_path):
    model = Scripted(prefers(good))
    probes = [probed(f"s{i}", answer("Bonn")) for i in range(3)] + [probed("m", answer("Ulm"), correct=True)]
    metrics, verdicts, errors = judged(model, tmp_path, probes, order_swap=swap)
    assert verdicts == dict.fromkeys(("s0", "s1", "s2"), verdict)  # what is mastered is not judged
    assert [seed.sample.target.calls[0].arguments["to"] for seed in errors] == [label] * 3
    assert len(model.requests) == (6 if swap else 3)
    assert metrics["error_seeds"] == 3 and metrics["agreement"] == 1


def test_a_judge_that_prefers_a_position_is_set_aside(tmp_path):
    metrics, verdicts, errors = judged(
        Scripted(lambda _: "[RESPONSE2_INCORRECT]"), tmp_path, [probed("s", answer("Bonn"))]
    )
    assert verdicts == {"s": "undecided"} and not errors and metrics["unparsed_replies"] == 0
    assert [row["id"] for row in read_jsonl(tmp_path / "set_aside.jsonl")] == ["s"]


@pytest.mark.parametrize(
    ("for_bonn", "for_ulm", "verdict"),
    [
        (3, 0, "label_wrong"),
        (2, 0, "label_wrong"),
        (2, 1, "label_wrong"),
        (1, 1, "undecided"),
        (1, 2, "prediction_wrong"),
    ],
)
def test_of_several_replies_more_than_half_have_to_agree(for_bonn, for_ulm, verdict, tmp_path):
    """Of three replies in each order so many find the label wrong, and so many the answer; the others say nothing."""
    replies = {"Ulm": 0, "Bonn": 0}

    def say(prompt: str) -> str:
        responses = prompt.split("Response 1:")[1]
        first = "Ulm" if responses.index("Ulm") < responses.index("Bonn") else "Bonn"
        number, replies[first] = replies[first], replies[first] + 1
        good = "Bonn" if number < for_bonn else "Ulm"
        return prefers(good)(prompt) if number < for_bonn + for_ulm else "Both have their merits."

    model = Scripted(say)
    metrics, verdicts, _ = judged(model, tmp_path, [probed("s", answer("Bonn"))], votes=3)
    assert verdicts == {"s": verdict} and replies == {"Ulm": 3, "Bonn": 3}
    assert len({request.key for request in model.requests}) == 6 and model.sampling == {"temperature": 0.7}
    assert metrics["unparsed_replies"] == (2 if verdict == "undecided" else 0)


def test_a_broken_answer_never_becomes_a_label(tmp_path):
    broken = [
        probed("cut", answer("Bonn"), finish="length"),
        probed("schema", answer("Bonn").replace('"to"', '"for"')),
        probed("json", "<tool_call>\n{Bonn"),
    ]
    model = Scripted(prefers("Bonn"))
    assert set(judged(model, tmp_path / "asked", broken)[1].values()) == {"undecided"}
    asked = len(model.requests)
    assert set(judged(model, tmp_path / "rules", broken, rules_first=True)[1].values()) == {"prediction_wrong"}
    assert len(model.requests) == asked == 6


@pytest.mark.parametrize(
    ("own", "longest", "verdict"),
    [("Bonn", 4096, "label_wrong"), ("Ulm", 4096, "undecided"), ("Bonn", 3, "undecided")],
)
def test_a_repair_is_confirmed_by_the_judges_own_answer(own, longest, verdict, tmp_path):
    model = Scripted(prefers("Bonn"), answer(own))
    sizes = AnswerConfig(prompt_tokens=longest)  # a prompt that does not fit confirms nothing
    assert judged(model, tmp_path, [probed("s", answer("Bonn"))], confirm=True, answers=sizes)[1] == {"s": verdict}


def test_without_the_judge_every_mismatch_is_a_model_error(tmp_path):
    _, verdicts, errors = judged(None, tmp_path, [probed("s", answer("Bonn"))], enabled=False)
    assert verdicts == {"s": "prediction_wrong"} and errors[0].sample.target == sample("s").target


def test_probes_of_other_samples_are_refused(tmp_path):
    with pytest.raises(DataError, match="other samples"):
        judge(None, [sample("a")], [probed("b", "")], 0, 1, JudgeConfig(enabled=False), str(tmp_path), QUIET)


def seeds(*names: str) -> list[ErrorSeed]:
    return [
        ErrorSeed(replace(sample(name), origin=Origin("error", 2)), answer("Bonn"), "wrong place") for name in names
    ]


def written(prompt: str) -> str:
    """A new sample that is told apart by its parent and its scenario."""
    return f'INPUT:\nTo Rome ({prompt})\nOUTPUT:\n{{"name": "go", "arguments": {{"to": "Rome"}}}}'.replace("USER:", "")


def expanded(tmp_path, generator, verifier, limit=None, names=("a", "b", "c"), **cfg):
    metrics = expand(
        generator, verifier, seeds(*names), limit, 0, 1, ExpandConfig(chunk=2, **cfg), str(tmp_path), QUIET
    )
    return metrics, list(read_samples(str(tmp_path / "expanded.jsonl"))), list(read_jsonl(tmp_path / "rejected.jsonl"))


def test_expansion_takes_the_scenarios_in_turn_with_keys_of_their_own(tmp_path):
    number = count()
    model = Scripted(lambda prompt: written(str(next(number))))
    metrics, accepted, _ = expanded(tmp_path, model, None, per_error=5, verify="rules")
    assert metrics["accepted"] == 15
    scenarios = [item.origin.scenario for item in accepted if item.origin.parent == "b"]
    assert scenarios == ["complexity", "persona", "interaction", "data", "complexity"]
    assert len({request.key for request in model.requests}) == 15
    assert model.sampling == {"temperature": 1.0, "top_p": 0.9, "top_k": 20}


def test_the_verifier_has_the_last_word(tmp_path):
    def say(prompt: str) -> str:
        return written(prompt.replace("\n", " "))

    both = Scripted(lambda prompt: "[CORRECT]" if "(Original" in prompt and " b: " in prompt else "[INCORRECT]")
    metrics, accepted, rejected = expanded(tmp_path / "verdict", Scripted(say), both, per_error=1)
    assert [item.origin.parent for item in accepted] == ["b"] and metrics["rejected_judge"] == 2
    assert {row["tier"] for row in rejected} == {"judge"}
    for name, text, longest, reason in (
        ("same", answer("Rome"), 4096, ""),
        ("other", answer("Bonn"), 4096, "the judge answers otherwise: go: argument 'to' differs"),
        ("long", answer("Rome"), 3, "over the judge's limit (prompt_tokens) of 3"),
    ):
        sizes = AnswerConfig(prompt_tokens=longest)
        metrics, _, rejected = expanded(
            tmp_path / name, Scripted(say), Scripted(text=text), per_error=1, verify="answer", verify_answers=sizes
        )
        assert metrics["accepted"] == (0 if reason else 3) == 3 - metrics["rejected_judge"]
        assert all(reason in row["reason"] for row in rejected)


def test_long_prompts_and_repetitions_are_rejected(tmp_path):
    model = Scripted(lambda prompt: written(""))
    metrics, _, _ = expanded(tmp_path / "same", model, None, per_error=1, verify="rules")
    assert (metrics["accepted"], metrics["rejected_duplicate"]) == (1, 2)
    metrics, _, _ = expanded(tmp_path / "long", model, None, (Scripted(), 3), per_error=1, verify="rules")
    assert (metrics["accepted"], metrics["rejected_rules"]) == (0, 3)


def test_a_copy_of_an_error_seed_is_no_new_sample(tmp_path):
    """Both seeds get the same reply: the first one's own dialogue, with its call or with another."""
    for name, to, reasons in (
        ("copy", "Ulm", ["equal to an error seed"] * 2),
        ("other", "Rome", ["equal to an earlier sample of this round"]),
    ):
        model = Scripted(lambda _, to=to: f'INPUT:\na: Ulm\nOUTPUT:\n{{"name": "go", "arguments": {{"to": "{to}"}}}}')
        metrics, _, rejected = expanded(tmp_path / name, model, None, names=("a", "b"), per_error=1, verify="rules")
        assert [row["reason"] for row in rejected] == reasons
        assert metrics["rejected_duplicate"] == len(reasons) == 2 - metrics["accepted"]


def test_chunks_that_are_done_are_not_done_again(tmp_path):
    path, seen, shown = str(tmp_path / "progress.jsonl"), [], Console(quiet=True)

    def work(chunk):
        seen.append(list(chunk))
        if len(seen) == 2:
            raise KeyboardInterrupt
        shown.advance(len(chunk))
        return [{"item": item} for item in chunk if item != 3]

    with pytest.raises(KeyboardInterrupt):
        process_in_chunks(range(5), 2, path, work, shown)
    rows = process_in_chunks(range(5), 2, path, work, shown)
    assert (shown._done, shown._before, shown._total) == (5, 2, 5), "what an earlier process did counts"
    assert seen == [[0, 1], [2, 3], [2, 3], [4]]
    assert rows == [{"item": item} for item in (0, 1, 2, 4)] == process_in_chunks(range(5), 2, path, work, QUIET)
    with pytest.raises(DataError, match="do not belong to this work"):
        process_in_chunks(range(2), 2, path, work, QUIET)


def test_every_epoch_has_every_sample_once_in_an_order_of_its_own():
    samples = [sample(f"s{i}") for i in range(9)]
    batches = schedule(samples, TrainConfig(batch=4, epochs=2), seed=0, round_=1)
    assert [batch.epoch for batch in batches] == [0, 0, 1, 1]
    first, second = ([item.id for b in batches if b.epoch == epoch for item in b.samples] for epoch in (0, 1))
    assert len(set(first)) == len(set(second)) == 8 and first != second
    assert batches == schedule(samples, TrainConfig(batch=4, epochs=2), seed=0, round_=1)
    assert batches != schedule(samples, TrainConfig(batch=4, epochs=2), seed=0, round_=2)
    with pytest.raises(DataError, match="the round has 3"):
        schedule(samples[:3], TrainConfig(batch=4), seed=0, round_=1)


@pytest.mark.parametrize("model", ["policy", "judge_model", "generator_model"])
def test_a_model_without_a_chat_format_is_refused_before_the_first_stage(model, tmp_path):
    settings = [f"run_dir={tmp_path}", f"{model}={{path: nano/judge, format: ''}}", "mesh.fsdp=1", "mesh.data=-1"]
    with pytest.raises(ChatError, match=r"nano/judge: no chat format is set .* fit qwen3;"):
        Runner(load_config("micro", settings), QUIET).run()
    assert not (tmp_path / "seed").exists()


def test_rows_that_the_attention_cannot_compute_are_refused_before_the_first_stage(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "resolved_attention", lambda name, mesh: "splash")
    settings = [f"run_dir={tmp_path}", "train.answers.answer_tokens=5000", "train.grpo.micro_tokens=8192"]
    with pytest.raises(
        ModelError, match=r"train.answers.answer_tokens: .* up to 4096 tokens, not 5000; .*attention=xla"
    ):
        Runner(load_config("micro", [*settings, "mesh.fsdp=1", "mesh.data=-1"]), QUIET).run()
    assert not (tmp_path / "seed").exists()


def test_copies_of_an_error_seed_are_not_probed(tmp_path):
    """Else each round repeats the copies of the one before: 24 of one seed were seen in D_3."""
    seeds = [replace(sample(name), origin=Origin("error", 2)) for name in ("a", "b")]
    copies = [replace(seeds[0], id=f"a.r1x{i}", origin=Origin("repeated", 2, parent="a")) for i in (1, 2)]
    policy = Scripted(text=answer("Ulm"))
    metrics = probe(policy, [seeds[0], *copies, seeds[1]], ProbeConfig(), RewardConfig(), str(tmp_path), QUIET)
    assert metrics["samples"] == 2
    assert [row["id"] for row in read_jsonl(tmp_path / "probes.jsonl")] == ["a", "b"]


def test_only_scoring_names_the_truth_and_nothing_held_out_means_no_evaluation(tmp_path):
    run_dir = f"run_dir={tmp_path}"
    stages = Runner(load_config("micro", [run_dir, "mesh.fsdp=1", "mesh.data=-1"]), QUIET).stages()
    assert {stage.name for stage in stages if "seed/truth.jsonl" in stage.inputs} == {"round-1/score", "round-2/score"}
    assert not any(set(stage.inputs) & {"seed", "."} for stage in stages)
    assert sum("eval" in stage.name for stage in stages) == 3
    stages = Runner(load_config("micro", [run_dir, "data.heldout=0"]), QUIET).stages()
    assert not any("eval" in stage.name for stage in stages)
