"""tunesmith.yaml: every error at once, each with its place, its rule and what was received."""

import json
from pathlib import Path

import pytest
from pydantic import BaseModel

from tunesmith.app.cli.template import project_file
from tunesmith.config import Config, _section_of, explain, load_config, schema
from tunesmith.errors import ConfigError, NotFoundError
from tunesmith.train.settings import TrainKeys

GOOD = """\
project: letters
task:
  instruction: Sort the letter.
  labels: [card, loan]
data:
  sources:
    - path: data/records.csv
model:
  model_name_or_path: base
train:
  learning_rate: 1e-3
"""


@pytest.fixture
def load(tmp_path):
    def load(text, *overrides):
        file = tmp_path / "tunesmith.yaml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_config(file, overrides)

    return load


def errors_of(load, text, *overrides):
    with pytest.raises(ConfigError, match=r"\S") as raised:
        load(text, *overrides)
    return raised.value.message.splitlines()


def test_a_good_file_loads_with_its_defaults(load):
    config = load(GOOD)
    assert config.train.learning_rate == 1e-3
    assert config.task.names == ("card", "loan")
    assert config.model_name == "letters"


def test_all_errors_come_at_once_each_with_line_and_column(load):
    text = GOOD.replace("learning_rate: 1e-3", "learning_rat: 1e-3\n  lora_r: zero\n  num_train_epochs: 0").replace("project: letters", "project: two words")
    assert errors_of(load, text) == [
        "tunesmith.yaml:1:1: project: string should match pattern '^[A-Za-z0-9_.-]+$'. Received: \"two words\".",
        "tunesmith.yaml:11:3: train.learning_rat: unknown key. Did you mean 'learning_rate'?",
        'tunesmith.yaml:12:3: train.lora_r: input should be a valid integer, unable to parse string as an integer. Received: "zero".',
        "tunesmith.yaml:13:3: train.num_train_epochs: input should be greater than or equal to 1. Received: 0.",
    ]


def test_an_unknown_key_far_from_all_others_lists_the_known_ones(load):
    (line,) = errors_of(load, GOOD + "zzz: 1\n")
    assert line.startswith("tunesmith.yaml:12:1: zzz: unknown key. Known: project, task, data, model")


def test_a_missing_key_is_reported_where_its_section_is(load):
    (line,) = errors_of(load, GOOD.replace("  instruction: Sort the letter.\n", ""))
    assert line == "tunesmith.yaml:2:1: task.instruction: required, and missing."


def test_an_error_inside_a_list_does_not_drag_its_parents_along(load):
    (line,) = errors_of(load, GOOD.replace("- path: data/records.csv", "- pth: data/records.csv\n      path: x.csv"))
    assert line == "tunesmith.yaml:7:7: data.sources.0.pth: unknown key. Did you mean 'path'?"


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (b"project: [1, 2", r"tunesmith\.yaml:\d+:\d+: not valid YAML: "),
        (b"project: a\nproject: b\n", r"tunesmith\.yaml:2:1: not valid YAML: "),
        (b"project: \xff\n", r"tunesmith\.yaml: must be UTF-8\. Received: byte 0xff at offset 9\."),
        (b"- a\n- b\n", r"tunesmith\.yaml:1:1: must be a mapping of keys\. Received: CommentedSeq\."),
        (b"", r"tunesmith\.yaml:1:1: must be a mapping of keys\. Received: NoneType\."),
    ],
)
def test_a_file_that_is_no_mapping_of_keys(load, broken, message):
    with pytest.raises(ConfigError, match=message):
        load(broken)


def test_a_missing_file_names_the_command_that_makes_one(tmp_path):
    with pytest.raises(NotFoundError, match="No project file") as raised:
        load_config(tmp_path / "tunesmith.yaml")
    assert raised.value.hint == "tunesmith init DIR"


