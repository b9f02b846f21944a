"""Preflight: which programs a run compiles and what lies beside them; programs compiled for TPUs that are not there."""

import importlib.util
import json
import math
from dataclasses import replace
from pathlib import Path

import jax
import pytest

import looptool_jax
from looptool_jax.config import load_config, shipped_configs
from looptool_jax.loop import preflight
from looptool_jax.loop.phases import Memory, bytes_of, phases
from looptool_jax.loop.preflight import Advice, Report, advise, change, compile_phase, search
from looptool_jax.models import decoder
from looptool_jax.models.config import DecoderConfig, ModelError
from looptool_jax.models.lora import LoraConfig, init_adapters, save_adapters
from looptool_jax.models.presets import PRESETS
from looptool_jax.parallel.collectives import collectives
from looptool_jax.parallel.mesh import ShardingError
from looptool_jax.parallel.topology import available_hbm, parse, slices

GIB = 2**30
NANO = Path(looptool_jax.__file__).parent / "nano" / "policy"
needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")


def found(cfg, devices=None):
    return {phase.name: phase for phase in phases(cfg, devices or jax.devices())}


def test_phases_of_a_round():
    names = list(found(load_config("micro")))
    rollout, probe = ([f"{name} {step}" for step in ("prefill", "insert", "decode")] for name in ("rollout", "probe"))
    expected = ["weights to rollout", *rollout, "GRPO gradient", "GRPO update", "probe check", *probe, "probe guesses"]
    # Engines of one model that are nowhere larger and draw tokens alike are compiled once: evaluation is probing's,
    # verification is confirmation's.
    judge = [f"judge {step}" for step in ("prompts", "insert", "decode")]
    confirm = [f"confirm {step}" for step in ("check", "prefill", "decode", "guesses")]
    assert names == [*expected, *judge, *confirm, "generate decode"]
    held = found(load_config("micro", ["expand.grammar=true"]))
    assert [name for name in held if name not in names] == ["generate among"]


def test_a_pass_is_left_out_only_behind_one_that_is_as_large():
    large = [f"probe.answers.{name}=1024" for name in ("prompt_tokens", "answer_tokens", "slots")]
    judge_is_policy = [f"{model}.path={NANO}" for model in ("policy", "judge_model")]
    names = list(found(load_config("micro", [*judge_is_policy, *large, "probe.drafts=false"])))
    assert names[6:9] == ["probe prefill", "probe insert", "probe decode"]
    assert "judge prompts" in names and "judge insert" not in names
    assert names.index("confirm check") > names.index("judge decode")


def test_a_model_behind_a_server_needs_nothing_here():
    endpoint = "{path: null, endpoint: {url: http://127.0.0.1:1/v1, model: m}}"
    whole = found(load_config("micro"))
    generated = found(load_config("micro", [f"generator_model={endpoint}"]))
    assert [*generated] == [name for name in whole if not name.startswith("generate")]
    remote = [f"judge_model={endpoint}", "judge.confirm=false", "expand.verify=verdict"]
    judged = found(load_config("micro", remote))
    assert [*judged] == [name for name in whole if not name.startswith(("judge", "confirm", "generate"))]
    own_generator = found(load_config("micro", [*remote, "generator_model={path: nano/judge, format: qwen3}"]))
    assert [name for name in own_generator if name not in judged] == [
        "generate prompts",
        "generate insert",
        "generate decode",
    ]


def test_several_updates_score_the_old_policy_first():
    names = list(found(load_config("micro", ["train.updates=2", "train.batch=16", "static=true"])))
    assert names[-3:] == ["old log-probs", "GRPO gradient", "GRPO update"]
    assert not any(name.startswith("judge") for name in names)


def test_what_waits_on_the_host_takes_no_device_memory():
    state = "master weights and optimiser state"
    here = found(load_config("micro"))["rollout decode"].residents[state]
    waiting = found(load_config("micro", ["train.offload=true"]))["rollout decode"].residents[state]
    assert here.device == waiting.host > 0
    assert here.host == waiting.device == 0


def test_bytes_are_those_of_one_device():
    cfg = load_config("micro")
    weights = found(cfg)["GRPO update"].arguments
    shapes = decoder.abstract_params(decoder.DecoderConfig.from_pretrained(NANO))
    one = sum(math.prod(x.shape) * 4 for x in jax.tree.leaves(shapes))
    whole = 4 * one  # weights, two moments and gradients, float32
    assert whole / 8 <= weights.device < 1.1 * whole / 8
    assert bytes_of(()) == Memory()


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["train.answers.slots=6"], ShardingError, r"slots of 6 rows is not divisible by .* = 1 x 8 x 1"),
        (["mesh.tensor=8"], ShardingError, r"axis \w+ of size \d+ is not divisible by mesh axis tensor=8"),
        (["mesh.tensor=3"], ShardingError, r"tensor=3 does not fit 8 devices|tensor=3, .* does not fit 8 devices"),
        (["policy.path=/no/such/model"], ModelError, r"/no/such/model"),
    ],
)
def test_what_does_not_divide_is_told_before_anything_is_compiled(overrides, error, message):
    with pytest.raises(error, match=message):
        phases(load_config("micro", overrides), jax.devices())


def test_adapters_have_the_sizes_of_their_base(tmp_path):
    model = DecoderConfig.from_pretrained(NANO)
    sizes = LoraConfig(rank=2, targets=("q",))
    save_adapters(init_adapters(model, sizes, jax.random.key(0)), sizes, tmp_path, "nano/policy")
    expected, phases_of = found(load_config("micro")), found(load_config("micro", [f"policy.path={tmp_path}"]))
    assert phases_of["GRPO update"].arguments == expected["GRPO update"].arguments


