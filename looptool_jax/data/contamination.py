"""Is a benchmark in the training data? Samples against the requests and tools of BFCL and ACEBench.

A sample is contaminated where what its user says is a request of a benchmark row:

- exact: the same text.
- normalised: the same words (NFKC, letter case, punctuation and spaces left out; a CJK sign is a word).
- ngram: more than half of the request's words lie in 8-grams that the sample's turns have too. n and the threshold are
  those of Tülu 3 (Lambert et al. 2024, section 3.2). They fit requests of some 15 words; many are shorter than the
  13-grams of GPT-3's analysis (Brown et al. 2020, appendix C).

Each turn of 8 words or more is a request, and so is all that a row's user says. Shorter ones ("Yes, please.") are held
against all that a sample's user says, never against one turn of a dialogue. Less than FEWEST words ("Hello") are
everybody's.

Tools are compared too, and reported without consequence, since a public API is no test question: `same` has the same
name and parameters (in letters and digits), `similar` a Jaccard index of 0.8 or more over the words of the name and the
parameters, near which documents count as near-duplicates (Lee et al. 2022).

What is compared are hashes (BLAKE2b of 48 bits), which a run keeps in its directory: a resumed run is checked against
the same rows whatever has become of the copy, and no text of a benchmark goes into it.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, Literal

from looptool_jax.data.benchmarks import (
    BENCHMARKS,
    REMEDIES,
    BenchmarkRow,
    ToolSignature,
    benchmark_files,
    benchmark_folder,
    files_sha256,
    read_benchmark,
)
from looptool_jax.data.files import DataError, PathLike
from looptool_jax.data.store import read_jsonl, write_jsonl
from looptool_jax.toolcall.records import Sample, Tool

N = 8
FEWEST = 4
OVERLAP = 0.5
SIMILAR = 0.8
KINDS = ("exact", "normalised", "ngram")
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")

Action = Literal["drop", "report"]


@dataclass
class ContaminationConfig:
    """What composed data is checked against.

    bfcl: auto (the package bfcl-eval, if it is installed), a folder, or off. acebench: auto ($ACEBENCH_DIR, if it is
    set), a folder, or off. action: drop (contaminated seeds and expanded samples are left out and listed) or report
    (listed only).
    """

    bfcl: str = "auto"
    acebench: str = "auto"
    action: str = "drop"

    def __post_init__(self) -> None:
        if self.action not in ("drop", "report"):
            raise ValueError(f"contamination.action: expected drop or report, found {self.action!r}")
        for benchmark in BENCHMARKS:  # YAML reads off as false
            if getattr(self, benchmark) in ("False", False):
                setattr(self, benchmark, "off")


@dataclass(frozen=True)
class RequestPrint:
    """Hashes of one request. words: their number. grams: of the 8-grams, by the place of their first word."""

    row: str
    exact: int
    normalised: int
    words: int
    grams: tuple[int, ...]


@dataclass(frozen=True)
class ToolPrint:
    """Hashes of a tool: of name and parameters together, and of the words of the name and each parameter."""

    row: str
    same: int
    parts: frozenset[int]


@dataclass
class Fingerprint:
    """A benchmark as hashes. sha256: of the files that it was read from."""

    benchmark: str
    sha256: str
    rows: int = 0
    requests: list[RequestPrint] = field(default_factory=list)
    tools: list[ToolPrint] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        return {"sha256": self.sha256, "rows": self.rows, "requests": len(self.requests), "tools": len(self.tools)}


@dataclass(frozen=True)
class Overlap:
    """A sample beside a benchmark row; overlap: the share of the request's words that it has."""

    sample: str
    kind: str
    benchmark: str
    row: str
    overlap: float


@dataclass(frozen=True)
class ToolOverlap:
    """A tool of the data beside one of a benchmark row; samples: how many have it."""

    tool: str
    samples: int
    kind: str
    benchmark: str
    row: str
    overlap: float


@dataclass(frozen=True)
class ContaminationReport:
    """What a check found among `checked` samples; contaminated: their ids."""

    checked: int
    overlaps: list[Overlap]
    tools: list[ToolOverlap]
    benchmarks: dict[str, dict[str, Any]]

    @property
    def contaminated(self) -> set[str]:
        return {overlap.sample for overlap in self.overlaps}

    def counts(self) -> dict[str, Any]:
        """Of each benchmark its summary, samples by their closest match, tools by theirs."""
        out: dict[str, Any] = {}
        for name, summary in self.benchmarks.items():
            closest: dict[str, int] = {}
            for found in self.overlaps:
                if found.benchmark == name:
                    rank = KINDS.index(found.kind)
                    closest[found.sample] = min(rank, closest.get(found.sample, rank))
            samples = Counter(closest.values())
            kinds = {found.tool: found.kind for found in self.tools if found.benchmark == name}
            out[name] = {
                **summary,
                **{kind: samples[rank] for rank, kind in enumerate(KINDS)},
                "contaminated": len(closest),
                **{f"tools_{kind}": list(kinds.values()).count(kind) for kind in ("same", "similar")},
            }
        return out

    def to_json(self) -> Iterator[dict[str, Any]]:
        """The pairs: samples first, then tools."""
        pairs: list[Overlap | ToolOverlap] = [*self.overlaps, *self.tools]
        for pair in pairs:
            yield {**vars(pair), "overlap": round(pair.overlap, 4)}


