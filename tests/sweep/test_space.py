"""What varies in a sweep: values as they are written, files, names, and what a folder holds a command against."""

from __future__ import annotations

import re

import pytest
import yaml

from looptool_jax.config import ConfigError, shipped_sweeps
from looptool_jax.data.store import write_text
from looptool_jax.loop import compose as composition
from looptool_jax.sweep.space import check, keep_sweep, kept_sweep, read_sweep
from looptool_jax.sweep.values import Choices, Distribution, SweepError, read_values
from looptool_jax.toolcall import Sample
from looptool_jax.world import generate


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1", ("1",)),
        ("1e-4,3e-4", ("0.0001", "0.0003")),
        ("0.0001, 2.0 ,.5", ("0.0001", "2.0", "0.5")),
        ("range(3)", ("0", "1", "2")),
        ("range(1, 9, 3)", ("1", "4", "7")),
        ("range(3,0,-1)", ("3", "2", "1")),
        ("[1, 2]", ("[1, 2]",)),
        ("[1,2],[3,4]", ("[1,2]", "[3,4]")),
        ("{rank: 4, alpha: 8},null", ("{rank: 4, alpha: 8}", "null")),
        ("'a,b',c", ("'a,b'", "c")),
        ("gs://bucket/a,gs://bucket/b", ("gs://bucket/a", "gs://bucket/b")),
        ("true,false", ("true", "false")),
        ("\"f(1)\"", ("\"f(1)\"",)),
    ],
)  # fmt: skip
def test_values_of_a_grid(text, values):
    assert read_values("key", text) == Choices(values)


def test_values_that_are_searched_or_move_together():
    assert read_values("key", "loguniform(1e-6, 1e-4)") == Distribution("loguniform", ("1e-06", "0.0001"))
    assert read_values("key", "int(2,16)") == Distribution("int", ("2", "16"))
    assert read_values("key", "choice(top,random)") == Distribution("choice", ("top", "random"))
    assert read_values("key", "zip(8,16)") == Choices(("8", "16"), zipped=True)
    assert read_values("key", [1e-4, "a,b", True, None]) == Choices(("0.0001", "a,b", "true", "null"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("range(3", "'(' is not closed"),
        ("3)", "')' closes nothing"),
        ("[1,2)", "')' closes nothing"),
        ("'a", '"\'" is not closed'),
        ("1,,2", "empty value"),
        ("", "empty value"),
        ("1,1", "given twice"),
        ("1e-4,0.0001", "given twice"),
        ("range()", "whole numbers"),
        ("range(a)", "whole numbers"),
        ("range(1,2,3,4)", "whole numbers"),
        ("range(0,5,0)", "the step is 0"),
        ("range(5,1)", "holds 0 numbers"),
        ("range(1000000000)", "holds 1000000000 numbers"),
        ("range(9999999999999999999999)", "whole numbers"),
        ("uniform(2,1)", "low must be below high"),
        ("uniform(1)", "two numbers"),
        ("uniform(1,nan)", "two numbers"),
        ("uniform(0,1e999)", "low must be below high"),
        ("loguniform(0,1)", "above 0"),
        ("int(1,2.5)", "two numbers"),
        ("__import__('os').system('true')", "closes nothing"),
        ("__import__('os')", "no such function"),
        ("open(/etc/passwd)", "no such function"),
        ("eval(1)", "no such function"),
        ("choice(a,a)", "given twice"),
        ("(" * 100_000, "is not closed"),
    ],
)
def test_what_cannot_be_values_is_one_line(text, words):
    with pytest.raises(SweepError) as caught:
        read_values("key", text)
    assert words in str(caught.value) and str(caught.value).startswith("key: ")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_grid_zip_and_seeds_make_trials():
    sweep = read_sweep(None, "micro", [
        "train.optimizer.learning_rate=1e-4,3e-4", "seed=range(2)", "train.batch=zip(4,8)", "train.group=zip(8,4)",
        "rounds=1",
    ])  # fmt: skip
    trials = check(sweep)
    assert [trial.name for trial in trials[:3]] == [
        "learning_rate=0.0001,batch=4,group=8,seed=0",
        "learning_rate=0.0001,batch=4,group=8,seed=1",
        "learning_rate=0.0001,batch=8,group=4,seed=0",
    ]
    assert len(trials) == 8 and len({trial.group for trial in trials}) == 4
    cfg = sweep.trial_config(trials[2], "runs/x")
    assert (cfg.train.optimizer.learning_rate, cfg.train.batch, cfg.train.group, cfg.seed) == (1e-4, 8, 4, 0)
    assert (cfg.rounds, cfg.run_dir) == (1, "runs/x")


KEYS = [f"{model}.{key}" for model in ("policy", "judge_model") for key in ("format", "dtype", "attention")]


