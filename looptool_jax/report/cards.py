"""Samples to read in the report: judged labels with their differences, error seeds with what grew from them, and the
frame in which report.js shows all samples."""

from __future__ import annotations

from urllib.parse import quote

from looptool_jax.report.page import text, visible
from looptool_jax.report.payload import LONGEST, cut
from looptool_jax.report.stories import Judged, Stories, Story
from looptool_jax.report.word_diff import laid_out, side_html, word_diff
from looptool_jax.toolcall import Target

SHOWN = 8  # cards of a kind and round; the others are among the samples
VERDICTS = {
    "label_wrong": "label wrong", "prediction_wrong": "answer wrong", "both_correct": "both right",
    "both_wrong": "both wrong", "undecided": "undecided",
}  # fmt: skip


def repair_cards(stories: Stories) -> str:
    """Label and answer of judged mismatches, round by round: labels that were replaced first, then the others."""
    parts = []
    for round_ in sorted({judged.round for story in stories.told.values() for judged in story.judged}):
        judged = [(story, one) for story in stories.told.values() for one in story.judged if one.round == round_]
        replaced = [pair for pair in judged if pair[1].verdict == "label_wrong"]
        others = [pair for pair in judged if pair[1].verdict != "label_wrong" and pair[1].decided_by == "judge"]
        parts.append(f"<h3>Round {round_}: labels replaced by the answer</h3>")
        parts += [_repair_card(*pair) for pair in replaced[:SHOWN]]
        parts.append(_more(len(replaced), f"verdict=label_wrong&round={round_}"))
        if others:
            parts.append(f"<h3>Round {round_}: judged, and not replaced</h3>")
            parts += [_repair_card(*pair) for pair in others[: SHOWN // 2]]
            parts.append(_more(len(others), f"round={round_}&outcome=wrong", SHOWN // 2))
    return "".join(parts)


def expansion_cards(stories: Stories) -> str:
    """Error seeds with the samples that grew from them, round by round."""
    parts = []
    for round_, ids in stories.error_seeds.items():
        grown = [story for id_ in ids if (story := stories.told.get(id_)) and _children(stories, story, round_)]
        if not grown:
            continue
        parts.append(f"<h3>Round {round_}: error seeds and what grew from them</h3>")
        parts += [_seed_card(stories, story, round_) for story in grown[:SHOWN]]
        parts.append(_more(len(grown), f"kind=error&round={round_ + 1}"))
    return "".join(parts)


def browser(stories: Stories) -> str:
    """The frame of the list of samples and of one sample. Without JavaScript it says where the samples lie."""
    told, total = len(stories.told), stories.total
    part = (
        f"This page holds {told:,} of the {total:,} samples of the run: those that were judged and what grew from "
        "errors first, then held-out ones, then the others in the order of the data sets. "
        if told < total
        else f"All {total:,} samples of the run. "
    )
    note = (
        f"{part}The files of the run hold them whole: <code>round-N/data.jsonl</code>, "
        "<code>probe/probes.jsonl</code>, <code>judge/judgements.jsonl</code>, <code>expand/</code>, "
        "<code>seed/heldout.jsonl</code>, "
        f"<code>eval/results.jsonl</code>. Texts over {LONGEST:,} characters are cut here, and say so."
    )
    selects = "".join(
        f'<label>{name}<select name="{key}" id="{key}"><option value="">{every}</option></select></label>'
        for key, name, every in (
            ("category", "Category", "all"), ("kind", "Origin", "all"), ("round", "Round", "any"),
            ("verdict", "Verdict", "any"), ("outcome", "Answers", "any"),
        )
    )  # fmt: skip
    return f"""<p class="note">{note}</p>
<p id="no-script">Searching and reading single samples needs JavaScript, in a browser of 2023 or later.</p>
<div id="browser" hidden>
<form id="filters" role="search" aria-label="Samples">
<label class="wide">Search in requests, labels, answers and reasons
<input type="search" name="text" autocomplete="off"></label>
{selects}<button type="reset">Clear</button></form>
<p id="count" role="status" aria-live="polite"></p>
<div class="panes"><div class="list"><ol id="results" aria-label="Samples found"></ol>
<p id="pages"><button type="button" id="previous">Previous</button> <span id="page"></span>
<button type="button" id="next">Next</button></p></div>
<article id="sample" aria-labelledby="sample-title" hidden></article></div></div>"""


def _repair_card(story: Story, judged: Judged) -> str:
    answer = next(answer for answer in story.answers if answer.round == judged.round)
    states = _tag(f"judged: {VERDICTS[judged.verdict]}")
    if judged.was_right is not None:
        states += _tag("truth: ✓ label was right" if judged.was_right else "truth: ✗ label was wrong", judged.was_right)
    if judged.right is not None and judged.verdict == "label_wrong":
        states += _tag("✓ new label right" if judged.right else "✗ new label wrong", judged.right)
    second = "Answer, now the label" if judged.verdict == "label_wrong" else "Answer"
    said = f"<h4>The judge</h4>{_pre(judged.analysis)}" if judged.analysis else ""
    votes = ", ".join(VERDICTS.get(vote or "", "none") for vote in judged.votes)
    votes = f'<p class="note">Votes: {votes}</p>' if votes else ""
    return _card(story, states, _pair("Label", answer.label, second, answer.text) + said + votes)


def _seed_card(stories: Stories, story: Story, round_: int) -> str:
    judged = next(judged for judged in story.judged if judged.round == round_)
    answer = next(answer for answer in story.answers if answer.round == round_)
    children = _children(stories, story, round_)
    accepted = sum(child.kind == "expanded" for child in children)
    body = _pair("Label", answer.label, "Answer", answer.text)
    if judged.analysis:
        body += f"<h4>The judge</h4>{_pre(judged.analysis)}"
    items = "".join(f"<li>{_child(child)}</li>" for child in children)
    body += f'<h4>Written from it</h4><ul class="children">{items}</ul>'
    states = _tag(f"judged: {VERDICTS[judged.verdict]}") + _tag(f"{accepted} of {len(children)} accepted")
    return _card(story, states, body)


def _child(child: Story) -> str:
    if child.kind == "rejected":
        state = f"{_tag(f'rejected: {child.tier}', False)} {text(cut(child.reason))}"
    else:
        state = _tag("accepted", True)
        if child.valid is not None:
            state += _tag("✓ valid" if child.valid else "✗ not valid", child.valid)
    label = _pre(laid_out(child.label)) if child.label else ""
    return f'{state} <span class="note">{text(child.scenario)}</span><br>{_link(child)}{label}'


def _children(stories: Stories, story: Story, round_: int) -> list[Story]:
    """What was written from the sample in this round: an id tells the round."""
    return [stories.told[id_] for id_ in story.children if id_.startswith(f"{story.id}.r{round_}e")]


def _card(story: Story, states: str, body: str) -> str:
    return (
        f'<details class="card"><summary><span class="title" dir="auto">{text(story.title)}</span> {states}</summary>'
        f'<p class="note">{_link(story, story.id)}</p>'
        f'<blockquote dir="auto">{text(cut(story.request))}</blockquote>{body}</details>'
    )


def _pair(first: str, label: Target, second: str, answer: str) -> str:
    one, two = word_diff(cut(laid_out(label)), cut(laid_out(answer)))
    return (
        f'<div class="pair"><div><h4>{first}</h4><pre dir="auto">{side_html(one, "del")}</pre></div>'
        f'<div><h4>{second}</h4><pre dir="auto">{side_html(two, "ins")}</pre></div></div>'
    )


def _link(story: Story, words: str = "") -> str:
    return f'<a href="#sample={quote(visible(story.id), safe="")}">{text(words or story.title)}</a>'


def _pre(words: str) -> str:
    return f'<pre dir="auto">{text(cut(words))}</pre>'


def _tag(words: str, good: bool | None = None) -> str:
    kind = {None: "", True: " good", False: " bad"}[good]
    return f'<span class="tag{kind}">{text(words)}</span> '


def _more(count: int, filters: str, shown: int = SHOWN) -> str:
    if not count:
        return '<p class="note">None.</p>'
    if count <= shown:
        return ""
    return f'<p><a href="#{text(filters)}">All {count:,} among the samples</a></p>'
