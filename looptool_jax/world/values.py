"""Kinds of values: what is drawn, its JSON type and how it is written in a request.

Pools are large and partly made up of syllables, so that values have to be copied and cannot be memorised.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from looptool_jax.world.trees import Parameter, pools

_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"
_DIGITS = "0123456789"


@dataclass(frozen=True)
class Kind:
    """type: JSON type. doc: a few words for a parameter description. draw: a value from a generator."""

    type: str
    doc: str
    draw: Callable[[Random], Any]


def coined(rng: Random, syllables: int = 2) -> str:
    """A made-up capitalised word."""
    return "".join(rng.choice(pools()["syllable"]) for _ in range(syllables)).capitalize()


def _pool(name: str) -> Callable[[Random], str]:
    return lambda rng: rng.choice(pools()[name])


def _pool_or_coined(name: str) -> Callable[[Random], str]:
    return lambda rng: coined(rng, rng.choice((2, 3))) if rng.random() < 0.25 else rng.choice(pools()[name])


def _pair(first: str, second: str, form: str = "{} {}", title: bool = False) -> Callable[[Random], str]:
    def draw(rng: Random) -> str:
        text = form.format(rng.choice(pools()[first]), rng.choice(pools()[second]))
        return text.title() if title else text

    return draw


def _integers(low: int, high: int, step: int = 1) -> Callable[[Random], int]:
    return lambda rng: rng.randrange(low, high + 1, step)


def _decimals(low: float, high: float, places: int, whole: float = 0.5) -> Callable[[Random], int | float]:
    def draw(rng: Random) -> int | float:
        if rng.random() < whole:
            return rng.randint(int(low) + 1, int(high))
        value = round(rng.uniform(low, high), places)
        return int(value) if value == int(value) else value

    return draw


def _characters(pattern: str) -> Callable[[Random], str]:
    """A for a letter, 0 for a digit, anything else is itself."""
    return lambda rng: "".join(
        rng.choice(_LETTERS) if c == "A" else rng.choice(_DIGITS) if c == "0" else c for c in pattern
    )


def _person(rng: Random) -> str:
    last = coined(rng) if rng.random() < 0.2 else rng.choice(pools()["last_name"])
    return f"{rng.choice(pools()['first_name'])} {last}"


def _date(rng: Random) -> str:
    return f"{rng.randint(2024, 2027)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"


def _time(rng: Random) -> str:
    return f"{rng.randint(0, 23):02d}:{rng.randrange(0, 60, 5):02d}"


def _email(rng: Random) -> str:
    name = rng.choice(pools()["first_name"]).lower()
    domain = coined(rng).lower()
    return f"{name}@{domain}.{rng.choice(('com', 'org', 'net', 'io'))}"


def _phone(rng: Random) -> str:
    return f"+{rng.randint(1, 99)}-{rng.randint(100, 999)}-{rng.randint(1000, 9999)}"


def _company(rng: Random) -> str:
    return f"{coined(rng)} {rng.choice(pools()['company_end'])}"


def _street(rng: Random) -> str:
    return f"{rng.choice(pools()['street_name'])} {rng.choice(pools()['street_kind'])}"


def _file(rng: Random) -> str:
    return f"{rng.choice(pools()['adjective'])}_{rng.choice(pools()['noun'])}.{rng.choice(pools()['file_end'])}"


def _text(rng: Random) -> str:
    parts = (rng.choice(pools()["text_start"]), rng.choice(pools()["text_object"]), rng.choice(pools()["text_end"]))
    return " ".join(part for part in parts if part)


KINDS: dict[str, Kind] = {
    "city": Kind("string", "City name", _pool_or_coined("city")),
    "country": Kind("string", "Country name", _pool("country")),
    "person": Kind("string", "Full name", _person),
    "company": Kind("string", "Company name", _company),
    "product": Kind("string", "Product name", _pair("product_adjective", "product_noun")),
    "date": Kind("string", "Date, YYYY-MM-DD", _date),
    "time": Kind("string", "Time, HH:MM", _time),
    "email": Kind("string", "Email address", _email),
    "phone": Kind("string", "Phone number", _phone),
    "address": Kind("string", "Street address", lambda rng: f"{rng.randint(2, 199)} {_street(rng)}"),
    "street": Kind("string", "Street name", _street),
    "code": Kind("string", "Code", lambda rng: _characters(rng.choice(("AA00", "AAA000", "A0A00", "AAAA0")))(rng)),
    "tracking": Kind("string", "Tracking number", _characters("AA00000000")),
    "plate": Kind("string", "License plate", lambda rng: _characters(rng.choice(("AA-000", "A-0000", "AAA-00")))(rng)),
    "flight": Kind("string", "Flight number", _characters("AA000")),
    "account": Kind("string", "Account number", _characters("AA00-0000")),
    "pin": Kind("string", "Pin code", _characters("0000")),
    "ticker": Kind("string", "Stock symbol", lambda rng: _characters(rng.choice(("AAA", "AAAA")))(rng)),
    "gate": Kind("string", "Gate", _characters("A0")),
    "flight_state": Kind("string", "State", lambda rng: rng.choice(("on time", "delayed", "boarding"))),
    "currency": Kind("string", "Currency code", _pool("currency")),
    "dish": Kind("string", "Dish", _pool("dish")),
    "ingredient": Kind("string", "Food", _pool("ingredient")),
    "tag": Kind("string", "Keyword", _pool("tag")),
    "skill": Kind("string", "Skill", _pool("skill")),
    "subject": Kind("string", "Topic", _pool("subject")),
    "language": Kind("string", "Language", _pool("language")),
    "color": Kind("string", "Color", _pool("color")),
    "room": Kind("string", "Room", _pool("room")),
    "plant": Kind("string", "Plant", _pool("plant")),
    "medicine": Kind("string", "Medicine", _pool_or_coined("medicine")),
    "symptom": Kind("string", "Symptom", _pool("symptom")),
    "device": Kind("string", "Device", _pool("device")),
    "job": Kind("string", "Job title", _pool("job")),
    "sport": Kind("string", "Sport", _pool("sport")),
    "river": Kind("string", "River", _pool_or_coined("river")),
    "word": Kind("string", "A word", _pool("word")),
    "title": Kind("string", "Title", _pair("adjective", "noun", title=True)),
    "work": Kind("string", "Title", _pair("adjective", "noun", "the {} {}", title=True)),
    "team": Kind("string", "Team", lambda rng: f"{coined(rng)} {rng.choice(pools()['team_end'])}"),
    "venue": Kind("string", "Venue", lambda rng: f"{coined(rng)} {rng.choice(pools()['venue_end'])}"),
    "car": Kind("string", "Car", lambda rng: f"{rng.choice(pools()['car_make'])} {_characters('A0')(rng)}"),
    "folder": Kind("string", "Folder", lambda rng: f"{rng.choice(pools()['folder_word'])}{rng.randint(2, 99)}"),
    "file": Kind("string", "File name", _file),
    "text": Kind("string", "Text", _text),
    "reason": Kind("string", "Reason", _pool("reason")),
    "problem": Kind("string", "What is wrong", _pair("device", "fault", "{} {}")),
    "remark": Kind("string", "Remark", _pair("degree", "quality")),
    "small": Kind("integer", "Number", _integers(2, 12)),
    "stars": Kind("integer", "Stars, 2 to 5", _integers(2, 5)),
    "quantity": Kind("integer", "Number", _integers(2, 250)),
    "months": Kind("integer", "Months", _integers(6, 120, 6)),
    "minutes": Kind("integer", "Minutes", _integers(5, 180, 5)),
    "year": Kind("integer", "Year", _integers(1960, 2024)),
    "age": Kind("integer", "Age", _integers(3, 95)),
    "percent": Kind("integer", "Percent", _integers(5, 95)),
    "degrees": Kind("integer", "Degrees", _integers(8, 39)),
    "wash": Kind("integer", "Degrees", _integers(20, 95, 5)),
    "oven": Kind("integer", "Degrees", _integers(120, 260, 5)),
    "centimetres": Kind("integer", "Centimetres", _integers(140, 205)),
    "kilograms": Kind("integer", "Kilograms", _integers(45, 130)),
    "calories": Kind("integer", "Number", _integers(100, 9950, 50)),
    "salary": Kind("integer", "Amount", _integers(1000, 95000, 500)),
    "grade": Kind("integer", "Grade", _integers(40, 99)),
    "amount": Kind("number", "Amount", _decimals(4, 900, 2)),
    "price": Kind("number", "Price", _decimals(4, 900, 0, whole=1.0)),
    "rate": Kind("number", "Rate", _decimals(0, 9, 1, whole=0.2)),
    "weight": Kind("number", "Kilograms", _decimals(0, 60, 1)),
    "measure": Kind("number", "Number", _decimals(1, 400, 1)),
    "number": Kind("number", "Number", _decimals(1, 200, 1)),
    "latitude": Kind("number", "Latitude", _decimals(1, 89, 2, whole=0.0)),
    "longitude": Kind("number", "Longitude", _decimals(1, 179, 2, whole=0.0)),
}

_QUOTED = frozenset(("text", "problem", "remark"))
_MAYBE_QUOTED = frozenset(("title", "work"))


def draw_id(rng: Random, prefix: str) -> str:
    """A record id such as HB-2041."""
    return f"{prefix}-{rng.randint(100, 9999)}"


def draw(rng: Random, parameter: Parameter) -> Any:
    """A value of a parameter. Ids belong to a state and are drawn there, not here."""
    if parameter.shape == "enum":
        return rng.choice(parameter.values)
    if parameter.shape == "boolean":
        return rng.random() < 0.6
    if parameter.shape == "list":
        return _distinct(rng, KINDS[parameter.kind], rng.choice((2, 2, 3)))
    if parameter.shape == "object":
        values = [KINDS[kind].draw(rng) for _, kind in parameter.fields]
        if [name for name, _ in parameter.fields] == ["min", "max"]:
            low = min(values)
            values = [low, max(*values, low + 1)]
        return dict(zip((name for name, _ in parameter.fields), values, strict=True))
    if parameter.shape == "id":
        return draw_id(rng, parameter.prefix)
    return KINDS[parameter.kind].draw(rng)


def _distinct(rng: Random, kind: Kind, count: int) -> list[Any]:
    values: list[Any] = []
    while len(values) < count:
        value = kind.draw(rng)
        if value not in values:
            values.append(value)
    return values


def schema(parameter: Parameter, described: bool) -> dict[str, Any]:
    """The JSON Schema of a parameter; `described` adds a short description."""
    if parameter.shape == "enum":
        return {"type": "string", "enum": list(parameter.values)}
    if parameter.shape == "boolean":
        return {"type": "boolean"}
    if parameter.shape == "list":
        return {"type": "array", "items": {"type": KINDS[parameter.kind].type}}
    if parameter.shape == "object":
        properties = {name: {"type": KINDS[kind].type} for name, kind in parameter.fields}
        return {"type": "object", "properties": properties, "required": list(properties)}
    if parameter.shape == "id":
        return {"type": "string", "description": f"Id of the {parameter.kind}"} if described else {"type": "string"}
    kind = KINDS[parameter.kind]
    return {"type": kind.type, "description": kind.doc} if described else {"type": kind.type}


def json_type(parameter: Parameter) -> str:
    """The JSON type of a parameter."""
    return schema(parameter, described=False)["type"]


def surface(parameter: Parameter, value: Any, rng: Random) -> str:
    """How a value is written in a request: text in quotes, lists as "a, b and c", objects as "width 3 and height 4"."""
    if parameter.shape == "list":
        return enumerate_words([written(item) for item in value])
    if parameter.shape == "object":
        if parameter.join:
            return f" {parameter.join} ".join(written(item) for item in value.values())
        return enumerate_words([f"{name} {written(item)}" for name, item in value.items()])
    if parameter.kind in _QUOTED or (parameter.kind in _MAYBE_QUOTED and rng.random() < 0.5):
        return f'"{value}"'
    return written(value)


def written(value: Any) -> str:
    """A scalar as it appears in text: true/false, digits, or the string itself."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def enumerate_words(words: list[str]) -> str:
    """a; a and b; a, b and c."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
