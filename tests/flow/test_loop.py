"""The whole loop once and again: the second time everything is found done, and nothing is written."""

import pytest

from tunesmith import flow
from tunesmith.data.freeze import read_records
from tunesmith.entities import Deployment, Run
from tunesmith.errors import ConfigError, DataError, NotFoundError, RefusedError
from tunesmith.project import Progress, Project

WITHOUT = "train.report_to=[]"


class Heard(Progress):
    """Keeps which stages ended, and whether they were skipped."""

    def __init__(self):
        self.steps = []

    def finish(self, step, detail, *, seconds, skipped=False):
        if step != "model":
            self.steps.append((step, skipped))


def files(root):
    left_out = {".git", "lock", "mlflow.db", "store.db-shm", "store.db-wal"}
    paths = (path for path in root.rglob("*") if path.is_file() and not left_out & set(path.relative_to(root).parts))
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in paths if path.name not in ("steps.jsonl", "store.db")}


def test_the_loop_makes_a_champion_that_clearly_beats_the_untuned_model(finished):
    outcome = finished.outcome
    metrics = outcome.calibration.report["metrics"]["accuracy"]
    assert outcome.verdict.passed
    assert metrics["tuned"]["low"] > metrics["base"]["high"]
    assert outcome.evaluation.accuracy == metrics["tuned"]["value"]
    assert finished.project.store.alias("tiny", "champion") == outcome.model_version.id
    assert (outcome.run.dataset_version_id, outcome.evaluation.run_id) == (outcome.dataset.id, outcome.run.id)


def test_the_report_says_what_each_stage_took_and_where_it_comes_from(finished):
    report = finished.outcome.calibration.report
    assert {"prepare", "train", "evaluate"} == set(report["seconds"])
    assert all(seconds > 0 for seconds in report["seconds"].values())
    assert report["provenance"]["dataset_version"] == finished.outcome.dataset.id
    assert report["peak_memory_bytes"] > 1e6
    assert finished.outcome.calibration.html.stat().st_size > 10_000
    calibration = report["calibration"]
    assert set(calibration["on_test"]) == set(calibration["table"])
    assert calibration["on_test"][calibration["method"]]["error"] == calibration["after"]


def test_the_report_says_what_may_go_out_unread_what_it_is_worth_and_where_it_breaks(tiny):
    business = "evaluate.business={error_cost: 10, minute_cost: 1, review_minutes: 1, documents_per_month: 100, current: {accuracy: 0.9, minutes: 3}}"
    project = Project.load(tiny.root, [WITHOUT, "evaluate.robustness_samples=12", business, "evaluate.slices=true"])
    dataset = flow.prepare(project)
    run = flow.train(project, dataset)
    report = flow.calibrate(project, flow.evaluate(project, run)).report
    accepted = report["acceptance"]
    assert (accepted["threshold"] is None) == (accepted["share"]["value"] == 0)
    assert accepted["n"] == dataset.rows["calibration"]
    assert report["prediction_sets"]["coverage"]["value"] > 0.5
    assert set(report["business"]["per_1000"]) == {"current", "base", "classical", "tuned", "tuned_with_review"}
    firm = report["robustness"]
    assert firm["n"] == min(12, dataset.rows["test"])
    assert set(firm["disturbances"]) == {"typos", "ocr_noise", "case", "whitespace", "injection", "long", "short"}
    # Money is reckoned anew without any model answering again.
    dearer = Project.load(tiny.root, [WITHOUT, "evaluate.robustness_samples=12", business.replace("error_cost: 10", "error_cost: 20")])
    again = flow.calibrate(dearer, flow.evaluate(dearer, run)).report
    base = [each["business"]["per_1000"]["base"]["value"] for each in (report, again)]
    assert base[1] == pytest.approx(2 * base[0])


@pytest.mark.parametrize("rule", ["cost", "capacity"])
def test_a_rule_without_its_figures_says_which(tiny, rule):
    project = Project.load(tiny.root, [WITHOUT, f"calibrate.accept={rule}"])
    run = flow.train(project, flow.prepare(project))
    with pytest.raises(ConfigError, match=r"evaluate\.business"):
        flow.calibrate(project, flow.evaluate(project, run))


def test_run_again_everything_is_skipped_and_nothing_is_rewritten(tiny):
    heard, before = Heard(), files(tiny.root)
    again = flow.run(Project.load(tiny.root, ["train.report_to=[]"], heard))
    assert heard.steps == [("prepare", True), ("train", True), ("evaluate", True), ("calibrate", True), ("register", False)]
    assert files(tiny.root) == before
    assert again.verdict.look == 1


def test_a_plan_is_made_once_and_remembered_of_a_finished_run(tiny):
    heard = Heard()
    project = Project.load(tiny.root, ["train.seed=1", "train.max_steps=2", "train.report_to=[]"], heard)
    dataset = flow.prepare(project)
    trained = flow.train(project, dataset, flow.plan(project, dataset))
    assert heard.steps == [("prepare", True), ("plan", False), ("train", False)]
    assert flow.plan(project, dataset) == flow.run_plan(project, trained)
    assert heard.steps[-1] == ("plan", True)