def test_settings_are_changed_in_place():
    cfg = load_config("micro", ["mesh.fsdp=8"])
    assert change(cfg, "train.answers.slots", 4).train.answers.slots == 4
    assert change(cfg, "train.answers.slots", 4).train.grpo == cfg.train.grpo
    mesh = change(cfg, "mesh.tensor", 2).mesh
    assert (mesh.fsdp, mesh.tensor) == (4, 2)


def test_a_report_adds_up():
    report = Report("x", 5, 1, 2, 4, 3, 7, 11, {}, 0.0)
    assert report.total == 11 and report.fits
    assert not replace(report, limit=10).fits and replace(report, limit=None).fits


def test_configurations_for_slices_have_known_models():
    named = {name: file.read_text().splitlines()[0] for name, file in shipped_configs().items()}
    for name in ("colab_v5e1", "colab_v6e1", "v5e8_4b", "paper_8b", "paper_8b_parity", "paper_32b"):
        assert parse(named[name].split()[2].rstrip(":,"))
        cfg = load_config(name)
        assert cfg.policy.path in PRESETS and cfg.judge_model.path in PRESETS


# --- compiled for TPUs ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def colab():
    devices = parse("v5e-1").devices()
    return load_config("colab_v5e1"), devices, available_hbm(devices[0])


@pytest.mark.aot
@needs_libtpu
def test_decoding_fits_a_small_tpu_and_copies_no_cache(colab):
    cfg, devices, limit = colab
    phase = found(cfg, devices)["rollout decode"]
    report = compile_phase(phase, limit)
    assert report.fits and report.limit == limit
    assert report.aliased >= 0.99 * phase.caches  # written in place
    assert report.temporaries < phase.caches / 8
    assert report.collectives == {}


@pytest.mark.aot
@needs_libtpu
def test_a_training_step_fits_a_small_tpu_and_updates_its_state_in_place(colab):
    cfg, devices, limit = colab
    gradient, update = (found(cfg, devices)[f"GRPO {name}"] for name in ("gradient", "update"))
    report = compile_phase(gradient, limit)
    assert report.fits
    assert report.aliased >= 0.49 * gradient.arguments.device  # parameters and the sums of their gradients
    report = compile_phase(update, limit)
    assert report.fits
    assert report.aliased >= 0.74 * update.arguments.device  # the state, not the gradients beside it


@pytest.mark.aot
@needs_libtpu
def test_what_is_too_large_gets_a_setting_that_was_compiled(colab):
    cfg, devices, limit = colab
    cfg = change(cfg, "train.answers.slots", 64)
    phase = found(cfg, devices)["rollout decode"]
    report = compile_phase(phase, limit)
    assert not report.fits and report.total > 20 * GIB
    advice = advise(cfg, devices, phase, report)
    assert advice.key == "train.answers.slots" and advice.old == 64
    assert 8 <= advice.new < 32 and 0.8 * limit < advice.total <= limit
    assert str(advice).startswith("set train.answers.slots 64 -> ")
    assert str(Advice(None)).startswith("no setting that was tried is enough")


@pytest.mark.aot
@needs_libtpu
def test_tensor_parallel_decoding_gathers_no_weights(tmp_path):
    sizes = replace(PRESETS["Qwen/Qwen3-8B"], num_layers=4)
    (tmp_path / "config.json").write_text(json.dumps(sizes.to_hf()))
    model = [f"policy.path={tmp_path}", f"judge_model.path={tmp_path}", "mesh.fsdp=2", "mesh.tensor=4"]
    cfg = load_config("colab_v5e1", [*model, "train.answers.slots=16"])
    phase = found(cfg, parse("v5e:2x4").devices())["rollout decode"]
    compiled = phase.lower().compile()
    gathered = [one for one in collectives(compiled.as_text()) if one.kind == "all-gather"]
    smallest = 2 * sizes.hidden_size * sizes.num_kv_heads * sizes.head_dim  # the keys' matrix, bfloat16
    assert all(one.bytes < smallest for one in gathered), gathered
    assert compiled.memory_analysis().alias_size_in_bytes >= 0.99 * phase.caches


@pytest.mark.aot
@needs_libtpu
def test_search_rules_slices_out_without_compiling():
    said = []
    cfg = load_config("colab_v5e1", ["mesh.tensor=8", "train.answers.slots=16"])
    assert search(cfg, slices("v5e")[:2], said.append) is None
    assert said[0].startswith("v5e-1 (1x1, 1 chip): mesh") and "does not fit 1 devices" in said[0]
    assert "does not fit 4 devices" in said[1]


@pytest.mark.aot
@needs_libtpu
def test_search_returns_the_smallest_slice_on_which_all_fits(monkeypatch):
    def as_if_compiled(phase, limit):
        large = phase.name == "GRPO update" and jax.tree.leaves(phase.arguments)[0] > 0.6 * GIB
        return Report(phase.name, limit + 1 if large else limit, 0, 0, 0, 0, 0, limit, {}, 0.0)

    monkeypatch.setattr(preflight, "compile_phase", as_if_compiled)
    said = []
    cfg = load_config("colab_v5e1", ["mesh.tensor=4", "train.answers.slots=16"])
    found = search(cfg, slices("v5e"), said.append)
    assert found == parse("v5e-16")  # 6.7 GiB of state over 4 chips, 8, 16
    assert "does not fit 1 devices" in said[0]
    assert sum("TOO LARGE" in line for line in said) == 2