def test_names_are_stable_and_folders():
    sweep = read_sweep(
        None, "micro", ["policy.path=nano/policy,../../etc", "judge_model.path=nano/judge,a b", "seed=3,4"]
    )
    names = [trial.name for trial in sweep.trials()]
    assert names[0] == "policy.path=nano-policy~43dc16,judge_model.path=nano-judge~4ccd35,seed=3"
    assert len(set(names)) == 8 and all(re.fullmatch(r"[A-Za-z0-9._+=,~-]+", name) for name in names)
    assert not any("/" in name or name.startswith(".") for name in names)
    long = read_sweep(
        None, "micro", [f"policy.path={'x' * 90},y", *(f"{key}={'z' * 40},y" for key in KEYS), "seed=0,1"]
    )
    assert max(len(trial.name) for trial in long.trials()) == 180 + len(",seed=0")
    assert len({trial.name for trial in long.trials()}) == 2**8
    more = read_sweep(None, "micro", [
        "policy.path=nano/policy,../../etc,third", "judge_model.path=nano/judge,a b", "seed=range(9)",
    ])  # fmt: skip
    assert set(names) <= {trial.name for trial in more.trials()}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train.bach=1,2"], "train.bach: no such setting; did you mean train.batch"),
        (["train.batch=4,many"], "train.batch"),
        (["train.batch"], "expected key=value"),
        (["run_dir=a,b"], "run_dir: every trial has one of its own"),
        ([], "nothing varies"),
        (["rounds=1"], "nothing varies"),
        (["train.batch=zip(4,8)", "train.group=zip(4,8,16)"], "equally many values"),
        (["seed=range(200)", "train.batch=range(4,200)"], "39200 trials; at most 2000"),
        (["seed=loguniform(1,10)"], "belongs into the grid"),
        (["seed=1 # ../../x,2"], "seed: expected whole numbers, found '1 # ../../x'"),  # which YAML reads as 1
        (["seed=1_0,10"], "seed: expected whole numbers, found '1_0'"),  # the same seed twice
        (["train.batch=4,8", "train.group=int(2,8)"], "search: can be crossed with seeds"),
        (["data.heldout=0", "train.optimizer.learning_rate=loguniform(1e-6,1e-4)"], "data.heldout=0"),
        (["train.optimizer.learning_rate=uniform(-1,1)"], "optimizer.learning_rate: more than 0"),
        (["compose.high_ppl=choice(top,best)"], "compose.high_ppl"),
    ],
)  # fmt: skip
def test_a_sweep_that_cannot_run_says_so_before_anything_runs(arguments, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        check(read_sweep(None, "micro", arguments))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("config: micro\ngird: {seed: [1]}", "gird: no such part of a sweep; there are config"),
        ("- 1", "expected keys and values"),
        ("grid: [1, 2]", "grid: expected keys and values"),
        ("grid: {seed: []}", "seed: an empty list"),
        ("grid: {train.batch: 'loguniform(1,2)'}", "belongs into search.space"),
        ("variants: {../x: {}}", "variant '../x': a name is of letters"),
        ("prune: yes", "prune: expected off or median"),
        ("config: [micro]", "config: expected the name"),
        ("search: {space: {}}", "nothing to search"),
        ("search: {method: cmaes, space: {train.batch: 'int(1,8)'}}", "method: expected tpe or random"),
        ("search: {trials: many, space: {train.batch: 'int(1,8)'}}", "trials: expected a whole number"),
        ("search: {metric: loss, space: {train.batch: 'int(1,8)'}}", "metric: expected accuracy or gain or reward"),
        ("variants: {a: {train.batch: 4}}\ngrid: {train.batch: [4, 8]}", "is varied twice"),
        ("variants: {a: {}}\nprune: median", "variants are there to be compared"),
        ("settings: {seed: 1}\ngrid: {seed: [1, 2]}", "is varied, and has a value for all"),
        ("grid: {rounds: [1, 2]}\nprune: median", "rounds cannot vary"),
        ("a: &x [1]\nb: *x", "aliases"),
        ("grid: {seed: [1], seed: [2]}", "occurs twice"),
        ("grid: {seed: !!python/object/apply:os.system ['true']}", "not YAML"),
    ],
)
def test_a_file_that_is_no_sweep_is_one_line(text, words, tmp_path):
    write_text(tmp_path / "sweep.yaml", text)
    with pytest.raises(SweepError) as caught:
        check(read_sweep(str(tmp_path / "sweep.yaml")))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_sweep_is_found_by_name_or_path():
    with pytest.raises(ConfigError, match="ablation: no such sweep; there are ablations, "):
        read_sweep("ablation")
    with pytest.raises(ConfigError, match="no such sweep"):
        read_sweep("gone.yaml")