def test_a_plan_knows_the_runs_of_its_own_strategy_only(tiny):
    """What lora took says nothing of full: neither its time nor its memory."""
    dataset = flow.prepare(tiny)
    before = {strategy: flow.plan(Project.load(tiny.root, [f"train.strategy={strategy}", "train.seed=5", WITHOUT]), dataset) for strategy in ("lora", "full")}
    (lora,) = (run for run in tiny.store.all(Run) if run.strategy == "lora")
    assert before["lora"].seconds.expected == pytest.approx(before["lora"].tokens * 12 / (lora.tokens / lora.seconds))
    own = flow.run_plan(tiny, lora)
    measured = (lora.peak_memory_bytes - own.resident_bytes) / (own.peak_memory_bytes.expected - own.resident_bytes)
    assert before["lora"].memory_scale == pytest.approx(measured)
    assert before["full"].memory_scale == 1.0

    project = Project.load(tiny.root, ["train.strategy=full", "train.max_steps=3", WITHOUT])
    full = flow.train(project, dataset)
    after = {strategy: flow.plan(Project.load(tiny.root, [f"train.strategy={strategy}", "train.seed=5", WITHOUT]), dataset) for strategy in ("lora", "full")}
    assert after["full"].seconds.expected == pytest.approx(after["full"].tokens * 12 / (full.tokens / full.seconds))
    assert after["lora"].seconds == before["lora"].seconds
    assert after["full"].memory_scale != 1.0 == before["full"].memory_scale


def test_settings_that_change_nothing_learnt_find_the_same_run(tiny):
    other = Project.load(tiny.root, ["train.save_steps=7", "train.report_to=[]", "train.max_hours=5"])
    dataset = flow.prepare(other)
    assert flow.run_id(other, dataset) == flow.run_id(tiny, dataset)
    assert flow.run_id(Project.load(tiny.root, ["train.lora_r=4"]), dataset) != flow.run_id(tiny, dataset)


def test_a_limit_refuses_before_anything_is_trained(fresh):
    project = Project.load(fresh, ["train.max_memory_gb=0.001", "train.report_to=[]", "data.dvc=false"])
    with pytest.raises(RefusedError, match=r"must stay within train\.max_memory_gb = 0\.001\. Predicted: up to"):
        flow.run(project)
    assert list(fresh.glob(".tunesmith/runs/*")) == []


def test_a_refused_candidate_leaves_the_champion(tiny):
    champion = tiny.store.alias("tiny", "champion")
    weak = Project.load(tiny.root, ["train.max_steps=2", "train.report_to=[]"])
    with pytest.raises(RefusedError, match=r"Candidates are chosen on validation\. .* The test split was not looked at"):
        flow.run(weak)
    assert tiny.store.alias("tiny", "champion") == champion


def test_new_rows_move_no_old_record_and_the_champion_answers_the_new_ones_too(tiny):
    before = read_records(tiny.root, flow.newest_dataset(tiny))
    champion = tiny.store.alias("tiny", "champion")
    with (tiny.root / "data" / "records.csv").open("a") as file:
        file.writelines(f"my escrow lender appraisal house foreclosure number{n} was wrong by {n * 7} again,mortgage\n" for n in range(40))
    outcome = flow.run(Project.load(tiny.root, ["train.num_train_epochs=2", "train.report_to=[]"]))
    after = read_records(tiny.root, outcome.dataset)
    both = before.join(after, on="id", suffix="_after")
    assert len(both) == len(before) < len(after)
    assert (both["split"] == both["split_after"]).all()
    assert outcome.dataset.parent == flow.prepare(tiny).parent
    assert (outcome.verdict.opponent, outcome.verdict.look) == (champion, 1)
    assert outcome.verdict.n_test == outcome.dataset.rows["test"] > before["split"].value_counts().filter(split="test")["count"].item()


def test_predict_answers_in_order_and_remembers(tiny):
    texts = ["student tuition servicer payment", "escrow house refinance lender", "credit card charge merchant"]
    answers = flow.predict(tiny, texts)
    assert [answer.text for answer in answers] == texts
    assert {answer.model_version_id for answer in answers} == {tiny.store.alias("tiny", "champion")}
    assert isinstance(tiny.store.get(Deployment, answers[0].deployment_id), Deployment)
    assert flow.predict(tiny, []) == []
    with pytest.raises(DataError, match=r"must not be empty\. Received: ' ' at position 2"):
        flow.predict(tiny, ["a", " "])


def test_without_a_champion_there_are_no_answers(fresh):
    with pytest.raises(NotFoundError, match="No model version of tiny is champion yet"):
        flow.predict(Project.load(fresh), ["a text"])


def test_a_changed_model_version_is_not_served(tiny):
    (card,) = tiny.root.glob(".tunesmith/models/*/calibrator.json")
    card.write_text('{"method": "temperature", "temperature": 0.01}')
    with pytest.raises(DataError, match=r"must match its manifest\. Changed, missing or added: calibrator\.json"):
        flow.predict(tiny, ["a text"])


def test_another_label_space_needs_a_fresh_start(tiny):
    other = Project.load(tiny.root, ["task.labels=[card, loan]"])
    with pytest.raises(DataError, match="keeps the label space of its parent") as raised:
        flow.prepare(other)
    assert raised.value.hint == "tunesmith prepare --fresh"
    assert flow.prepare(other, fresh=True).labels == ("card", "loan")


def test_forgetting_is_measured_and_its_budget_refuses_before_test_is_looked_at(finished, tiny):
    found = finished.outcome.calibration.report["forgetting"]
    assert found["cross_entropy"]["before"]["value"] > 1  # a model with random weights knows nothing
    assert found["budget"] is None
    strict = Project.load(tiny.root, ["train.report_to=[]", "evaluate.max_forgetting=0"])
    looks = strict.store.looks_of(finished.outcome.model_version.id)
    rise = found["cross_entropy"]["difference"]["difference"]
    assert rise > 0
    with pytest.raises(RefusedError, match="max_forgetting = 0 nats"):
        flow.register(strict, finished.outcome.run, finished.outcome.evaluation)
    assert strict.store.looks_of(finished.outcome.model_version.id) == looks
