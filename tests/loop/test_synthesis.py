"""Simulated dialogues: what becomes a sample, what is dropped and counted, and that nothing depends on a kill."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from looptool_jax.data.store import DataError, dump_json, read_jsonl, read_samples
from looptool_jax.loop.console import Console
from looptool_jax.loop.prompts.synthesis import (
    KINDS,
    Need,
    Unreadable,
    assistant_messages,
    parse_plan,
    plan_messages,
    tool_messages,
    user_messages,
)
from looptool_jax.loop.synthesis.config import SynthesisConfig
from looptool_jax.loop.synthesis.dialogue import TIERS, Dialogue
from looptool_jax.loop.synthesis.simulate import SAMPLE_TIERS, synthesize_dialogues
from looptool_jax.loop.synthesis.tools import TIMEOUT, ToolEntry, draw_tools, read_tools, world_tools
from looptool_jax.loop.synthesize import DataConfig, _load
from looptool_jax.toolcall import Call, Message, Tool, check_call, get_format, match
from looptool_jax.world import World, execute, recognise

from .player import Player

MAIN = "from looptool_jax.cli import main; main()"
SIZES = {"least_tools": 4, "most_tools": 6, "least_turns": 3, "most_turns": 5}


def tool(name: str, **types: str) -> Tool:
    properties = {key: {"type": type_} for key, type_ in types.items()}
    return Tool(name, f"Does {name}.", {"type": "object", "properties": properties, "required": list(types)})


MINE = [
    ToolEntry(tool("find_route", start="string", goal="string")),
    ToolEntry(tool("book_table", city="string", guests="integer")),
    ToolEntry(tool("set_alarm", clock="string", loud="boolean")),
    ToolEntry(tool("convert", amount="number", currency="string")),
    ToolEntry(tool("weather", city="string")),
    ToolEntry(tool("ping")),
]


def simulate(out: Path, player: Player, tools=MINE, seed: int = 0, **settings) -> dict:
    cfg = SynthesisConfig(**({"count": 12, "chunk": 12} | SIZES | settings))
    return synthesize_dialogues(player, player, tools, seed, cfg, str(out), Console(quiet=True))


def rejected(out: Path) -> list[dict]:
    return list(read_jsonl(out / "rejected.jsonl"))


def assert_accounted(metrics: dict, out: Path) -> None:
    """Every dialogue has an end and every step a fate, and what is rejected stands in the file with its reason."""
    ended = {tier: metrics[f"ended_{tier}"] for tier in TIERS}
    assert metrics["finished"] + sum(ended.values()) == metrics["dialogues"]
    gone = {tier: metrics[f"rejected_{tier}"] for tier in SAMPLE_TIERS}
    assert metrics["accepted"] + sum(gone.values()) == metrics["steps"]
    rows = rejected(out)
    assert all(row["reason"] and "reply" in row for row in rows)
    assert Counter(row["tier"] for row in rows if "target" not in row) == Counter(ended)
    assert Counter(row["tier"] for row in rows if "target" in row) == Counter(gone)
    samples = list(read_samples(out))
    assert len(samples) == metrics["accepted"] == sum(metrics[name] for name in (*KINDS, "summary"))
    assert json.loads((out / "metrics.json").read_text()) == metrics


def assert_usable(out: Path) -> None:
    """Every sample is one that the reward can be computed for, and its own label earns it."""
    for sample in read_samples(out):
        assert sample.messages[0].role == "system" and sample.messages[-1].role in ("user", "tool")
        assert match(get_format("qwen3").render_target(sample.target), sample.target, sample.tools).ok
        assert not [line for call in sample.target.calls for line in check_call(call, sample.tools)]
        waiting: list[str] = []
        for message in sample.messages[1:]:
            assert (message.role == "tool") == bool(waiting)
            waiting = waiting[1:] if message.role == "tool" else [call.name for call in message.calls]
        assert not waiting and len({tool.name for tool in sample.tools}) == len(sample.tools)


def test_dialogues_of_every_kind_become_samples(tmp_path):
    player = Player()
    metrics = simulate(tmp_path, player)
    assert_accounted(metrics, tmp_path)
    assert_usable(tmp_path)
    assert metrics["finished"] == 12 and metrics["accepted"] > 60 and metrics["votes"] == 0
    assert all(metrics[category] for category in (*KINDS, "summary"))
    assert metrics["simulated"] > 0 and metrics["executed"] == 0
    dialogues = {row["id"]: row for row in read_jsonl(tmp_path / "dialogues.jsonl")}
    for sample in read_samples(tmp_path):
        dialogue = dialogues[sample.extra["dialogue"]]
        need = dialogue["plan"][sample.extra["turn"] - 1]
        assert sample.origin.kind == "seed" and sample.origin.scenario == need["kind"]
        assert [m.to_json() for m in sample.messages] == dialogue["messages"][: len(sample.messages)]
        if sample.category == "missing_parameter":
            assert list(sample.target.missing) == need["missing"] and sample.target.intent == "clarify"
        if sample.category == "no_tool":
            assert sample.target.intent == "refuse" and need["kind"] == "no_tool"
        if sample.category == "tool_error":
            assert '"error"' in sample.messages[-1].content and need["kind"] == "tool_error"
        if sample.category == "parallel":
            assert len(sample.target.calls) > 1
    loaded, read = _load(DataConfig(source=str(tmp_path)), str(tmp_path / "run"))
    assert len(loaded) == metrics["accepted"] and read["rejected"] == 0


def test_all_dialogues_of_a_chunk_are_asked_in_one_batch(tmp_path):
    player = Player()
    simulate(tmp_path, player, count=200, chunk=200)
    assert [len(batch) for batch in player.batches[:2]] == [200, 200]
    assert player.batches[2] == ["assistant"] * 400
    assert len({role for batch in player.batches[4:12] for role in batch}) == 3, "roles are mixed"
    assert set(player.batches[-1]) == {"judge"}
    longest = max(len(row["messages"]) for row in read_jsonl(tmp_path / "dialogues.jsonl"))
    assert len(player.batches) <= longest + 2


def test_tools_of_the_world_are_executed(tmp_path):
    lasting = [entry for entry in world_tools() if entry.world.leaf.effect != "delete"]
    metrics = simulate(tmp_path, Player(), lasting, count=20, chunk=20)
    assert_accounted(metrics, tmp_path)
    assert_usable(tmp_path)
    assert metrics["executed"] > 60 and metrics["simulated"] == 0
    assert metrics["finished"] == 20 and metrics["rejected_refused"] == 0
    errors = {sample.category for sample in read_samples(tmp_path) if sample.origin.scenario == "tool_error"}
    assert errors == {"single", "tool_error", "summary"}, "a call that is made again is not a second step"
    samples = {sample.extra["dialogue"]: sample for sample in read_samples(tmp_path)}
    replayed = 0
    for row in read_jsonl(tmp_path / "dialogues.jsonl"):
        if row["id"] not in samples:
            continue
        world = World(row["id"], map(recognise, samples[row["id"]].tools))
        waiting: list[Call] = []
        for message in row["messages"]:
            waiting += [Call.from_json(call) for call in message.get("calls", [])]
            if message["role"] == "tool":
                call, said = waiting.pop(0), json.loads(message["content"])
                assert said == TIMEOUT or said == execute(world, call)
                replayed += said != TIMEOUT
    assert replayed > 50


def test_a_call_that_its_tool_refuses_is_no_label(tmp_path):
    """The first call of a need names a record that does not exist; the assistant corrects it."""

    class Guesses(Player):
        def assistant(self, system: str, user: str) -> str:
            reply = super().assistant(system, user)
            first = "TOOL:" not in user.rpartition("USER:")[2]
            return re.sub(r'"([A-Z]{2})-\d+"', r'"\1-0"', reply) if first else reply

    lasting = [entry for entry in world_tools() if entry.world.leaf.effect != "delete"]
    with_ids = [entry for entry in lasting if set(entry.tool.required) == set(entry.world.ids) != set()]
    metrics = simulate(tmp_path, Guesses(), with_ids)
    assert_accounted(metrics, tmp_path)
    refused = [row for row in rejected(tmp_path) if row["tier"] == "refused"]
    assert refused and all('{"error": "unknown' in row["reason"] for row in refused)
    samples = list(read_samples(tmp_path))
    assert not any('-0"' in json.dumps(sample.target.to_json()) for sample in samples)
    assert [sample for sample in samples if sample.category == "tool_error"], "the corrected call is a sample"
    assert metrics["finished"] == 12


def other_value(reply: str, value: str) -> str:
    return reply.replace("Ulm", value).replace("3", "4").replace("true", "false").replace("1.5", "2.5")


@pytest.mark.parametrize("odd", [0, 1])
def test_a_third_sample_votes(tmp_path, odd):
    """One of the first two samples goes astray; the third agrees with the other."""
    seen: Counter[str] = Counter()

    class Astray(Player):
        def assistant(self, system: str, user: str) -> str:
            reply = super().assistant(system, user)
            seen[user] += 1
            return other_value(reply, "Oslo") if seen[user] == odd + 1 else reply

    entries = [entry for entry in MINE if entry.tool.required]
    metrics = simulate(tmp_path, Astray(), entries)
    assert_accounted(metrics, tmp_path)
    assert metrics["finished"] == 12 and metrics["votes"] > 12
    assert not any("Oslo" in str(sample.to_json()) for sample in read_samples(tmp_path))
    assert_usable(tmp_path)


def test_without_a_majority_the_dialogue_ends(tmp_path):
    seen: Counter[str] = Counter()

    class Scattered(Player):
        def assistant(self, system: str, user: str) -> str:
            seen[user] += 1
            return other_value(super().assistant(system, user), f"Town {'ABC'[seen[user] - 1]}")

    entries = [ToolEntry(tool(f"look_up_{i}", city="string")) for i in range(5)]
    metrics = simulate(tmp_path, Scattered(), entries)
    assert_accounted(metrics, tmp_path)
    assert metrics["ended_vote"] == metrics["votes"] == 12 and metrics["finished"] == 0
    assert all(row["reply"].count("---") == 2 and "Town C" in row["reply"] for row in rejected(tmp_path))
    assert not any(sample.target.is_call for sample in read_samples(tmp_path))


def test_two_unusable_samples_need_no_vote(tmp_path):
    metrics = simulate(tmp_path, Player(lambda role, seed, reply: reply[:-2] if role == "assistant" else reply))
    assert metrics["ended_parse"] + metrics["ended_rules"] == 12 and metrics["votes"] == 0
    assert_accounted(metrics, tmp_path)


@pytest.mark.parametrize(
    ("role", "reply", "tier", "words"),
    [
        ("plan", "I cannot help with that.", "plan", "not JSON"),
        ("plan", "[]", "plan", "turns, found 0"),
        ("plan", '[{"need": "x", "tools": ["ping"', "plan", "not JSON"),
        ("plan", "<think>so", "plan", "think block"),
        ("plan", "length", "length", "plan: the reply is over the limit"),
        ("plan", "prompt_too_long", "length", "plan: the prompt is over the limit"),
        ("user", "", "user", "says nothing"),
        ("user", '{"name": "ping", "arguments": {}}', "user", "JSON or code"),
        ("user", "Hello\nASSISTANT: hi", "user", "speaks for a role"),
        ("user", "Hi<|im_end|>\n<|im_start|>assistant", "user", "control token"),
        ("user", "<tool_call>ping</tool_call>", "user", "the tag <tool_call>"),
        ("assistant", "Sorry, no.", "rules", "calls nothing"),
        ("assistant", '{"name": "nothing", "arguments": {}}', "rules", "unknown tool 'nothing'"),
        ("assistant", '{"name": "ping", "arguments": {"a": 1}}', "rules", "undeclared argument 'a'"),
        ("assistant", '{"name": "ping", "arguments": ', "parse", "JSON or code"),
        ("assistant", '```json\n{"name": "ping", "arguments": {}}\n```', "parse", "JSON or code"),
        ("assistant", '{"name": "ping"}', "parse", "not_a_call"),
        ("assistant", '\n'.join(['{"name": "ping", "arguments": {}}'] * 2), "rules", "the same call twice"),
        ("assistant", "Done.<|im_end|>", "parse", "control token"),
        ("assistant", "USER: and then?", "parse", "speaks for a role"),
        ("assistant", "length", "length", "assistant: the reply is over"),
        ("tool", '[{"name": "other", "result": 1}]', "tool", "expected the name and the result"),
        ("tool", "[]", "tool", "results, found 0"),
        ("tool", '[{"name": "find_route", "res', "tool", "not JSON"),
        ("tool", '[{"name": "find_route", "result": "<|im_start|>system"}]', "tool", "control token"),
    ],
)  # fmt: skip
def test_a_reply_that_is_none_ends_the_dialogue_with_its_text(tmp_path, role, reply, tier, words):
    """A plan of one turn with one call; one role gives the same wrong reply whenever it is asked."""
    player = Player(lambda asked, seed, right: reply if asked == role else right)
    only = [entry for entry in MINE if entry.tool.name in ("find_route", "ping")]
    call = {"name": "find_route", "arguments": {"start": "Ulm", "goal": "Ulm"}}
    plan = json.dumps([{"need": f"Do {json.dumps({'steps': [[call]]})}", "tools": ["find_route"], "missing": []}])
    player.plan = lambda system, user: plan
    dialogue = Dialogue(0, only, 0, SynthesisConfig(**SIZES))
    dialogue.kinds = ("single",)
    while dialogue.stage != "over":
        dialogue.receive(player.chat(dialogue.requests(), None, None))
    assert dialogue.tier == tier and words in dialogue.reason
    assert dialogue.reply == ("" if reply in ("length", "prompt_too_long") else reply)


def test_a_need_that_does_not_end_is_cut(tmp_path):
    """An assistant that always has one more call, or one more question."""

    class Eager(Player):
        def assistant(self, system: str, user: str) -> str:
            return json.dumps({"name": "weather", "arguments": {"city": f"Town {user.count('TOOL:')}"}})

    class Curious(Player):
        def assistant(self, system: str, user: str) -> str:
            return "Which city do you mean?"

    only = [entry for entry in MINE if entry.tool.name == "weather"]
    for name, player, tier, steps in (("eager", Eager(), "steps", 6), ("curious", Curious(), "rules", 2)):
        dialogue = Dialogue(0, only, 0, SynthesisConfig(**SIZES))
        dialogue.kinds = ("single",)
        while dialogue.stage != "over":
            dialogue.receive(player.chat(dialogue.requests(), None, None))
        assert (dialogue.tier, len(dialogue.steps)) == (tier, steps), name
        assert dialogue.reply and dialogue.messages[-1].role in ("user", "tool")


def test_nothing_is_missing_where_nothing_is_required():
    cfg = SynthesisConfig(**SIZES | {"most_turns": 40})
    assert "missing_parameter" not in Dialogue(0, [ToolEntry(tool("ping"))], 0, cfg).kinds
    kinds = Counter(kind for number in range(60) for kind in Dialogue(number, MINE, 0, cfg).kinds)
    assert set(kinds) == set(KINDS)
    few = SynthesisConfig(**SIZES | {"least_turns": 1, "most_turns": 1})
    assert {Dialogue(number, MINE, 0, few).kinds[0] for number in range(40)} == {"multi_step", "parallel"}


def test_prompts_are_filled_in_one_pass_and_the_user_sees_no_calls():
    said = [
        Message("user", "Go to {tools}."),
        Message("assistant", calls=(Call("ping"),)),
        Message("tool", "{calls}", name="ping"),
        Message("assistant", "Done."),
    ]
    need = Need("single", "Ask for {style}.", ("ping",), ())
    tools = [entry.tool for entry in MINE]
    user = "".join(message.content for message in user_messages(said, need, ("city",), "calm"))
    assert "USER: Go to {tools}." in user and "ASSISTANT: Done." in user and "Leave out for now: city." in user
    assert "Ask for {style}." in user and "ping" not in user and "TOOL" not in user
    assistant = "".join(message.content for message in assistant_messages(said, tools))
    assert assistant.count('{"type": "function"') == len(tools) and "TOOL: {calls}" in assistant
    results = "".join(message.content for message in tool_messages(said, tools, [Call("ping"), Call("ping")], True))
    assert results.count('{"name": "ping", "arguments": {}}') == 3 and "fails this time" in results
    plan = "".join(message.content for message in plan_messages(tools, "{date}", "2024-05-01", ["single", "no_tool"]))
    assert "\n\n{date}\n\n" in plan and "1. single\n2. no_tool" in plan and "Today is 2024-05-01." in plan


@pytest.mark.parametrize(
    ("turn", "kind", "words"),
    [
        ({"need": "x", "tools": ["nothing"]}, "single", "there is no function nothing"),
        ({"need": "x", "tools": []}, "single", "single with 0 functions"),
        ({"need": "x", "tools": ["ping", "find_route"]}, "tool_error", "tool_error with 2 functions"),
        ({"need": "x", "tools": ["ping"]}, "no_tool", "no_tool with 1 functions"),
        ({"need": "", "tools": ["ping"]}, "single", "need is no text"),
        ({"need": 3, "tools": ["ping"]}, "single", "need is no text"),
        ({"need": "x", "tools": "ping"}, "single", "tools is no list of names"),
        ({"need": "x", "tools": ["ping", "ping"]}, "parallel", "has a name twice"),
        ({"need": "x", "tools": ["find_route"], "missing": []}, "missing_parameter", "with 0 missing"),
        ({"need": "x", "tools": ["find_route"], "missing": ["speed"]}, "missing_parameter", "speed is no required"),
        ({"need": "x", "tools": ["find_route"], "missing": ["goal"]}, "single", "single with 1 missing"),
        ({"need": "x", "tools": ["ping"], "why": 1}, "single", "expected an object with"),
        ("x", "single", "expected an object with"),
        ({"need": "a<|im_end|>b", "tools": ["ping"]}, "single", "control token"),
    ],
)
def test_a_plan_is_held_against_its_kinds_and_tools(turn, kind, words):
    tools = [entry.tool for entry in MINE]
    with pytest.raises(Unreadable, match=words):
        parse_plan(json.dumps([turn]), [kind], tools)
    good = {"need": "Go to Ulm.", "tools": ["find_route"], "missing": ["goal"]}
    (need,) = parse_plan(f"<think>ok</think>\n```json\n{json.dumps([good])}\n```", ["missing_parameter"], tools)
    assert (need.tools, need.missing) == (("find_route",), ("goal",))


WASTE = ("", "I cannot help with that.", "<think>", "<|im_start|>user\nhi<|im_end|>", "[]", "{}", "null", "[[[[",
         '{"name": "ping", "arguments": {"a": NaN}}', '"\\ud800"', "length", "prompt_too_long", "What?")  # fmt: skip


@given(st.integers(0, 2**32), st.sampled_from([0.02, 0.1, 0.4]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_model_says_is_kept_or_counted(tmp_path_factory, salt, share):
    def spoil(role: str, seed: int, reply: str) -> str:
        rng = Random(f"{salt}/{role}/{seed}")
        if rng.random() > share:
            return reply
        cut = rng.randrange(len(reply) + 1)
        return rng.choice([
            reply[:cut], reply[cut:], reply[:cut] + rng.choice(WASTE) + reply[cut:], rng.choice(WASTE),
            reply.replace('"name"', '"nom"', 1), reply.replace("result", "results"), reply + "\n" + reply,
            reply[:cut] + chr(rng.choice((0, 0xD800, 0x1F600, 10))) + reply[cut:],
        ])  # fmt: skip

    out = tmp_path_factory.mktemp("fuzz")
    metrics = simulate(out, Player(spoil), seed=salt % 1000, count=6, chunk=4)
    assert_accounted(metrics, out)
    assert_usable(out)
    text = (out / "samples-00000-of-00001.jsonl").read_text()
    assert "<|im_" not in text and "<tool_call>" not in text and "<think>" not in text


def test_the_judge_is_the_second_tier_and_what_follows_a_wrong_step_goes_too(tmp_path):
    class Strict(Player):
        def judge(self, system: str, user: str) -> str:
            if "It is done." in user.split("Reference response:")[1]:
                return "It says too little.\n[INCORRECT]"
            return "[CORRECT]" if "Ulm" in user else "Hard to say."

    metrics = simulate(tmp_path, Strict())
    assert_accounted(metrics, tmp_path)
    reasons = Counter(row["reason"] for row in rejected(tmp_path) if row["tier"] == "judge")
    assert reasons["the judge finds it incorrect"] and reasons["no verdict on the last line"]
    assert metrics["rejected_context"] > 0 and metrics["accepted"] > 0
    for sample in read_samples(tmp_path):
        assert (
            not any("It is done." in message.content for message in (*sample.messages, sample.target_message()))
            if hasattr(sample, "target_message")
            else "It is done." not in str(sample.to_json())
        )
    simulate(tmp_path / "rules", player := Player(), verify="rules")
    assert "judge" not in {role for batch in player.batches for role in batch}


def outputs(out: Path) -> dict[str, bytes]:
    names = ("samples-00000-of-00001.jsonl", "dialogues.jsonl", "rejected.jsonl", "metrics.json", "progress.jsonl")
    return {name: (out / name).read_bytes() for name in names}


def test_a_killed_stage_goes_on_behind_its_last_chunk(tmp_path):
    class Dead(BaseException):
        pass

    class Dies(Player):
        def chat(self, requests, *args, **sampling):
            if len(self.batches) == 40:
                raise Dead
            return super().chat(requests, *args, **sampling)

    sizes = {"count": 20, "chunk": 4}
    simulate(tmp_path / "whole", whole := Player(), **sizes)
    with pytest.raises(Dead):
        simulate(tmp_path / "killed", Dies(), **sizes)
    committed = len((tmp_path / "killed/progress.jsonl").read_text().splitlines())
    assert 0 < committed < 5
    simulate(tmp_path / "killed", rest := Player(), **sizes)
    assert outputs(tmp_path / "killed") == outputs(tmp_path / "whole")
    asked = [sum(map(len, player.batches)) for player in (rest, whole)]
    assert asked[0] < asked[1]


def start(out: Path, url: str, cwd: Path) -> subprocess.Popen[str]:
    endpoint = f"{{url: {url}, model: player, concurrency: 8}}"
    sizes = [f"synthesis.{name}={value}" for name, value in {"chunk": 4, **SIZES}.items()]
    command = [
        sys.executable, "-c", MAIN, "synthesize", "dialogues", "--tools", "tools.jsonl", "--count", "6", "--out",
        str(out), "judge_model.path=null", "judge_model.thinking=false", f"judge_model.endpoint={endpoint}", *sizes,
    ]  # fmt: skip
    env = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_command_asks_a_server_is_killed_and_ends_with_the_same_bytes(chat_server, tmp_path):
    rows = [{"type": "function", "function": entry.tool.to_json()} for entry in MINE]
    (tmp_path / "tools.jsonl").write_bytes(b"".join(dump_json(row) + b"\n" for row in rows))
    server = chat_server(Player())
    server.hold_after = 60
    killed = start(tmp_path / "killed", server.url, tmp_path)
    while len(list((tmp_path / "killed/replies").glob("*.json"))) < 60:
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.02)
    killed.kill()
    killed.communicate()
    server.release()
    before = len(server.bodies)
    resumed, whole = (start(tmp_path / name, server.url, tmp_path) for name in ("killed", "whole"))
    for process in (resumed, whole):
        out, err = process.communicate()
        assert process.returncode == 0 and "accepted" in out and not err, out + err
    assert outputs(tmp_path / "killed") == outputs(tmp_path / "whole")
    assert json.loads((tmp_path / "whole/metrics.json").read_text())["finished"] == 6
    each = len(list((tmp_path / "whole/replies").glob("*.json")))
    assert len(server.bodies) - before == 2 * each - 60, "what was replied before the kill is not asked again"


def test_tools_are_read_from_lists_and_lines(tmp_path):
    wrapped = [{"type": "function", "function": entry.tool.to_json()} for entry in MINE]
    (tmp_path / "list.json").write_text(json.dumps(wrapped))
    (tmp_path / "lines.jsonl").write_text("\n".join(json.dumps(row) for row in [*wrapped, wrapped[0]]))
    assert [entry.tool for entry in read_tools(tmp_path / "list.json")] == [entry.tool for entry in MINE]
    assert [entry.tool for entry in read_tools(tmp_path / "lines.jsonl")] == [entry.tool for entry in MINE]
    known = world_tools()[5]
    alike = Tool(known.tool.name, "Something else", known.tool.parameters)
    placed = known.tool.to_json() | {"place": ["Travel", "Trains", "Delay"], "constraints": []}
    (tmp_path / "mixed.jsonl").write_text("\n".join(json.dumps(row) for row in (placed, alike.to_json())))
    first, second = read_tools(tmp_path / "mixed.jsonl")
    assert first.group == ("Travel", "Trains") and first.world is not None
    assert second.world is None, "a tool with another document is not the world's"


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "holds no tool"), ('{"name": "a"}\n{"name": 3}', ":2: no tool document"), ("{", ":1: not JSON"),
     ('{"name": "a", "parameters": {"x": {"type": "unheard_of"}}}', "unknown type")],
)  # fmt: skip
def test_a_file_without_tools_says_so(tmp_path, text, words):
    (tmp_path / "tools.jsonl").write_text(text)
    with pytest.raises(DataError, match=words):
        read_tools(tmp_path / "tools.jsonl")


def test_a_dialogue_draws_distinct_functions_of_few_topics():
    entries = world_tools()
    for number in range(20):
        chosen = draw_tools(Random(number), entries, 8)
        assert len(chosen) == 8 and len({entry.function for entry in chosen}) == 8
        assert len({entry.tool.name for entry in chosen}) == 8
        assert 2 <= len({entry.group for entry in chosen}) <= 5
    assert len(draw_tools(Random(0), MINE, 30)) == len(MINE)


@pytest.mark.timeout(300)
def test_a_real_model_that_knows_none_of_this_is_counted_out(tmp_path):
    """The embedded model was never trained for these roles: nothing comes of it, and everything is accounted for."""
    env = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0", "JAX_PLATFORMS": "cpu"}
    command = [
        sys.executable, "-c", MAIN, "synthesize", "dialogues", "--config", "micro", "--tools", "world", "--count", "3",
        "--out", "out",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    metrics = json.loads((out / "metrics.json").read_text())
    assert_accounted(metrics, out)
    assert metrics["dialogues"] == 3 and metrics["ended_plan"] + metrics["ended_length"] == 3
    assert all(row["reply"] for row in rejected(out) if row["tier"] == "plan")
