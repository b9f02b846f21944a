"""Configuration: composition, overrides, and errors that name the right key."""

import pytest

from looptool_jax.config import ConfigError, keep_command, keep_config, load_config, shipped_configs
from looptool_jax.data.store import Progress, write_text
from looptool_jax.toolcall.formats import FORMATS
from looptool_jax.training.grpo import GrpoConfig


@pytest.mark.parametrize("name", sorted(shipped_configs()))
def test_every_shipped_configuration_loads(name):
    assert load_config(name).run_dir == f"runs/{name}"


@pytest.mark.parametrize("name", sorted(shipped_configs()))
def test_every_shipped_configuration_names_the_chat_formats(name):
    cfg = load_config(name)
    assert {cfg.policy.format, cfg.judge_model.format} <= {*FORMATS}


def test_overrides_reach_nested_keys_and_keep_types():
    cfg = load_config("micro", ["train.batch=4", "train.grpo.clip_high=0.3", "run_dir=/tmp/x", "judge.enabled=false"])
    assert (cfg.train.batch, cfg.train.grpo.clip_high, cfg.run_dir, cfg.judge.enabled) == (4, 0.3, "/tmp/x", False)
    assert isinstance(cfg.train.grpo, GrpoConfig)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.bach=4", "train.bach: no such setting; did you mean train.batch"),
        ("trian.batch=4", "did you mean train.batch"),
        ("train.learning_rate=1", "did you mean train.optimizer.learning_rate"),
        ("lerning_rate=1", "train.optimizer.learning_rate"),
        ("train.grpo.micro_batches=2", "did you mean train.grpo.micro_tokens"),
        ("optimizer.learning_rate=1e-3", "train.optimizer.learning_rate"),
        ("train.lora.rnk=3", "did you mean train.lora.rank?"),
        ("judge.zzz=3", "there are answers, chunk, confirm"),
        ("policy.format=", "policy.format: no value is given"),
        ("train.optimizer=3", "train.optimizer=3: a group of settings cannot be set to one value"),
        ("train.lora={rank: 4", "did not find expected ',' or '}'"),
        ("train.batch=many", "train.batch"),
        ("judge.prompt=short", "compact"),
        ("compose.high_ppl=best", "compose.high_ppl"),
        ("train.batch", "key=value"),
        ("data.noise=1.5", "data.noise"),
        ("probe.answers.prompt_tokens=128", "train.answers.prompt_tokens"),
        ("evaluate.answers.prompt_tokens=128", "train.answers.prompt_tokens"),
        ("train.grpo.micro_tokens=495", "train.grpo.micro_tokens: 495 is less than the 496 tokens"),
        ("warmup.micro_batches=3", "warmup.micro_batches"),
        ("warmup.warmup_share=1", "warmup.warmup_share"),
        ("tracking.to=tensorboard", "tracking.to: expected a list, such as 'tracking.to=[a, b]'"),
        ("tracking.to=[tensorbord]", "tracking.to: expected some of tensorboard, wandb, trackio, mlflow"),
    ],
)
def test_a_wrong_override_is_one_line_that_helps(override, words):
    with pytest.raises(ConfigError) as caught:
        load_config("micro", [override])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "value", "limit"),
    [
        ("rounds train.batch train.epochs train.group train.updates train.checkpoint_every", 0, "at least 1"),
        ("train.temperature expand.temperature", 0, "more than 0"),
        ("train.temperature train.optimizer.learning_rate", ".nan", "more than 0"),
        ("train.optimizer.learning_rate warmup.learning_rate", 0, "more than 0"),
        ("train.grpo.clip_low train.grpo.clip_high", -0.1, "at least 0"),
        ("train.grpo.micro_tokens train.grpo.logprob_chunk", 0, "at least 1"),
        ("train.answers.slots probe.answers.steps_per_sync evaluate.answers.prefill_batch", 0, "at least 1"),
        ("judge.answers.prompt_tokens expand.verify_answers.answer_tokens", 0, "at least 1"),
        ("probe.chunk judge.chunk expand.chunk expand.per_error", 0, "at least 1"),
        ("expand.top_k data.heldout", -1, "at least 0"),
        ("expand.top_p", 0, "more than 0 and at most 1"),
        ("expand.top_p", 1.5, "more than 0 and at most 1"),
        ("warmup.epochs warmup.rows warmup.length warmup.micro_batches warmup.checkpoint_every", 0, "at least 1"),
        ("data.pool data.round_size", 0, "is smaller than"),
        ("seed", 1_000_000, "from 0 to 999999"),
    ],
)
def test_a_number_out_of_range_is_told_with_its_key(keys, value, limit):
    for key in keys.split():
        with pytest.raises(ConfigError) as caught:
            load_config("micro", [f"{key}={value}"])
        assert key.split(".")[-1] in str(caught.value) and limit in str(caught.value)
        assert "\n" not in str(caught.value)


