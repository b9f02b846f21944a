"""Does a configuration fit? Every program of a run is compiled, for a TPU slice that is not there or the devices here.

The compiler's own accounting says what a program needs of a chip's memory; what the run keeps there beside it is added.
Where the sum is too large, a setting that helps is computed from the measured bytes and verified by compiling again.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax

from looptool_jax.loop.phases import Memory, Phase, Setting, phases
from looptool_jax.loop.run_config import RunConfig
from looptool_jax.models.config import ModelError
from looptool_jax.parallel.collectives import collectives, traffic
from looptool_jax.parallel.mesh import ShardingError
from looptool_jax.parallel.topology import Slice, available_hbm, parse, read_shortage, slices

MOST_TRIES = 3  # compilations spent on one setting


@dataclass(frozen=True)
class Report:
    """What a phase needs on one device, in bytes.

    outputs: those that are not written over donated arguments. temporaries: with the program's own code; where the
    compiler gave up, everything beyond the arguments. limit: what a device has, None where it does not say.
    collectives: by kind, how many run in a call, the bytes of their results, and whether every loop could be counted.
    """

    phase: str
    arguments: int
    outputs: int
    temporaries: int
    aliased: int
    residents: int
    host: int
    limit: int | None
    collectives: dict[str, tuple[int, int, bool]]
    seconds: float

    @property
    def total(self) -> int:
        return self.arguments + self.outputs + self.temporaries + self.residents

    @property
    def fits(self) -> bool:
        return self.limit is None or self.total <= self.limit


@dataclass(frozen=True)
class Advice:
    """A setting with which a phase fits, and what it then needs; key None: nothing that was tried is enough."""

    key: str | None
    old: int = 0
    new: int = 0
    total: int = 0

    def __str__(self) -> str:
        if self.key is None:
            return "no setting that was tried is enough: take a larger slice, a smaller model or shorter texts"
        return f"set {self.key} {self.old} -> {self.new} ({gib(self.total)} then, compiled)"


def main(cfg: RunConfig, topology: str | None = None, family: str | None = None) -> bool:
    """Print the table of a configuration on a slice, on the smallest of a family that fits, or on the devices here.

    Returns whether everything fits. Raises TopologyError, and what `phases` raises.
    """
    if topology or family:
        jax.config.update("jax_platforms", "cpu")  # nothing is to run on a TPU, nor to disturb what runs there
    if family:
        found = search(cfg, slices(family), partial(print, flush=True))
        print(f"{found}: the smallest that fits" if found else f"no {family} slice fits")
        return found is not None
    slice_ = parse(topology) if topology else None
    devices = slice_.devices() if slice_ else jax.devices()
    reports = preflight(cfg, devices)
    print(f"{slice_ or f'{len(devices)} x {devices[0].device_kind}'}: GiB on one device")
    print(_line(COLUMNS))
    fits, all_reports = True, []
    for phase, report in reports:
        all_reports.append(report)
        print(_line(cells(report)), flush=True)
        if not report.fits:
            fits = False
            print(f"    {phase.name}: {advise(cfg, devices, phase, report)}", flush=True)
    largest = max(all_reports, key=lambda report: report.total)
    of = f" of {gib(largest.limit)}" if largest.limit else ""
    print(f"{'everything fits' if fits else 'does not fit'}; largest is {largest.phase} with {gib(largest.total)}{of}")
    return fits


def preflight(cfg: RunConfig, devices: Sequence[jax.Device]) -> Iterator[tuple[Phase, Report]]:
    """Compile the phases one after the other.

    Raises:
        ShardingError, EngineError, ModelError: before anything is compiled, where sizes do not fit mesh or model.
    """
    planned, limit = phases(cfg, devices), available_hbm(devices[0])
    return ((phase, compile_phase(phase, limit)) for phase in planned)


def compile_phase(phase: Phase, limit: int | None) -> Report:
    """Compile one phase and read what the compiler says of it."""
    residents = sum(phase.residents.values(), Memory())
    started = time.monotonic()
    lowered = phase.lower()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        shortage = read_shortage(str(error))
        if shortage is None:
            raise
        return Report(
            phase.name, phase.arguments.device, 0, shortage[0] - phase.arguments.device, 0, residents.device,
            phase.arguments.host + residents.host, limit, {}, time.monotonic() - started,
        )  # fmt: skip
    seconds = time.monotonic() - started
    memory: Any = compiled.memory_analysis()
    host = memory.host_argument_size_in_bytes + memory.host_output_size_in_bytes + memory.host_temp_size_in_bytes
    return Report(
        phase=phase.name,
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes + memory.generated_code_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        residents=residents.device,
        host=host - memory.host_alias_size_in_bytes + residents.host,
        limit=limit,
        collectives=traffic(collectives(compiled.as_text() or "")),
        seconds=seconds,
    )


def advise(cfg: RunConfig, devices: Sequence[jax.Device], phase: Phase, report: Report) -> Advice:
    """The nearest setting with which a phase that does not fit does."""
    assert report.limit is not None
    for setting in phase.settings:
        hopeful = [value for value in setting.others if _predicted(phase, report, setting, value) <= report.limit]
        for value in hopeful[:MOST_TRIES]:
            try:
                changed = change(cfg, setting.key, value)
                again = next(one for one in phases(changed, devices) if one.name == phase.name)
            except (ShardingError, ModelError, StopIteration):  # no value for this mesh or model
                continue
            found = compile_phase(again, report.limit)
            if found.fits:
                return Advice(setting.key, setting.value, value, found.total)
    return Advice(None)


def search(cfg: RunConfig, candidates: Sequence[Slice], say: Callable[[str], None]) -> Slice | None:
    """The first of the slices, given smallest first, on which every phase fits; None where none does.

    What is known without compiling (arguments and residents) rules most slices out. On the others the phase that needs
    most of that is compiled first, and the first that does not fit ends it. `say` gets the lines of the table.
    """
    for slice_ in candidates:
        try:
            devices = slice_.devices()
            found = phases(cfg, devices)
        except ShardingError as error:
            say(f"{slice_}: {error}")
            continue
        limit = available_hbm(devices[0])
        assert limit is not None
        found.sort(key=_known_need, reverse=True)
        if _known_need(found[0]) > limit:
            say(f"{slice_}: {found[0].name} needs {gib(_known_need(found[0]))} of {gib(limit)} before any temporaries")
            continue
        say(f"{slice_}: GiB on one device")
        say(_line(COLUMNS))
        for phase in found:
            report = compile_phase(phase, limit)
            say(_line(cells(report)))
            if not report.fits:
                break
        else:
            return slice_
    return None


def change(cfg: Any, key: str, value: Any) -> Any:
    """A configuration with one nested setting changed; a fixed fsdp axis gives up what tensor takes."""
    name, _, rest = key.partition(".")
    changed = change(getattr(cfg, name), rest, value) if rest else value
    if key == "tensor" and cfg.fsdp > 0:
        cfg = dataclasses.replace(cfg, fsdp=max(1, cfg.fsdp * cfg.tensor // value))
    return dataclasses.replace(cfg, **{name: changed})


def gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


COLUMNS = (
    "phase", "arguments", "outputs", "temporaries", "residents", "total", "of", "host", "collectives in a call",
    "compiled in", "verdict",
)  # fmt: skip


def cells(report: Report) -> tuple[str, ...]:
    """A report as a row of `COLUMNS`; sizes in GiB on one device."""
    sizes = (report.arguments, report.outputs, report.temporaries, report.residents, report.total)
    moved = [
        f"{kind} {'' if counted else '≥'}{times}x {'' if counted else '≥'}{size / 2**30:.3g}"
        for kind, (times, size, counted) in sorted(report.collectives.items())
    ]
    return (
        report.phase, *(f"{size / 2**30:.2f}" for size in sizes),
        "?" if report.limit is None else f"{report.limit / 2**30:.2f}", f"{report.host / 2**30:.2f}",
        ", ".join(moved) or "-", f"{report.seconds:.0f} s", "fits" if report.fits else "TOO LARGE",
    )  # fmt: skip


def _line(row: Sequence[str]) -> str:
    widths = (18, 9, 7, 11, 9, 6, 6, 6)
    fixed = [cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=False))]
    return "  ".join([*fixed, row[-1].ljust(9), row[-2].rjust(11), row[-3]])


def _known_need(phase: Phase) -> int:
    return phase.arguments.device + sum(memory.device for memory in phase.residents.values())


def _predicted(phase: Phase, report: Report, setting: Setting, value: int) -> float:
    """What a phase would need, if all that the setting can govern grew with its power.

    A mesh axis governs everything; the number of slots the caches and temporaries; the rest the temporaries alone.
    """
    governed = report.temporaries
    if setting.key == "mesh.tensor":
        governed = report.total
    elif setting.key.endswith(".slots"):
        governed = phase.caches + report.temporaries
    return report.total - governed * (1 - (value / setting.value) ** setting.power)
