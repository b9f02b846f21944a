"""The closed loop: which stages a run has, what each reads and writes, and how a killed run continues.

    seed → [warmup] → eval-0 → for every round j: train → eval → probe → judge → expand → compose → D_{j+1}

Every stage reads whole files and writes whole files. What is done stands in the manifest; a stage that was killed
continues from its own progress file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any

from looptool_jax.data.contamination import (
    Fingerprint,
    clean_samples,
    fingerprints,
    read_fingerprints,
    write_fingerprints,
)
from looptool_jax.data.store import (
    join,
    lock_directory,
    read_jsonl,
    read_samples,
    remove_tree,
    write_jsonl,
    write_samples,
)
from looptool_jax.evaluation.heldout import evaluate
from looptool_jax.evaluation.repair import expansion_validity, label_repair, remaining_noise, true_labels
from looptool_jax.inference.answers import Answerer
from looptool_jax.inference.grammar import check_installed
from looptool_jax.inference.lm import ModelConfig, resolved_attention
from looptool_jax.loop import compose as composition
from looptool_jax.loop.console import Console
from looptool_jax.loop.environment import record_environment
from looptool_jax.loop.expand import expand
from looptool_jax.loop.heartbeat import beating
from looptool_jax.loop.judge import ErrorSeed, judge
from looptool_jax.loop.ledger import NAME as LEDGER
from looptool_jax.loop.ledger import Ledger
from looptool_jax.loop.manifest import Manifest, data_file, eval_folder, policy_folder
from looptool_jax.loop.metrics import kind, stage_metrics, training_steps
from looptool_jax.loop.pool import ModelPool
from looptool_jax.loop.probe import Probe, probe
from looptool_jax.loop.run_config import RunConfig, flat
from looptool_jax.loop.synthesize import synthesize
from looptool_jax.loop.tracking import tracked
from looptool_jax.loop.train import PASSED, pass_rates, train
from looptool_jax.loop.warmup import sft_warmup
from looptool_jax.models.config import ModelError
from looptool_jax.models.hf import save_pretrained
from looptool_jax.parallel import processes
from looptool_jax.toolcall import Sample
from looptool_jax.training.rows import alignment

Metrics = dict[str, Any]
BENCHMARKS = "seed/benchmarks.jsonl"


@dataclass(frozen=True)
class Stage:
    """One step of the loop. Paths are relative to the run directory; outputs are files or directories."""

    name: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    work: Callable[[], Metrics]


class Runner:
    """Runs the stages of one run directory in order, skipping those that are done."""

    def __init__(self, cfg: RunConfig, console: Console) -> None:
        self.cfg, self.console = cfg, console
        self.ledger: Ledger | None = None

    @cached_property
    def pool(self) -> ModelPool:
        return ModelPool(self.cfg.mesh, self.cfg.run_dir, on_prompts=self.console.prompts)

    def run(self) -> Manifest:
        """Run to the end and return the manifest.

        Raises DataError when another run is in this directory, or an artifact is gone or was changed; Preempted, with
        everything so far committed, when the machine is wanted back.
        """
        with lock_directory(self.cfg.run_dir):
            processes.meet("holding the run directory")
            manifest = Manifest(self.cfg.run_dir)
            self.ledger = Ledger(self.path(LEDGER))
            processes.by_first(manifest.check)
            stages = self.stages()
            plan = [stage.name for stage in stages]
            if all(manifest.done(stage) for stage in plan):
                self.console.say("everything is done already")
                for stage in stages:
                    self._clean(stage)
                return manifest
            where, settings = (self.console, self.cfg.run_dir), flat(asdict(self.cfg))
            with beating(*where, plan), tracked(*where, self.cfg.tracking, settings):
                self._check_models()
                self._record_environment()
                for stage in stages:
                    self._run_stage(stage, manifest)
            return Manifest(self.cfg.run_dir)

    def _run_stage(self, stage: Stage, manifest: Manifest) -> None:
        console = self.console
        if manifest.done(stage.name):
            self._clean(stage)
            console.steps += training_steps(stage.name, manifest.metrics(stage.name))
            return
        with console.stage(stage.name):
            metrics = stage.work()
        processes.meet(f"the outcome of {stage.name}", metrics)
        assert self.ledger is not None
        self.ledger.record(stage.name, console.seconds, console.token_count, console.prompt_token_count, console.speed)
        console.steps += training_steps(stage.name, metrics)
        console.log(0, stage_metrics(stage.name, metrics) | {f"seconds/{kind(stage.name)}": console.seconds})
        processes.by_first(partial(manifest.commit, stage.name, stage.inputs, stage.outputs, metrics))
        self._clean(stage)
        console.say(f"{stage.name}: {console.seconds:.1f} s  {headline(metrics)}".rstrip())
        processes.stop_if_preempted()

    def path(self, *parts: str) -> str:
        return join(self.cfg.run_dir, *parts)

    def stages(self) -> list[Stage]:
        """The plan of the run; it depends on the configuration alone."""
        cfg = self.cfg
        stages = [Stage("seed", (), ("seed", data_file(1)), self._seed)]
        if cfg.warmup:
            stages.append(Stage("warmup", ("seed/pool.jsonl",), ("warmup/policy",), self._warmup))
        stages += self._eval_stages(0)
        for round_ in range(1, cfg.rounds + 1):
            stages.append(self._train_stage(round_))
            stages += self._eval_stages(round_)
            if round_ < cfg.rounds or cfg.finish_loop:
                stages += [self._compose_static(round_)] if cfg.static else self._loop_stages(round_)
        return stages

    def _check_models(self) -> None:
        """What cannot be trained, or a judge that cannot be used, is better told now than after hours."""
        cfg = self.cfg
        if cfg.policy.dtype == "int8" and cfg.train.lora is None:
            raise ModelError("policy.dtype: int8 weights cannot be trained; set train.lora, or use bfloat16")
        longest = (cfg.train.answers.prompt_tokens, cfg.train.answers.answer_tokens)
        alignment(resolved_attention(cfg.policy.attention, self.pool.mesh), cfg.train.grpo.micro_tokens, *longest)
        models = self._models()
        if cfg.expand.grammar and "generator" in models:
            check_installed("expand.grammar=true")
        for model in dict.fromkeys(models.values()):
            self.pool.check(model)

    def _models(self) -> dict[str, ModelConfig]:
        """The models that the stages need, by their roles."""
        cfg = self.cfg
        models = {"policy": cfg.policy}
        if not cfg.static and (cfg.rounds > 1 or cfg.finish_loop):
            expands = cfg.expand.enabled and cfg.compose.expanded_part == "expand"
            if cfg.judge.enabled or (expands and cfg.expand.verify != "rules"):
                models["judge"] = cfg.judge_model
            if expands:
                models["generator"] = cfg.generator_model or cfg.judge_model
        return models

    def _record_environment(self) -> None:
        sizes = {role: self.pool.active_parameters(model) for role, model in self._models().items()}
        adapters = self.cfg.train.lora is not None
        processes.by_first(lambda: record_environment(self.path("environment.jsonl"), sizes, adapters))

    # --- the policy of a round --------------------------------------------------------------------------------------

    def policy_dir(self, round_: int) -> str | None:
        """Where the weights after round `round_` lie, relative to the run; None: the configured model itself."""
        if round_ > 0:
            return policy_folder(round_)
        return "warmup/policy" if self.cfg.warmup else None

    def policy(self, round_: int) -> Answerer:
        folder = self.policy_dir(round_)
        return self.pool.lend(self.cfg.policy, self.path(folder) if folder else None)

    def _policy_input(self, round_: int) -> tuple[str, ...]:
        folder = self.policy_dir(round_)
        return (folder,) if folder else ()

    # --- stages -----------------------------------------------------------------------------------------------------

    def _seed(self) -> Metrics:
        cfg = self.cfg
        processes.by_first(self._fingerprint)
        return synthesize(
            cfg.data, self.policy_tokens(), cfg.train.answers.prompt_tokens, self._benchmarks(),
            cfg.contamination.action, cfg.seed, self.path("seed"), self.path(data_file(1)),
        )  # fmt: skip

    def _fingerprint(self) -> None:
        """What data is checked against, kept for the whole run."""
        prints, not_checked = fingerprints(self.cfg.contamination)
        write_fingerprints(self.path(BENCHMARKS), prints)
        for line in not_checked:
            self.console.say(line)

    def _benchmarks(self) -> list[Fingerprint]:
        return read_fingerprints(self.path(BENCHMARKS))

    def policy_tokens(self) -> Answerer:
        """The configured policy, for counting prompt tokens."""
        return self.pool.lend(self.cfg.policy)

    def _warmup(self) -> Metrics:
        cfg = self.cfg
        assert cfg.warmup is not None
        samples = list(read_samples(self.path("seed/pool.jsonl")))
        policy = self.pool.lend(cfg.policy)

        def log(row: Metrics) -> None:
            if "loss" in row:
                self.console.advance(1, loss=row["loss"])
            else:
                if row["too_long"]:
                    self.console.say(f"warmup: {row['too_long']} samples are longer than a row and left out")
                self.console.expect(row["steps"], row["done"])

        checkpoints = self.path("warmup/checkpoints")
        trained, losses = sft_warmup(policy.lm, samples, cfg.warmup, checkpoints, log, policy.thinking)
        save_pretrained(trained.params, trained.cfg, self.path("warmup/policy"), trained.folder)
        return {"steps": len(losses), "loss_first": round(losses[0], 6), "loss_last": round(losses[-1], 6)}

    def _eval_stages(self, round_: int) -> list[Stage]:
        """None where nothing is held out: an accuracy over no items would read as 0."""
        if not self.cfg.data.heldout:
            return []
        name = eval_folder(round_)

        before = (f"{eval_folder(round_ - 1)}/results.jsonl",) if round_ else ()

        def work() -> Metrics:
            samples = list(read_samples(self.path("seed/heldout.jsonl")))
            last = {row["id"]: row["ids"] for file in before for row in read_jsonl(self.path(file))}
            return evaluate(self.policy(round_), samples, self.cfg.evaluate, self.path(name), self.console, last)

        inputs = ("seed/heldout.jsonl", *before, *self._policy_input(round_))
        return [Stage(name, inputs, (f"{name}/results.jsonl",), work)]

    def _train_stage(self, round_: int) -> Stage:
        cfg, folder = self.cfg, f"round-{round_}/train"

        def work() -> Metrics:
            samples = list(read_samples(self.path(data_file(round_))))
            return train(
                self.policy(round_ - 1), samples, cfg.train, cfg.reward, cfg.seed, round_, self.path(folder),
                self.console,
            )  # fmt: skip

        inputs = (data_file(round_), *self._policy_input(round_ - 1))
        return Stage(folder, inputs, (f"{folder}/steps.jsonl", f"{folder}/{PASSED}", f"{folder}/policy"), work)

    def _loop_stages(self, round_: int) -> list[Stage]:
        here, data = f"round-{round_}", data_file(round_)
        judged = (f"{here}/judge/judgements.jsonl", f"{here}/judge/errors.jsonl")
        expanded = f"{here}/expand/expanded.jsonl"
        probes = f"{here}/probe/probes.jsonl"
        passed = (f"{here}/train/{PASSED}",) if self.cfg.compose.uses_pass_rates else ()
        before = (f"round-{round_ - 1}/probe/probes.jsonl",) if round_ > 1 else ()
        return [
            Stage(
                f"{here}/probe", (data, *before, *self._policy_input(round_)), (probes,), lambda: self._probe(round_)
            ),
            Stage(
                f"{here}/judge",
                (data, probes),
                (*judged, f"{here}/judge/set_aside.jsonl"),
                lambda: self._judge(round_),
            ),
            Stage(
                f"{here}/expand",
                (judged[1], *passed),
                (expanded, f"{here}/expand/rejected.jsonl"),
                lambda: self._expand(round_),
            ),
            Stage(
                f"{here}/compose",
                ("seed/pool.jsonl", BENCHMARKS, data, *passed, probes, *judged, expanded),
                (data_file(round_ + 1), f"{here}/compose/parts.jsonl", f"{here}/compose/contaminated.jsonl"),
                lambda: self._compose(round_, self.path(here, "compose"), self.path(data_file(round_ + 1))),
            ),
            Stage(
                f"{here}/score",
                ("seed/pool.jsonl", "seed/truth.jsonl", data, *judged, expanded, data_file(round_ + 1)),
                (),
                lambda: self._score(round_),
            ),
        ]

    def _probe(self, round_: int) -> Metrics:
        cfg = self.cfg
        last = {row.id: row.ids for row in self._probes(round_ - 1)} if round_ > 1 else {}
        return probe(
            self.policy(round_), self._samples(round_), cfg.probe, cfg.reward, self.path(f"round-{round_}/probe"),
            self.console, last,
        )  # fmt: skip

    def _judge(self, round_: int) -> Metrics:
        cfg = self.cfg
        model = self.pool.lend_chat(cfg.judge_model) if cfg.judge.enabled else None
        metrics = judge(
            model, self._samples(round_), self._probes(round_), cfg.seed, round_, cfg.judge,
            self.path(f"round-{round_}/judge"), self.console,
        )  # fmt: skip
        return metrics | _servers(judge_model=cfg.judge_model if model else None)

    def _expand(self, round_: int) -> Metrics:
        cfg = self.cfg
        use = cfg.expand.enabled and cfg.compose.expanded_part == "expand"
        errors = {item.sample.id: item for item in self._errors(round_)}
        samples = [item.sample for item in errors.values()]
        rates = self._pass_rates(round_)
        chosen = composition.seeds_to_expand(samples, rates, cfg.data.round_size, cfg.seed, round_, cfg.compose)
        writes = (cfg.generator_model or cfg.judge_model) if use else None
        verifies = cfg.judge_model if use and cfg.expand.verify != "rules" else None
        generator = self.pool.lend_chat(writes) if writes else None
        verifier = self.pool.lend_chat(verifies) if verifies else None
        metrics = expand(
            generator, verifier, [errors[sample.id] for sample in chosen] if use else [],
            (self.policy_tokens(), cfg.train.answers.prompt_tokens), cfg.seed, round_, cfg.expand,
            self.path(f"round-{round_}/expand"), self.console,
        )  # fmt: skip
        return metrics | _servers(generator_model=writes, judge_model=verifies)

    def compose_to(self, round_: int, out: str) -> Metrics:
        """Compose D_{round_+1} from the artifacts of a round into another folder, leaving the run as it is."""
        return self._compose(round_, out, join(out, "data.jsonl"))

    def _compose(self, round_: int, out: str, data: str) -> Metrics:
        """Write D_{round_+1} to `data`; what it is made of, and expanded samples that are in a benchmark, to `out`."""
        cfg, here = self.cfg, f"round-{round_}"
        by_id = {sample.id: sample for sample in self._samples(round_)}
        both_correct = {
            row["id"]
            for row in read_jsonl(self.path(here, "judge/judgements.jsonl"))
            if row["verdict"] == "both_correct"
        }
        keep = both_correct if cfg.compose.both_correct == "high_ppl" else set()
        mastered = [
            composition.Mastered(by_id[row.id], row.perplexity)
            for row in self._probes(round_)
            if row.correct or row.id in keep
        ]
        errors = [item.sample for item in self._errors(round_)]
        expanded, contamination = clean_samples(
            list(read_samples(self.path(here, "expand/expanded.jsonl"))), self._benchmarks(), cfg.contamination.action,
            join(out, "contaminated.jsonl"),
        )  # fmt: skip
        result = composition.compose(
            errors, self._pass_rates(round_), expanded, mastered, self._untrained(round_),
            cfg.data.round_size, cfg.seed, round_, cfg.compose,
        )  # fmt: skip
        return _write_composition(result, data, join(out, "parts.jsonl")) | contamination

    def _compose_static(self, round_: int) -> Stage:
        cfg = self.cfg

        def work() -> Metrics:
            pool = list(read_samples(self.path("seed/pool.jsonl")))
            result = composition.compose_static(pool, self._untrained(round_), cfg.data.round_size, cfg.seed, round_)
            return _write_composition(result, self.path(outputs[0]), self.path(outputs[1]))

        outputs = (data_file(round_ + 1), f"round-{round_}/compose/parts.jsonl")
        return Stage(f"round-{round_}/compose", ("seed/pool.jsonl", data_file(round_)), outputs, work)

    def _score(self, round_: int) -> Metrics:
        here = f"round-{round_}"
        labels = true_labels(read_samples(self.path("seed/pool.jsonl")), self.path("seed/truth.jsonl"))
        repaired = [item.sample for item in self._errors(round_)]
        judgements = list(read_jsonl(self.path(here, "judge/judgements.jsonl")))
        metrics: Metrics = {
            "label_repair": label_repair(self._samples(round_), repaired, judgements, labels),
            "noise_before": remaining_noise(self._samples(round_), labels),
            "noise_after": remaining_noise(list(read_samples(self.path(data_file(round_ + 1)))), labels),
        }
        if self.cfg.data.source == "world":
            expanded = list(read_samples(self.path(here, "expand/expanded.jsonl")))
            metrics["expansion"] = expansion_validity(expanded)
        return metrics

    # --- artifacts --------------------------------------------------------------------------------------------------

    def _samples(self, round_: int) -> list[Sample]:
        return list(read_samples(self.path(data_file(round_))))

    def _probes(self, round_: int) -> list[Probe]:
        return [Probe.from_json(row) for row in read_jsonl(self.path(f"round-{round_}/probe/probes.jsonl"))]

    def _errors(self, round_: int) -> list[ErrorSeed]:
        return [ErrorSeed.from_json(row) for row in read_jsonl(self.path(f"round-{round_}/judge/errors.jsonl"))]

    def _pass_rates(self, round_: int) -> dict[str, float]:
        """Of the samples of D_j, where the composition asks for them."""
        return pass_rates(self.path(f"round-{round_}/train")) if self.cfg.compose.uses_pass_rates else {}

    def _untrained(self, round_: int) -> list[Sample]:
        """Seeds in no data set up to D_j, in the order of the pool."""
        used = {sample.id for j in range(1, round_ + 1) for sample in self._samples(j)}
        return [sample for sample in read_samples(self.path("seed/pool.jsonl")) if sample.id not in used]

    def _clean(self, stage: Stage) -> None:
        """A done stage needs its progress file and checkpoints no more."""
        for name in ("progress.jsonl", "checkpoints"):
            remove_tree(self.path(stage.name, name))


def _servers(**models: ModelConfig | None) -> Metrics:
    """Which servers a stage asked, for the manifest."""
    return {key: model.endpoint.name for key, model in models.items() if model and model.endpoint}


def _write_composition(result: composition.Composition, data: str, parts_file: str) -> Metrics:
    parts = [part.to_json() for part in result.parts]
    write_jsonl(parts_file, parts)
    write_samples(data, result.samples)
    return {"samples": len(result.samples), "parts": parts}


def is_finished(cfg: RunConfig) -> bool:
    """Whether the run of this configuration has ended, by its manifest; touches no device."""
    manifest = Manifest(cfg.run_dir)
    return all(manifest.done(stage.name) for stage in Runner(cfg, Console(quiet=True)).stages())


def headline(metrics: Metrics) -> str:
    """The plain numbers of a stage on one line."""
    numbers = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
    return "  ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in numbers.items()
    )