ENDPOINT = "judge_model={path: null, endpoint: {url: http://127.0.0.1:8000/v1, model: m}}"
ON_SERVER = (ENDPOINT, "judge.confirm=false", "expand.verify=verdict")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("judge.confirm=true", "judge.confirm=true: needs token ids"),
        ("judge.verdicts=scored", "judge.verdicts=scored: needs token ids"),
        ("expand.verify=answer", "expand.verify=answer: needs token ids"),
        ("judge_model.path=nano/judge", "name two models"),
        ("judge_model.thinking=true", "thinking: not for a model behind an endpoint"),
        ("judge_model.endpoint.model=", "judge_model.endpoint.model: no value is given"),
        ("judge_model.endpoint.uri=x", "judge_model.endpoint.uri: no such setting; did you mean"),
        ("judge_model.endpoint.tries=0", "endpoint.tries: at least 1"),
        ("policy={path: null, endpoint: {url: http://127.0.0.1:1/v1, model: m}}", "policy.endpoint: the policy"),
    ],
)
def test_what_a_server_cannot_do_is_refused_with_its_key(override, words):
    with pytest.raises(ConfigError) as caught:
        load_config("micro", [*ON_SERVER, override])
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_run_may_go_on_with_its_server_elsewhere_and_more_budget(tmp_path):
    settings = [f"run_dir={tmp_path}/run", *ON_SERVER]
    keep_config(load_config("micro", settings))
    (tmp_path / "run" / "manifest.json").write_text("{}")
    keep_config(load_config("micro", [*settings, "judge_model.endpoint.url=http://h/v1"]))
    keep_config(load_config("micro", [*settings, "judge_model.endpoint.max_tokens=9", "judge_model.endpoint.tries=1"]))
    with pytest.raises(ConfigError, match=r"judge_model\.endpoint\.model was 'm', now 'n'"):
        keep_config(load_config("micro", [*settings, "judge_model.endpoint.model=n"]))


def test_an_unknown_configuration_names_the_known_ones():
    with pytest.raises(ConfigError, match=r"micro.*quickstart"):
        load_config("quikstart")