@pytest.mark.parametrize("name", sorted(shipped_sweeps()))
def test_every_shipped_sweep_is_one_and_is_kept(name, tmp_path):
    sweep = read_sweep(name)
    check(sweep)
    keep_sweep(sweep, str(tmp_path))
    kept = kept_sweep(str(tmp_path))
    assert [vars(trial) for trial in kept.trials()] == [vars(trial) for trial in sweep.trials()]
    assert kept.search == sweep.search and kept.prune == sweep.prune
    keep_sweep(sweep, str(tmp_path))


def test_more_may_be_added_to_a_sweep_and_nothing_else_changed(tmp_path):
    def sweep(*arguments: str, name: str | None = None, **search: object):
        return read_sweep(name, None if name else "micro", arguments, **search)

    out = str(tmp_path / "grid")
    keep_sweep(sweep("train.batch=4,8", "seed=range(2)", "rounds=1"), out)
    keep_sweep(sweep("train.batch=8,16,4", "seed=range(5)", "rounds=1"), out)
    for changed, words in (
        (("train.batch=4,8,16", "seed=range(2)", "rounds=1"), "seed differs"),
        (("train.batch=4,8", "seed=range(5)", "rounds=1"), "train.batch differs"),
        (("train.batch=4,8,16", "seed=range(5)", "rounds=2"), "rounds differs"),
        (("train.batch=4,8,16", "seed=range(5)", "rounds=1", "train.group=2,4"), "train.group differs"),
    ):
        with pytest.raises(SweepError, match=words):
            keep_sweep(sweep(*changed), out)
    zipped = str(tmp_path / "zipped")
    keep_sweep(sweep("train.batch=zip(4,8)", "train.group=zip(2,4)"), zipped)
    keep_sweep(sweep("train.group=zip(2,4,8)", "train.batch=zip(4,8,16)"), zipped)  # named in another order
    with pytest.raises(SweepError, match="zip differs"):
        keep_sweep(sweep("train.group=zip(4,2,8)", "train.batch=zip(4,8,16)"), zipped)
    searched = str(tmp_path / "searched")
    keep_sweep(sweep("train.group=int(2,8)", trials=3), searched)
    keep_sweep(sweep("train.group=int(2,8)", trials=5), searched)
    with pytest.raises(SweepError, match=r"search\.trials differs"):
        keep_sweep(sweep("train.group=int(2,8)", trials=4), searched)
    with pytest.raises(SweepError, match="search differs"):
        keep_sweep(sweep("train.group=int(2,9)", trials=5), searched)
    write_text(tmp_path / "searched/sweep.yaml", "grid: [")
    with pytest.raises(SweepError, match=r"sweep\.yaml.*not YAML|not YAML.*restore the file"):
        keep_sweep(sweep("train.group=int(2,8)", trials=5), searched)


def composed(cfg, round_: int) -> int:
    """Samples of D_{round_+1} when everything is plenty."""
    size, pool = cfg.data.round_size, generate("train", 8, seed=0)

    def many(kind: str) -> list[Sample]:
        return [
            Sample(f"{kind}-{i}", s.tools, s.messages, s.target) for i in range(size) for s in pool[i % 8 : i % 8 + 1]
        ]

    if cfg.static:
        result = composition.compose_static(many("pool"), many("pool"), size, cfg.seed, round_)
    else:
        mastered = [composition.Mastered(sample, 1.5) for sample in many("mastered")]
        result = composition.compose(
            many("error"), {}, many("expanded"), mastered, many("new"), size, cfg.seed, round_, cfg.compose
        )
    return len(result.samples)


def test_the_ablations_train_on_as_many_samples_but_the_one_that_drops_a_part():
    sweep = read_sweep("ablations")
    assert {"full", "static", "no-hppl", "no-jglv", "no-edde", "hppl-replace", "error-repeat"} <= {*sweep.variants}
    sizes = {}
    for trial in sweep.trials()[:: len(sweep.seeds)]:
        cfg = sweep.trial_config(trial, "runs/x")
        sizes[trial.group] = [composed(cfg, round_) for round_ in (1, 2)]
        same = (cfg.data.round_size, cfg.rounds, cfg.train.batch, cfg.train.epochs, cfg.train.group)
        assert same == (320, 2, 16, 1, 8)
    full = {name: found for name, found in sizes.items() if name != "no-edde"}
    assert set(map(tuple, full.values())) == {(320, 320)}
    assert sizes["no-edde"] == [320 - round(320 * 0.3587), 320 - round(320 * 0.4407)]


def test_a_kept_sweep_is_plain_yaml(tmp_path):
    keep_sweep(read_sweep("ablations"), str(tmp_path))
    kept = yaml.safe_load((tmp_path / "sweep.yaml").read_text())
    assert kept["config"] == "quickstart" and kept["variants"]["static"] == {"static": "true"}