def words(text: str) -> list[str]:
    """A text as it is compared."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def fingerprint(benchmark: str, sha256: str, rows: Iterable[BenchmarkRow]) -> Fingerprint:
    """The hashes of a benchmark's rows. A tool stands with the first row that has it; of several turns the whole has no
    8-grams, for its turns have them."""
    out = Fingerprint(benchmark, sha256)
    tools: dict[int, ToolPrint] = {}
    for row in rows:
        out.rows += bool(row.requests)
        turns = [_request_print(row.id, text) for text in dict.fromkeys(row.requests)]
        if len(row.requests) > 1:
            whole = replace(_request_print(row.id, "\n".join(row.requests)), grams=())
            turns = [whole, *(turn for turn in turns if turn.words >= N)]
        out.requests += [turn for turn in turns if turn.words >= FEWEST]
        for tool in row.tools:
            found = _tool_print(row.id, tool)
            tools.setdefault(found.same, found)
    out.tools = list(tools.values())
    return out


def fingerprints(cfg: ContaminationConfig) -> tuple[list[Fingerprint], list[str]]:
    """Of each benchmark that is at hand; and a line for each that is not, or is switched off. Raises DataError."""
    found, lines = [], []
    for benchmark in BENCHMARKS:
        given = getattr(cfg, benchmark)
        folder = None if given == "off" else benchmark_folder(benchmark, given)
        if folder is None:
            why = "switched off" if given == "off" else f"no copy is here; {REMEDIES[benchmark]}"
            lines.append(f"{benchmark}: data is not held against it ({why})")
            continue
        files = benchmark_files(benchmark, folder)
        found.append(fingerprint(benchmark, files_sha256(folder, files), read_benchmark(benchmark, files)))
    return found, lines


def write_fingerprints(path: PathLike, prints: Sequence[Fingerprint]) -> None:
    """As JSON lines: a line for the benchmark, then its requests and tools."""

    def lines() -> Iterator[dict[str, Any]]:
        for item in prints:
            yield {"benchmark": item.benchmark, "sha256": item.sha256, "rows": item.rows}
            yield from (vars(request) for request in item.requests)
            yield from ({**vars(tool), "parts": sorted(tool.parts)} for tool in item.tools)

    write_jsonl(path, lines())


def read_fingerprints(path: PathLike) -> list[Fingerprint]:
    """What `write_fingerprints` wrote. Raises DataError."""
    out: list[Fingerprint] = []
    try:
        for line in read_jsonl(path):
            if "benchmark" in line:
                out.append(Fingerprint(line["benchmark"], line["sha256"], line["rows"]))
            elif "grams" in line:
                out[-1].requests.append(RequestPrint(**{**line, "grams": tuple(line["grams"])}))
            else:
                out[-1].tools.append(ToolPrint(line["row"], line["same"], frozenset(line["parts"])))
    except (KeyError, TypeError, IndexError):
        raise DataError(f"{path}: no fingerprints of benchmarks; restore the file, or start a new run") from None
    return out


def check_samples(samples: Sequence[Sample], prints: Sequence[Fingerprint]) -> ContaminationReport:
    """Every sample against every benchmark, in the order of the samples."""
    indexes = [_RequestIndex(item) for item in prints]
    overlaps = []
    for sample in samples:
        turns = [message.content for message in sample.messages if message.role == "user"]
        texts = _Texts(turns)
        overlaps += [overlap for index in indexes for overlap in index.overlaps(sample.id, texts)]
    counts = Counter(tool for sample in samples for tool in dict.fromkeys(map(_signature, sample.tools)))
    tools = [overlap for item in prints for overlap in _tool_overlaps(counts, item)]
    return ContaminationReport(len(samples), overlaps, tools, {item.benchmark: item.summary() for item in prints})


def clean_samples(
    samples: Sequence[Sample], prints: Sequence[Fingerprint], action: str, path: PathLike
) -> tuple[list[Sample], dict[str, Any]]:
    """The samples that may be trained on, and the counts for a manifest; the pairs go to the file `path`."""
    report = check_samples(samples, prints)
    write_jsonl(path, report.to_json())
    dropped = report.contaminated if action == "drop" else set()
    kept = [sample for sample in samples if sample.id not in dropped]
    return kept, {
        "contaminated": len(report.contaminated),
        "contamination": {"action": action, "checked": report.checked, "benchmarks": report.counts()},
    }


class _Texts:
    """What a sample's user says, hashed. whole: all of it as one text; exact, normalised: that and each turn."""

    def __init__(self, turns: Sequence[str]) -> None:
        whole, turn_words = "\n".join(turns), [words(turn) for turn in turns]
        plain = [" ".join(found) for found in turn_words]
        self.whole = (_hash(whole.strip()), _hash(" ".join(plain)))
        self.exact = {self.whole[0], *(_hash(turn.strip()) for turn in turns)}
        self.normalised = {self.whole[1], *map(_hash, plain)}
        self.grams = {gram for found in turn_words for gram in _grams(found)}