def test_a_broken_file_is_one_line(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("rounds: [1\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml"):
        load_config(str(file))
    file.write_text("- 1\n")
    with pytest.raises(ConfigError, match="keys and values"):
        load_config(str(file))


def test_a_run_directory_keeps_its_settings(tmp_path):
    run_dir = f"run_dir={tmp_path}/run"
    keep_config(load_config("micro", [run_dir, "policy.path=mistyped"]))
    keep_config(load_config("micro", [run_dir]))  # nothing was done with the first settings
    (tmp_path / "run" / "manifest.json").write_text("{}")
    keep_config(load_config("micro", [run_dir]))
    keep_config(load_config("micro", [run_dir, "rounds=3"]))
    with pytest.raises(ConfigError, match="rounds can only grow"):
        keep_config(load_config("micro", [run_dir, "rounds=2"]))
    with pytest.raises(ConfigError, match=r"train.batch was 8, now 4"):
        keep_config(load_config("micro", [run_dir, "rounds=3", "train.batch=4"]))
    for damaged in ("rounds: [1\n", "- 1\n", "", "hello"):
        (tmp_path / "run" / "config.yaml").write_text(damaged)
        with pytest.raises(ConfigError, match=r"config\.yaml: not the settings of a run"):
            keep_config(load_config("micro", [run_dir]))


def test_a_run_with_adapters_is_resumed(tmp_path):
    settings = [f"run_dir={tmp_path}/run", "train.lora={rank: 4, targets: [v, q]}"]
    for _ in range(2):
        keep_config(load_config("micro", settings))
        (tmp_path / "run" / "manifest.json").write_text("{}")
        keep_command(str(tmp_path), "train", load_config("micro", settings), [])
        (tmp_path / "progress.jsonl").write_text("")


def test_a_result_folder_belongs_to_one_command_on_one_data_set(tmp_path):
    data, out = tmp_path / "data.jsonl", str(tmp_path)
    data.write_text("{}\n")
    cfg = load_config("micro")
    keep_command(out, "probe", load_config("micro", ["policy.path=mistyped"]), [str(data)])
    keep_command(out, "probe", cfg, [str(data)])  # nothing was done with the first settings
    (tmp_path / "progress.jsonl").write_text("")
    for same in (cfg, load_config("micro", ["run_dir=elsewhere"])):
        keep_command(out, "probe", same, [str(data)])
    with pytest.raises(ConfigError, match=r"policy.path was 'nano/policy', now 'other'"):
        keep_command(out, "probe", load_config("micro", ["policy.path=other"]), [str(data)])
    with pytest.raises(ConfigError, match="command was 'probe', now 'train'"):
        keep_command(out, "train", cfg, [str(data)])
    data.write_text("{} \n")
    with pytest.raises(ConfigError, match="results of other data"):
        keep_command(out, "probe", cfg, [str(data)])
    (tmp_path / "command.json").write_text("[]")
    with pytest.raises(ConfigError, match="not the settings of a command"):
        keep_command(out, "probe", cfg, [str(data)])


def test_a_data_set_without_files_is_known_by_its_name(tmp_path):
    cfg = load_config("micro")
    keep_command(str(tmp_path), "probe", cfg, ["hf:me/calls#train"])
    (tmp_path / "progress.jsonl").write_text("")
    keep_command(str(tmp_path), "probe", cfg, ["hf:me/calls#train"])
    with pytest.raises(ConfigError, match="results of other data"):
        keep_command(str(tmp_path), "probe", cfg, ["hf:me/calls#test"])


def test_who_is_told_of_a_run_may_change(tmp_path):
    keep_config(load_config("micro", [f"run_dir={tmp_path}", "tracking.to=[mlflow]"]))
    write_text(str(tmp_path / "manifest.json"), "{}")
    keep_config(load_config("micro", [f"run_dir={tmp_path}", "tracking.to=[wandb]", "tracking.project=p"]))
    assert load_config(str(tmp_path / "config.yaml")).tracking.to == ["wandb"]


def test_a_run_directory_on_an_object_store_keeps_its_settings(bucket):
    keep_config(load_config("micro", [f"run_dir={bucket}/run"]))
    assert load_config(f"{bucket}/run/config.yaml") == load_config("micro", [f"run_dir={bucket}/run"])
    write_text(f"{bucket}/run/manifest.json", "{}")
    with pytest.raises(ConfigError, match=f"{bucket}/run: holds a run with other settings .seed was 0, now 1"):
        keep_config(load_config("micro", [f"run_dir={bucket}/run", "seed=1"]))
    with pytest.raises(ConfigError, match=r"absent\.yaml: no such file"):
        load_config(f"{bucket}/run/absent.yaml")


def test_a_folder_of_results_on_an_object_store_keeps_its_command(bucket):
    write_text(f"{bucket}/seeds.jsonl", "{}\n")
    cfg = load_config("micro")
    keep_command(f"{bucket}/out", "probe", cfg, [f"{bucket}/seeds.jsonl"])
    Progress(f"{bucket}/out/progress.jsonl").append({"chunk": 0})
    keep_command(f"{bucket}/out", "probe", cfg, [f"{bucket}/seeds.jsonl"])
    write_text(f"{bucket}/seeds.jsonl", "{}\n{}\n")
    with pytest.raises(ConfigError, match=f"{bucket}/out: holds results of other data"):
        keep_command(f"{bucket}/out", "probe", cfg, [f"{bucket}/seeds.jsonl"])
