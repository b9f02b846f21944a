"""A generator and judge that replies by rules: every role of seed synthesis, played from what its prompt says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from random import Random

from looptool_jax.inference.answers import Answer, ChatRequest
from looptool_jax.toolcall import Tool
from looptool_jax.world import WorldError, recognise
from looptool_jax.world.values import draw

ROLES = {
    "You are a product architect": "context",
    "You set the house style": "constraints",
    "You write the documents of API": "api",
    "You plan dialogues": "plan",
    "You play the user": "user",
    "You are an assistant that fulfils": "assistant",
    "You stand in for the functions": "tool",
    "You are an expert reviewer of training data": "judge",
}


class Player:
    """A `ChatModel`. spoil: what becomes of a reply, told the role, the request's seed and the right reply."""

    def __init__(self, spoil: Callable[[str, int, str], str] = lambda role, seed, reply: reply) -> None:
        self.spoil = spoil
        self.batches: list[list[str]] = []

    def chat(self, requests: Sequence[ChatRequest], cfg, on_tokens, **sampling) -> list[Answer]:
        roles, answers = [], []
        for request in requests:
            system, user = (message.content for message in request.messages)
            role, reply = self.say(system, user)
            roles.append(role)
            text = self.spoil(role, request.key[0], reply)
            answers.append(Answer("", [], [], text) if text in ("length", "prompt_too_long") else _answer(text))
        self.batches.append(roles)
        return answers

    def __call__(self, body: dict) -> str:
        """The same behind a server."""
        system, user = (message["content"] for message in body["messages"])
        role, reply = self.say(system, user)
        return self.spoil(role, body["seed"] << 1, reply)

    def say(self, system: str, user: str) -> tuple[str, str]:
        role = next(role for start, role in ROLES.items() if system.startswith(start))
        try:
            return role, getattr(self, role)(system, user)
        except (ValueError, LookupError, TypeError):  # a prompt with what a spoilt reply left behind
            return role, "I do not understand."

    def context(self, system: str, user: str) -> str:
        return json.dumps({"Trains": ["Seat Lookup", "Delay Lookup"], "Money": {"Cards": ["Card Block"]}})

    def constraints(self, system: str, user: str) -> str:
        snake = {"say": "Write snake_case.", "case": "snake"}
        return json.dumps({"naming": {"snake": snake}, "parameters": {"few": {"say": "Few.", "least": 1, "most": 3}}})

    def api(self, system: str, user: str) -> str:
        leaf = re.search(r"Place: .* > (.*)", user)[1]
        properties = {"city": {"type": "string", "description": "Name of the city."}}
        parameters = {"type": "object", "properties": properties, "required": ["city"]}
        name = leaf.lower().replace(" ", "_")
        return json.dumps({"name": name, "description": f"{leaf}.", "parameters": parameters})

    def plan(self, system: str, user: str) -> str:
        """Needs that hold their calls as JSON, which the user repeats and the assistant reads."""
        known = tools_of(system)
        ids = {kind: names.split(", ") for kind, names in re.findall(r"^- (\w+): (.*)$", system, re.MULTILINE)}
        turns = []
        for number, kind in re.findall(r"^(\d+)\. (\w+)$", user, re.MULTILINE):
            rng = Random(f"{number}/{system}")
            tool = rng.choice([tool for tool in known if kind != "missing_parameter" or tool.required] or known)
            other = rng.choice(known)
            # Two parallel calls of one tool without parameters would be the same call twice.
            pair = (
                [tool]
                if kind in ("single", "missing_parameter", "tool_error")
                else [tool, other][: 1 + (tool != other)]
            )
            calls = [{"name": each.name, "arguments": arguments(each, ids, rng)} for each in pair]
            steps = {"multi_step": [[call] for call in calls], "no_tool": []}.get(kind, [calls])
            missing = list(tool.required[:1]) if kind == "missing_parameter" else []
            text = f"Do {json.dumps({'turn': int(number), 'steps': steps, 'missing': missing})}"
            names = list(dict.fromkeys(each.name for each in pair)) if kind != "no_tool" else []
            turns.append({"need": text, "tools": names, "missing": missing})
        return json.dumps(turns)

    def user(self, system: str, user: str) -> str:
        need = re.search(r"Your present need: (.*)", user)[1]
        withheld = re.search(r"Leave out for now: (.*)\.", user)
        return f"I want something, but I do not say {withheld[1]}" if withheld else need

    def assistant(self, system: str, user: str) -> str:
        turns = re.split(r"^(USER|ASSISTANT|TOOL): ", user, flags=re.MULTILINE)
        turns = list(zip(turns[1::2], (text.split("\n\nWrite the")[0] for text in turns[2::2]), strict=True))
        last = max(i for i, (role, _) in enumerate(turns) if role == "USER")
        if withheld := re.search(r"I do not say (.*)", turns[last][1]):
            return f"Which {withheld[1]} do you mean?"
        steps = json.loads(turns[last][1].removeprefix("Do "))["steps"]
        if not steps:
            return "None of the functions can do that."
        results = [text.startswith('{"error"') for role, text in turns[last:] if role == "TOOL"]
        done = 0
        while results and done < len(steps):
            group, results = results[: len(steps[done])], results[len(steps[done]) :]
            done += not group[0]
        if done == len(steps):
            return "It is done."
        return "\n".join(json.dumps(call) for call in steps[done])

    def tool(self, system: str, user: str) -> str:
        calls = re.search(r"Calls to answer:\n(.*?)\n\n?(?:The first call fails|Write the results)", user, re.DOTALL)[1]
        rows = [{"name": json.loads(line)["name"], "result": {"ok": True}} for line in calls.strip().splitlines()]
        if "fails this time" in user:
            rows[0]["result"] = {"error": "out of order"}
        return json.dumps(rows)

    def judge(self, system: str, user: str) -> str:
        return "No error.\n[CORRECT]"


def _answer(text: str) -> Answer:
    return Answer(text, [], [], "stop")


def tools_of(system: str) -> list[Tool]:
    lines = [line for line in system.splitlines() if line.startswith('{"type": "function"')]
    return [Tool.from_json(json.loads(line)["function"]) for line in lines]


def arguments(tool: Tool, ids: dict[str, list[str]], rng: Random) -> dict:
    """Values for the required parameters that the tool accepts."""
    try:
        parameters = recognise(tool).parameters
    except WorldError:
        values = {"string": "Ulm", "integer": 3, "number": 1.5, "boolean": True, "array": [], "object": {}}
        return {name: values[tool.properties[name]["type"]] for name in tool.required}
    return {
        name: rng.choice(ids[parameters[name].kind]) if parameters[name].shape == "id" else draw(rng, parameters[name])
        for name in tool.required
    }