class _RequestIndex:
    """A benchmark's requests by their hashes."""

    def __init__(self, item: Fingerprint) -> None:
        self.benchmark = item.benchmark
        self.by_text: dict[int, list[RequestPrint]] = {}
        self.by_gram: dict[int, list[RequestPrint]] = {}
        for request in item.requests:
            for text in {request.exact, request.normalised}:
                self.by_text.setdefault(text, []).append(request)
            for gram in set(request.grams):
                self.by_gram.setdefault(gram, []).append(request)

    def overlaps(self, sample: str, texts: _Texts) -> list[Overlap]:
        """The closest match of each row that the sample has anything of."""
        best: dict[str, Overlap] = {}

        def note(kind: str, request: RequestPrint, share: float) -> None:
            known = best.get(request.row)
            if known is None or (KINDS.index(kind), -share) < (KINDS.index(known.kind), -known.overlap):
                best[request.row] = Overlap(sample, kind, self.benchmark, request.row, share)

        for text in texts.exact | texts.normalised:
            for request in self.by_text.get(text, ()):
                short = request.words < N
                if request.exact == texts.whole[0] or (not short and request.exact in texts.exact):
                    note("exact", request, 1.0)
                elif request.normalised == texts.whole[1] or (not short and request.normalised in texts.normalised):
                    note("normalised", request, 1.0)
        near: dict[int, RequestPrint] = {}
        for gram in texts.grams:
            near |= {id(request): request for request in self.by_gram.get(gram, ())}
        for request in near.values():
            share = _covered(request, texts.grams)
            if share > OVERLAP:
                note("ngram", request, share)
        return sorted(best.values(), key=lambda overlap: (KINDS.index(overlap.kind), -overlap.overlap, overlap.row))


def _covered(request: RequestPrint, grams: set[int]) -> float:
    """The share of a request's words that lie in common 8-grams."""
    covered = end = 0
    for place, gram in enumerate(request.grams):
        if gram in grams:
            covered += place + N - max(place, end)
            end = place + N
    return covered / request.words


def _tool_overlaps(counts: Counter[ToolSignature], item: Fingerprint) -> Iterator[ToolOverlap]:
    """The closest tool of the benchmark, for each tool of the data that has one."""
    by_part: dict[int, list[ToolPrint]] = {}
    for tool in item.tools:
        for part in tool.parts:
            by_part.setdefault(part, []).append(tool)
    for signature, samples in counts.items():
        found = _tool_print("", signature)
        common = Counter(id(tool) for part in found.parts for tool in by_part.get(part, ()))
        candidates = {id(tool): tool for part in found.parts for tool in by_part.get(part, ())}
        ranked = [
            (candidates[key].same == found.same, shared / len(found.parts | candidates[key].parts), candidates[key].row)
            for key, shared in common.items()
        ]
        same, share, row = max(ranked, default=(False, 0.0, ""))
        if same or share >= SIMILAR:
            yield ToolOverlap(signature.name, samples, "same" if same else "similar", item.benchmark, row, share)


def _request_print(row: str, text: str) -> RequestPrint:
    found = words(text)
    return RequestPrint(row, _hash(text.strip()), _hash(" ".join(found)), len(found), tuple(_grams(found)))


def _tool_print(row: str, tool: ToolSignature) -> ToolPrint:
    name = "".join(words(tool.name.replace("_", " ")))
    parameters = sorted({"".join(words(parameter.replace("_", " "))) for parameter in tool.parameters})
    parts = {*words(_CAMEL.sub(" ", tool.name).replace("_", " ")), *(f"({parameter})" for parameter in parameters)}
    return ToolPrint(row, _hash(f"{name}({','.join(parameters)})"), frozenset(map(_hash, parts)))


def _signature(tool: Tool) -> ToolSignature:
    return ToolSignature(tool.name, tuple(tool.properties))


def _grams(found: Sequence[str]) -> Iterator[int]:
    return (_hash(" ".join(found[place : place + N])) for place in range(len(found) - N + 1))


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=6).digest(), "big")
