"""What trials share: which stages are the same, who gives them, and what is left alone."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from looptool_jax.config import check_kept, keep_config, load_config
from looptool_jax.data.store import DataError, file_sha256, join, lock_directory, remove, write_jsonl
from looptool_jax.loop.console import Console
from looptool_jax.loop.environment import environments
from looptool_jax.loop.ledger import Ledger
from looptool_jax.loop.manifest import Manifest
from looptool_jax.loop.metrics import kind
from looptool_jax.loop.run_config import RunConfig, flat
from looptool_jax.loop.runner import Runner
from looptool_jax.sweep.common import _FIRST, _NEVER, alike, donor, take_over
from looptool_jax.sweep.order import Task
from looptool_jax.sweep.space import Trial, read_sweep
from looptool_jax.sweep.trials import Place, Trials

from ..report.scripted_run import make_run


def config(*overrides: str):
    return load_config("micro", ["rounds=2", *overrides])


def plan(*overrides: str) -> list[str]:
    return [stage.name for stage in Runner(config(*overrides), Console(quiet=True)).stages()]


def shared(one: list[str], other: list[str]) -> str:
    """The last stage that is the same."""
    settings = [flat(asdict(config(*overrides))) for overrides in (one, other)]
    return (alike(*settings, plan(*other)) or [""])[-1]


@pytest.mark.parametrize(
    ("setting", "last"),
    [
        ("seed=1", ""), ("train.batch=4", ""), ("data.noise=0.5", ""), ("evaluate.chunk=3", ""),
        ("reward.mode=paper", ""),
        ("policy.dtype=bfloat16", ""), ("contamination.action=report", ""), ("mesh.data=2", ""),
        ("probe.chunk=3", "round-1/eval"), ("static=true", "round-1/eval"), ("judge.enabled=false", "round-1/probe"),
        ("judge_model.dtype=bfloat16", "round-1/probe"), ("generator_model={path: nano/judge}", "round-1/judge"),
        ("expand.per_error=1", "round-1/judge"), ("compose.high_ppl=random", "round-1/judge"),
        ("run_dir=elsewhere", "round-2/score"), ("tracking.to=[tensorboard]", "round-2/score"),
        ("synthesis.count=3", "round-2/score"),
    ],
)  # fmt: skip
def test_stages_are_shared_up_to_the_first_at_which_a_setting_matters(setting, last):
    assert shared([], [setting]) == last
    assert shared([setting], []) == last


def test_another_server_is_another_judge():
    """A run may be resumed beside another server; trials that name different ones are there to be compared."""
    alone = ["judge.confirm=false", "expand.verify=rules", "judge_model.path=null"]
    ways = [[*alone, f"judge_model.endpoint={{url: 'http://{host}/v1', model: m}}"] for host in "ab"]
    assert shared(*ways) == "round-1/probe"


def test_no_stage_reads_settings_before_the_one_at_which_they_are_said_to_matter(tmp_path, monkeypatch):
    """Settings that no stage is named for matter from the start; those that never matter no stage reads."""
    now, read = [""], set()
    stages, get = Runner.stages, RunConfig.__getattribute__

    def watched(stage):
        def work():
            now[0] = stage.name
            try:
                return stage.work()
            finally:
                now[0] = ""

        return replace(stage, work=work)

    def seen(cfg, name):
        if now[0]:
            read.add((now[0], name))
        return get(cfg, name)

    monkeypatch.setattr(Runner, "stages", lambda run: [watched(stage) for stage in stages(run)])
    monkeypatch.setattr(RunConfig, "__getattribute__", seen)
    make_run(tmp_path / "run", monkeypatch)
    kinds = ["seed", "train", "eval", "probe", "judge", "expand", "compose", "score"]
    assert {kind(stage) for stage, _ in read} == {
        "seed",
        "eval",
        "train",
        "probe",
        "judge",
        "expand",
        "compose",
        "score",
    }
    early = [
        (stage, name) for stage, name in read if name in _FIRST and kinds.index(kind(stage)) < kinds.index(_FIRST[name])
    ]
    assert not early
    assert not {name for _, name in read} & (_NEVER - {"run_dir"})
    assert {("round-1/judge", "judge"), ("round-2/expand", "compose"), ("seed", "contamination")} <= read


def test_a_group_of_settings_that_nobody_placed_matters_from_the_start():
    assert alike({"new.x": 1}, {"new.x": 2}, plan()) == []


def test_rounds_differ_only_in_how_many_stages_there_are():
    assert shared(["rounds=3"], ["rounds=1"]) == plan("rounds=1")[-1]


def begun(folder: Path, stages: list[str], *overrides: str) -> str:
    keep_config(config(*overrides, f"run_dir={folder}"))
    done = {}
    for stage in stages:
        file = f"{stage}/out.jsonl"
        write_jsonl(folder / file, [{"stage": stage}])
        done[stage] = {"inputs": {}, "outputs": {file: file_sha256(folder / file)}, "metrics": {"of": stage}}
    (folder / "manifest.json").write_text(json.dumps({"stages": done}))
    write_jsonl(folder / "ledger.jsonl", [{"stage": stage, "seconds": 2.0, "tokens": 3} for stage in stages])
    write_jsonl(folder / "environment.jsonl", [{"devices": {"kind": "cpu"}}])
    return str(folder)


def trial(name: str, **settings: str) -> Trial:
    return Trial(name, name, {key.replace("__", "."): value for key, value in settings.items()})


def test_who_has_done_most_gives_and_the_rest_is_left_to_be_done(tmp_path):
    done = plan()
    others = {
        trial("static", static="true"): begun(tmp_path / "static", plan("static=true"), "static=true"),
        trial("no-jglv", judge__enabled="false"): begun(tmp_path / "no-jglv", done, "judge.enabled=false"),
        trial("unfinished"): begun(tmp_path / "unfinished", done[:3]),
        trial("other-seed", seed="9"): begun(tmp_path / "other-seed", done, "seed=9"),
    }
    mine = trial("random", compose__high_ppl="random")
    found = donor(mine, config("compose.high_ppl=random"), others)
    assert found is not None
    giver, stages = found
    assert giver.name == "no-jglv" and stages[-1] == "round-1/probe"
    take_over(others[giver], str(tmp_path / "mine"), stages)
    manifest = json.loads((tmp_path / "mine/manifest.json").read_text())["stages"]
    assert [*manifest] == stages and manifest["round-1/probe"]["metrics"] == {"of": "round-1/probe"}
    assert (tmp_path / "mine/round-1/probe/out.jsonl").read_text() == '{"stage": "round-1/probe"}\n'
    assert not (tmp_path / "mine/round-1/judge").exists()
    assert len((tmp_path / "mine/ledger.jsonl").read_text().splitlines()) == len(stages)


def test_a_directory_whose_run_has_other_settings_than_its_name_says_gives_nothing(tmp_path):
    """As after the base configuration was changed."""
    others = {trial("full"): begun(tmp_path / "full", plan(), "train.batch=4")}
    assert donor(trial("random", compose__high_ppl="random"), config("compose.high_ppl=random"), others) is None


def test_an_artifact_that_is_gone_is_told_and_nothing_has_begun(tmp_path):
    folder = begun(tmp_path / "full", plan())
    (tmp_path / "full/round-1/train/out.jsonl").unlink()
    with pytest.raises(DataError, match=r"round-1/train/out\.jsonl"):
        take_over(folder, str(tmp_path / "mine"), plan()[:4])
    assert not (tmp_path / "mine/manifest.json").exists()


def test_an_artifact_that_was_changed_is_told_and_nothing_has_begun(tmp_path):
    """Its copy would keep the trial from ever starting: a run checks what its manifest says."""
    folder = begun(tmp_path / "full", plan())
    (tmp_path / "full/round-1/train/out.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"full/round-1/train/out\.jsonl: changed since stage round-1/train wrote it"):
        take_over(folder, str(tmp_path / "mine"), plan()[:4])
    assert not (tmp_path / "mine/manifest.json").exists()


def test_a_run_that_is_about_to_begin_is_left_alone(tmp_path):
    folder, mine = begun(tmp_path / "full", plan()), str(tmp_path / "mine")
    with lock_directory(mine), pytest.raises(DataError, match="mine"):
        take_over(folder, mine, plan()[:4])
    Manifest(begun(tmp_path / "mine", plan()[:1])).check()
    with pytest.raises(DataError, match="a run has begun there"):
        take_over(folder, mine, plan()[:4])
    assert [*Manifest(mine).stages] == plan()[:1]


def test_adapters_in_a_bucket_that_name_a_warmed_up_base_by_its_url_stay_with_it(tmp_path):
    others = {trial("full"): begun(tmp_path / "full", plan("warmup={}", "train.lora={}"), "warmup={}", "train.lora={}")}
    mine = trial("random", compose__high_ppl="random")
    for folder, last in ((str(tmp_path / "mine"), "round-1/judge"), ("gs://bucket/mine", "eval-0")):
        cfg = config("compose.high_ppl=random", "warmup={}", "train.lora={}", f"run_dir={folder}")
        found = donor(mine, cfg, others)
        assert found is not None and found[1][-1] == last


def test_a_trial_begins_behind_what_others_have_done_or_says_why_not(tmp_path):
    sweep = read_sweep(None, "micro", ["rounds=2", "compose.high_ppl=top,random"])
    first, second = sweep.trials()
    folder = tmp_path / "trials" / first.name
    begun(folder, plan(), *first.overrides)

    def said(place: Place) -> str:
        return Trials(sweep, str(tmp_path), Console(quiet=True), place=place)._taken_over(Task(second))

    assert said(Place(0, several=True)) == ""  # the others' processes wait for this one's already
    data = (folder / "seed/out.jsonl").read_bytes()
    (folder / "seed/out.jsonl").write_text("")
    assert said(Place()).startswith(", without what others have done: ")
    (folder / "seed/out.jsonl").write_bytes(data)
    assert said(Place()) == " behind round-1/judge, as high_ppl=top has done it"
    check_kept(sweep.trial_config(second, str(tmp_path / "trials" / second.name)))
    assert said(Place()) == ""  # it has begun


def test_stages_go_to_a_bucket_and_come_from_one(tmp_path, bucket):
    stages = plan()[:4]
    take_over(begun(tmp_path / "full", plan()), f"{bucket}/there", stages)
    take_over(f"{bucket}/there", str(tmp_path / "back"), stages)
    for run in (f"{bucket}/there", str(tmp_path / "back")):
        remove(join(run, "manifest.json"))  # as when the sweep was killed before it; then another run gives less
        take_over(str(tmp_path / "full"), run, stages)
    for run in (f"{bucket}/there", str(tmp_path / "back")):
        Manifest(run).check()
        assert [*Manifest(run).stages] == stages
        assert {
            stage: cost.seconds for stage, cost in Ledger(join(run, "ledger.jsonl")).costs().items()
        } == dict.fromkeys(stages, 2.0)
        assert environments(join(run, "environment.jsonl")) == [{"devices": {"kind": "cpu"}}]