def test_infinite_and_wrong_types_are_refused(load):
    (line,) = errors_of(load, GOOD.replace("learning_rate: 1e-3", "learning_rate: .inf"))
    assert line.startswith("tunesmith.yaml:11:3: train.learning_rate: input should be a finite number. Received: ")
    (line,) = errors_of(load, GOOD.replace("  learning_rate: 1e-3", "  - a"))
    assert line.startswith("tunesmith.yaml:10:1: train: input should be a valid dictionary")


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("labels: [card, loan]", "labels: [card, card]", "each label needs its own name; used twice: card"),
        ("path: data/records.csv", "path: a.csv\n      splits: {train: 1.0}", "some source must feed each of train, validation, calibration, test"),
    ],
)
def test_rules_over_several_keys_say_what_is_wrong(load, old, new, rule):
    (line,) = errors_of(load, GOOD.replace(old, new))
    assert rule in line
    assert line.startswith("tunesmith.yaml:")


def test_a_confidence_of_written_answers_is_refused_where_a_label_is_picked(load):
    (line,) = errors_of(load, GOOD, "evaluate.confidence.method=margin")
    assert "evaluate: confidence.method is about written answers" in line
    assert "received margin" in line
    written = GOOD.replace("  labels: [card, loan]\n", "  type: chat\n")
    assert load(written, "evaluate.confidence.method=margin").evaluate.confidence.method == "margin"


# --set


def test_set_wins_over_the_file_and_makes_sections_that_are_missing(load):
    config = load(GOOD, "train.learning_rate=2e-4", "evaluate.seed=7", "train.report_to=[]", "data.sources.0.path=other.csv")
    assert (config.train.learning_rate, config.evaluate.seed, config.train.report_to) == (2e-4, 7, ())
    assert config.data.sources[0].path == "other.csv"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.learning_rat=1", r"--set: train\.learning_rat: unknown key\. Did you mean 'learning_rate'\?"),
        ("train.lora_r=-1", r"--set: train\.lora_r: input should be greater than or equal to 1\. Received: -1\."),
        ("train.lora_r", r"--set must read KEY\.PATH=VALUE\. Received: 'train\.lora_r'\."),
        ("project.name=x", r"--set project\.name: 'project' holds no keys\."),
        ("task.labels.0=x", r"--set task\.labels\.0: give the whole list, as task\.labels=\[\.\.\.\]\."),
        ("data.sources.9.path=x", r"--set data\.sources\.9\.path: 'data\.sources\.9' holds no keys\."),
        ("train.lora_r=[", r"--set train\.lora_r: the value is not valid YAML\."),
    ],
)
def test_set_passes_the_same_check_as_the_file(load, override, message):
    with pytest.raises(ConfigError, match=message):
        load(GOOD, override)


# What describes the keys


def _fields(model: type[BaseModel], at: str = ""):
    for name, field in model.model_fields.items():
        yield f"{at}{name}", field
        section = _section_of(field.annotation)
        is_told_elsewhere = at and section is TrainKeys  # the keys of `train`
        if section and not is_told_elsewhere:
            yield from _fields(section, f"{at}{name}.")


def test_every_key_has_a_description():
    undescribed = [key for key, field in _fields(Config) if not (field.description or "").strip()]
    assert undescribed == []


def test_explain_lists_every_key_once_and_finds_a_section():
    keys = [row["key"] for row in explain()]
    assert len(keys) == len(set(keys)) == len(list(_fields(Config)))
    assert {"train", "train.learning_rate", "data.sources[].path", "compare.candidates", "train.stages[].path", "sweep.parameters.KEY.low"} <= set(keys)
    assert all(row["key"].startswith("train") for row in explain("train"))


def test_explain_of_an_unknown_key_names_the_nearest():
    with pytest.raises(NotFoundError, match=r"No key 'train\.learning_rat'") as raised:
        explain("train.learning_rat")
    assert raised.value.hint == "tunesmith config explain train.learning_rate"


def test_the_schema_is_json_and_describes_every_section():
    described = json.loads(json.dumps(schema()))
    assert set(described["properties"]) == set(Config.model_fields)
    assert described["additionalProperties"] is False
    assert described["$defs"]["TrainSection"]["properties"]["lora_r"]["description"] == "Rank of the adapters."


@pytest.mark.parametrize("folder", ["letters", "2024", "my letters", "null", "ünïcödé", "1e5", "..."])
def test_init_writes_a_file_that_loads_whatever_the_folder_is_called(load, folder):
    assert load(project_file(folder)).project


