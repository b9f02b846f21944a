"""The configuration of a whole run, composed from the dataclasses of the stages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from looptool_jax.data.contamination import ContaminationConfig
from looptool_jax.data.files import check_bucket
from looptool_jax.evaluation.heldout import EvalConfig
from looptool_jax.inference.lm import ModelConfig
from looptool_jax.limits import at_least
from looptool_jax.loop.compose import ComposeConfig
from looptool_jax.loop.expand import ExpandConfig
from looptool_jax.loop.judge import JudgeConfig
from looptool_jax.loop.probe import ProbeConfig
from looptool_jax.loop.reward import RewardConfig
from looptool_jax.loop.synthesis.config import SynthesisConfig
from looptool_jax.loop.synthesize import DataConfig
from looptool_jax.loop.tracking import TrackingConfig
from looptool_jax.loop.train import TrainConfig
from looptool_jax.loop.warmup import WARMUP_SEEDS, WarmupConfig
from looptool_jax.parallel.mesh import MeshConfig


@dataclass
class RunConfig:
    """Everything `looptool run` can be told; `synthesis` is what `looptool synthesize` can, `tracking` says who is told
    of the run.

    run_dir: where artifacts go, a local folder or gs://bucket/folder; the same command there resumes. seed: all random
    draws are keyed by it and by what they are for. rounds: of training, J in the paper. finish_loop: also probe, judge,
    expand and compose after the last round. static: train every round on seeds only (the paper's baseline): nothing is
    probed, judged or expanded. policy: the model that learns. judge_model: compares labels and answers, and verifies
    new samples. generator_model: writes new samples; null: the judge model does. warmup: supervised training on
    D_seed's targets before round 1; null: none.
    """

    run_dir: str = "runs/run"
    seed: int = 0
    rounds: int = 4
    finish_loop: bool = False
    static: bool = False
    policy: ModelConfig = field(default_factory=ModelConfig)
    judge_model: ModelConfig = field(default_factory=ModelConfig)
    generator_model: ModelConfig | None = None
    mesh: MeshConfig = field(default_factory=MeshConfig)
    data: DataConfig = field(default_factory=DataConfig)
    contamination: ContaminationConfig = field(default_factory=ContaminationConfig)
    warmup: WarmupConfig | None = None
    train: TrainConfig = field(default_factory=TrainConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    expand: ExpandConfig = field(default_factory=ExpandConfig)
    compose: ComposeConfig = field(default_factory=ComposeConfig)
    evaluate: EvalConfig = field(default_factory=EvalConfig)
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        check_bucket(self.run_dir)
        at_least("rounds", self.rounds, 1)
        if not 0 <= self.seed < WARMUP_SEEDS:
            raise ValueError(f"seed: from 0 to {WARMUP_SEEDS - 1}, found {self.seed} (seeds above are the warm-up's)")
        if self.data.round_size < self.train.batch:
            raise ValueError(f"data.round_size={self.data.round_size} is smaller than train.batch={self.train.batch}")
        self._check_endpoints()
        longest = self.train.answers.prompt_tokens
        for stage, answers in (("probe", self.probe.answers), ("evaluate", self.evaluate.answers)):
            if answers.prompt_tokens < longest:
                raise ValueError(
                    f"{stage}.answers.prompt_tokens={answers.prompt_tokens} is smaller than "
                    f"train.answers.prompt_tokens={longest}, the length up to which samples are taken"
                )

    def _check_endpoints(self) -> None:
        """A server replies to chats. What needs token ids and log-probabilities is left to models on the mesh."""
        if self.policy.endpoint:
            raise ValueError("policy.endpoint: the policy is trained here; set policy.path")
        if self.expand.grammar and (self.generator_model or self.judge_model).endpoint:
            raise ValueError(
                "expand.grammar=true: decoding among allowed tokens needs a generator on the mesh; set "
                "expand.grammar=false, or generator_model.path in place of the endpoint"
            )
        if self.judge_model.endpoint is None:
            return
        for refused, setting, instead in (
            (self.judge.verdicts == "scored", "judge.verdicts=scored", "judge.verdicts=written"),
            (self.judge.confirm, "judge.confirm=true", "judge.confirm=false"),
            (self.expand.verify == "answer", "expand.verify=answer", "expand.verify=verdict"),
        ):
            if refused:
                raise ValueError(
                    f"{setting}: needs token ids and log-probs, which judge_model.endpoint does not give; set "
                    f"{instead}, or judge_model.path in place of the endpoint"
                )


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Settings by their full keys, such as train.batch."""
    if not isinstance(value, dict):
        return {prefix: list(value) if isinstance(value, tuple) else value}
    return {
        key: item
        for name, part in value.items()
        for key, item in flat(part, f"{prefix}.{name}" if prefix else str(name)).items()
    }