@pytest.mark.parametrize("file", sorted(Path(__file__).parents[1].glob("examples/*/tunesmith*.yaml")), ids=lambda file: f"{file.parent.name}/{file.name}")
def test_the_examples_load(file):
    assert load_config(file).project


# A sweep's keys and values pass the check that a file with them would


def swept(*lines):
    return GOOD + "sweep:\n  parameters:\n" + "".join(f"    {line}\n" for line in lines)


def test_a_sweep_takes_lists_and_ranges_by_path_or_nested(load):
    by_path = load(swept("train.learning_rate: {low: 1e-4, high: 1e-2, log: true}", "train.lora_r: [4, 8]")).sweep
    nested = load(swept("train:", "  learning_rate: {low: 1e-4, high: 1e-2, log: true}", "  lora_r: [4, 8]")).sweep
    assert (
        by_path == nested == load(GOOD, "sweep.parameters.train.learning_rate={low: 1e-4, high: 1e-2, log: true}", "sweep.parameters.train.lora_r=[4, 8]").sweep
    )
    assert by_path.parameters["train.lora_r"].ends == (4, 8)
    assert by_path.parameters["train.learning_rate"].ends == (1e-4, 1e-2)


def test_all_errors_of_a_sweep_come_at_once_with_their_place(load):
    text = swept(
        "train.lora_rr: [4, 8]", "train.lora_r: [0, 8, many]", "train.strategy: [lora, magic]", "data.seed: [1, 2]",
        "train.save_steps: [1, 2]", "train.warmup_ratio: {low: 0, high: 2}", "train.num_train_epochs: {low: 1.5, high: 3}",
    )  # fmt: skip
    assert errors_of(load, text) == [
        "tunesmith.yaml:14:5: sweep.parameters.train.lora_rr: unknown key. Did you mean 'train.lora_r'?",
        "tunesmith.yaml:15:5: sweep.parameters.train.lora_r: input should be greater than or equal to 1. Received: 0.",
        "tunesmith.yaml:15:5: sweep.parameters.train.lora_r: input should be a valid integer, unable to parse string as an integer. Received: \"many\".",
        "tunesmith.yaml:16:5: sweep.parameters.train.strategy: must be one of full, lora, qlora, prefix.",
        "tunesmith.yaml:17:5: sweep.parameters.data.seed: must be a key below task, model, train.",
        "tunesmith.yaml:18:5: sweep.parameters.train.save_steps: changes nothing that is learnt.",
        "tunesmith.yaml:19:5: sweep.parameters.train.warmup_ratio: input should be less than 1. Received: 2.",
        "tunesmith.yaml:20:5: sweep.parameters.train.num_train_epochs: input should be a valid integer, got a number with a fractional part. Received: 1.5.",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        ("{low: 2, high: 1}", "must be a list of values, or a range with low < high."),
        ("[]", "must be a list of values, or a range with low < high."),
        ("{low: 0, high: 1, log: true}", "log needs low > 0 and no step."),
        ("{low: 1, hihg: 2}", "unknown key. Did you mean 'high'?"),
    ],
)
def test_values_that_are_no_range_are_refused(load, value, rule):
    (error, *_) = errors_of(load, swept(f"train.learning_rate: {value}"))
    assert error.endswith(rule)


def test_a_direction_that_the_metric_does_not_have_is_refused(load):
    (error,) = errors_of(load, GOOD + "sweep: {metric: log_loss, direction: maximize}\n")
    assert error == "tunesmith.yaml:12:1: sweep: log_loss is better when it is lower: direction must be auto or the same."
    assert not load(GOOD + "sweep: {metric: log_loss}\n").sweep.maximizes


def test_a_swept_strategy_keeps_the_usual_learning_rate_of_each(load):
    text = GOOD.replace("  learning_rate: 1e-3\n", "  strategy: prefix\n") + "sweep: {parameters: {train.strategy: [full, lora]}}\n"
    assert load(text, "train.strategy=full").train.learning_rate == 5e-5
    assert load(text, "train.strategy=lora").train.learning_rate == 1e-3
