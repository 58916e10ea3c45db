"""The arrows of the loop as commands: prepare, plan, train, evaluate, calibrate, register, run, renew."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunesmith.app.cli.options import JsonOption, ProjectOption, SetOption, duration, open_project, show

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunesmith.entities import DatasetVersion, Evaluation, Run
    from tunesmith.flow import Outcome, Part, Verified
    from tunesmith.project import Project
    from tunesmith.train.plan import Estimate, Plan


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (run, prepare, plan, train, evaluate, calibrate, register, renew):
        app.command()(command)


def prepare(
    project: ProjectOption = Path(),
    overrides: SetOption = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start a dataset without a parent.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Documents -> dataset version: read, validate, deduplicate, split, freeze."""
    from tunesmith import flow

    opened = open_project(project, overrides, as_json=as_json)
    with opened.lock("tunesmith prepare"):
        version = flow.prepare(opened, fresh=fresh)
    lines = [f"{version.path}", *(f"  {count:>7,} {split}" for split, count in version.rows.items())]
    lines += [f"  {count:>7,} dropped: {reason}" for reason, count in version.dropped.items()]
    found = flow.data_report_of(opened, version).get("checks", {}).get("checks", [])
    lines += [f"  {check['count']:>7,} {check['severity']}: {check['name']}: {check['summary']}" for check in found if check["severity"] != "info"]
    lines.append(f"  report: {opened.root / version.path / 'report.html'}")
    show(as_json, version.model_dump(mode="json"), "\n".join(lines), next_command="tunesmith plan")


def plan(project: ProjectOption = Path(), overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Say what a run will do and cost, before it does it."""
    from tunesmith import flow

    opened = open_project(project, overrides, as_json=as_json)
    flow.refuse_missing_kernels(opened)
    with opened.lock("tunesmith plan"):
        parts = flow.plan_parts(opened, _dataset(opened))
    made = _of_run(parts)
    value = made.model_dump(mode="json") | {"trainable_share": made.trainable_share} | _parts_in_json(parts)
    show(as_json, value, "\n".join((plan_in_words(made), *parts_in_words(parts))), next_command="tunesmith train")


def train(
    project: ProjectOption = Path(),
    overrides: SetOption = None,
    verify: Annotated[
        bool, typer.Option("--verify-resume", help="Train nothing; kill a twin of the run and prove that it continues to equal figures.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Dataset version -> run, and where train.adapters is set its children and the router, what changed; a killed run continues."""
    from tunesmith import flow

    opened = open_project(project, overrides, as_json=as_json)
    flow.refuse_missing_kernels(opened)
    with opened.lock("tunesmith train"):
        if verify:
            verified = flow.verify_resume(opened, _dataset(opened))
            show(as_json, asdict(verified), verified_in_words(verified), next_command="tunesmith train")
            return
        dataset = _dataset(opened)
        trained = flow.train_adapters(opened, dataset)
        children, parts = flow.children_of(opened, dataset, trained), flow.measured_parts(opened, dataset)
    text = "\n".join((run_in_words(opened, trained, parts), *(f"  child {each}: {child.id}, {child.steps:,} steps" for each, child in children.items())))
    value = trained.model_dump(mode="json") | ({"children": {each: child.id for each, child in children.items()}} if children else {}) | _parts_in_json(parts)
    show(as_json, value, text, next_command="tunesmith evaluate")


def evaluate(
    project: ProjectOption = Path(),
    overrides: SetOption = None,
    suite: Annotated[
        str, typer.Option("--suite", metavar="TASK[,TASK]", help="Also let base and tuned model do tasks of lm-evaluation-harness (evaluate.suites).")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Run -> evaluation: base, tuned and classical on the same test records, and with --suite on tasks of lm-evaluation-harness."""
    from tunesmith import flow

    names = [name.strip() for name in suite.split(",") if name.strip()]
    opened = open_project(project, overrides, as_json=as_json)
    with opened.lock("tunesmith evaluate"):
        evaluation = flow.evaluate(opened, _run(opened))
        if names:
            flow.run_suites(opened, evaluation, names)
            calibration = flow.calibrate(opened, evaluation)
            rows = [row for row in calibration.report["suites"] if row["task"] in names]
            value = evaluation.model_dump(mode="json") | {"suites": rows, "report": str(calibration.html)}
            show(as_json, value, f"{suites_in_words(rows)}\nReport: {calibration.html}", next_command="tunesmith register")
            return
    show(as_json, evaluation.model_dump(mode="json"), evaluation.path, next_command="tunesmith calibrate")


def calibrate(project: ProjectOption = Path(), overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Make the confidence honest and write the report."""
    from tunesmith import flow

    opened = open_project(project, overrides, as_json=as_json)
    with opened.lock("tunesmith calibrate"):
        calibration = flow.calibrate(opened, _evaluation(opened))
    show(as_json, calibration.report, f"Report: {calibration.html}", next_command="tunesmith register")


def register(
    project: ProjectOption = Path(),
    overrides: SetOption = None,
    run_id: Annotated[str, typer.Option("--run", help="Id of a finished run; the one of the present settings when left out.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Register the run and ask the gate for the alias champion; refused exits 4."""
    from tunesmith import flow

    opened = open_project(project, overrides, as_json=as_json)
    with opened.lock("tunesmith register"):
        trained = _run(opened, run_id)
        version, verdict = flow.register(opened, trained, flow.evaluate(opened, trained))
    value = {"model_version": version.model_dump(mode="json"), "verdict": verdict.model_dump(mode="json")}
    show(as_json, value, verdict.reason, next_command="tunesmith serve" if verdict.passed else "tunesmith renew")
    _exit_when_refused(verdict.passed)


def run(project: ProjectOption = Path(), overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """The whole loop: prepare, plan, train, evaluate, calibrate, register."""
    from tunesmith import flow

    opened = open_project(project, overrides, as_json=as_json)
    flow.refuse_missing_kernels(opened)
    with opened.lock("tunesmith run"):
        dataset = flow.prepare(opened)
        parts = flow.plan_parts(opened, dataset)
        if not as_json:
            show(False, None, "\n".join((plan_in_words(_of_run(parts)), *parts_in_words(parts), "")))
        outcome = flow.finish(opened, dataset, parts)
    _show_outcome(opened, outcome, as_json)


def renew(project: ProjectOption = Path(), overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """New judgements -> the next dataset version -> run -> gate, on the same frozen test split."""
    from tunesmith import flow

    opened = open_project(project, overrides, as_json=as_json)
    flow.refuse_missing_kernels(opened)
    with opened.lock("tunesmith renew"):
        outcome = flow.renew(opened)
    _show_outcome(opened, outcome, as_json)


def _show_outcome(project: Project, outcome: Outcome, as_json: bool) -> None:
    from tunesmith import flow

    report, parts = outcome.calibration.report, flow.measured_parts(project, outcome.dataset)
    value = {
        "dataset_version": outcome.dataset.id,
        "run": outcome.run.id,
        "evaluation": outcome.evaluation.id,
        "model_version": outcome.model_version.id,
        "verdict": outcome.verdict.model_dump(mode="json"),
        "report": str(outcome.calibration.html),
        "metrics": report["metrics"],
        "paired": report["paired"],
        "paired_classical": report.get("paired_classical"),
        **({"routing": report["routing"]} if "routing" in report else {}),
        **_parts_in_json(parts),
    }
    passed = outcome.verdict.passed
    gate = f"Gate: {'passed' if passed else 'refused'}, {outcome.verdict.reason}."
    text = f"\n{run_in_words(project, outcome.run, parts)}\n\n{report_in_words(report)}\n\n{gate}\nReport: {outcome.calibration.html}"
    show(as_json, value, text, next_command='tunesmith predict "TEXT", tunesmith serve, tunesmith review next' if passed else "tunesmith config explain train")
    _exit_when_refused(passed)


def _exit_when_refused(passed: bool) -> None:
    from tunesmith.errors import RefusedError

    if not passed:
        raise typer.Exit(RefusedError.exit_code)


def _dataset(project: Project) -> DatasetVersion:
    from tunesmith import flow

    return flow.prepare(project)


def _run(project: Project, run_id: str = "") -> Run:
    """Return a run by its id, or the finished run of the present settings."""
    from tunesmith import flow
    from tunesmith.entities import Run
    from tunesmith.errors import NotFoundError

    wanted = run_id or flow.run_id(project, _dataset(project))
    found = project.store.find(Run, wanted)
    if found is None:
        raise NotFoundError(f"No finished run {wanted}.", hint="tunesmith train")
    return found


def _evaluation(project: Project) -> Evaluation:
    from tunesmith import flow

    return flow.evaluate(project, _run(project))


def plan_in_words(plan: Plan) -> str:
    """Write a plan as aligned lines."""
    from tunesmith.train.plan import excess_in_words

    memory = plan.peak_memory_bytes
    stop = "is trained" if plan.stop_token_is_trained else "IS NOT trained"
    pad = ", and is the pad token too: harmless, padding is told by position" if plan.pad_equals_stop else ""
    template = "round-trips" if plan.template_round_trips else "tokens of its pieces differ from tokens of the whole: train and serve both use the pieces"
    lines = (
        ("trains", f"{plan.trainable_parameters:,} of {plan.all_parameters:,} parameters ({100 * plan.trainable_share:.2f} %), strategy {plan.strategy}"),
        ("reads", f"{plan.rows:,} rows, {plan.tokens:,} tokens, {plan.supervised_tokens:,} of them supervised, {plan.steps:,} steps"),
        ("passes", f"{plan.forward}, {plan.dtype}; {100 * plan.padding_share:.1f} % padding; {plan.shared_prefix_tokens} prompt tokens are shared by all rows"),
        ("too long", excess_in_words(plan)),
        ("stop token", "none: an encoder writes nothing" if plan.stop_token is None else f"{plan.stop_token} {stop}{pad}"),
        ("template", template),
        ("memory", f"{memory.expected / 1e9:.1f} GB peak [{memory.low / 1e9:.1f}, {memory.high / 1e9:.1f}]"),
        ("time", _time(plan.seconds)),
        ("disk", f"{plan.disk_bytes / 1e6:,.0f} MB at most"),
    )
    return "\n".join(f"  {name:<11}{text}" for name, text in lines)


def _of_run(parts: Sequence[Part]) -> Plan:
    """Return the plan of the run among the parts of a training."""
    return next(part.plan for part in parts if part.name == "run" and part.plan)


def _parts_in_json(parts: Sequence[Part]) -> dict[str, Any]:
    """Return the parts of a training and their sum; nothing where the run is all."""
    from tunesmith import flow

    if len(parts) == 1:
        return {}
    whole = flow.total(parts)
    return {"parts": [part.to_dict() for part in parts], "total": flow.Part("all", whole).to_dict()["planned"] if whole else None}


def parts_in_words(parts: Sequence[Part]) -> list[str]:
    """Write a line for each part of a training, and their sum; nothing where the run is all."""
    from tunesmith import flow

    if len(parts) == 1:
        return []
    lines = ["", f"  {'part':<24}{'steps':>9}  {'memory':<22}{'time':<30}disk at most"]
    for part in parts:
        made = "trained already" if part.is_trained else _cost_in_words(part.plan)
        lines.append(f"  {part.name:<24}{part.plan.steps if part.plan else '':>9}  {made}")
    whole = flow.total(parts)
    return [*lines, f"  {'all that is trained now':<24}{'':>9}  {_cost_in_words(whole)}"] if whole else lines


def _cost_in_words(plan: Plan | None) -> str:
    return f"{_gigabytes(plan.peak_memory_bytes):<22}{_time(plan.seconds):<30}{plan.disk_bytes / 1e6:,.0f} MB" if plan else ""


def _gigabytes(memory: Estimate) -> str:
    return f"{memory.expected / 1e9:.1f} GB [{memory.low / 1e9:.1f}, {memory.high / 1e9:.1f}]"


def _time(seconds: Estimate) -> str:
    return f"{duration(seconds.expected)} [{duration(seconds.low)}, {duration(seconds.high)}]"


def run_in_words(project: Project, run: Run, parts: Sequence[Part]) -> str:
    """Write what was predicted of each part of a training beside what was measured."""
    from tunesmith import flow

    known = [part for part in parts if part.plan and part.seconds is not None and part.peak_memory_bytes is not None]
    width = 8 if len(parts) == 1 else 28
    lines = [f"  {'':<{width}}{'predicted':>34}{'measured':>16}"]
    for part in known:
        assert part.plan and part.seconds is not None and part.peak_memory_bytes is not None  # noqa: S101, PT018 - chosen so
        named = "" if len(parts) == 1 else f", {part.name}"
        lines.append(f"  {f'memory{named}':<{width}}{_gigabytes(part.plan.peak_memory_bytes):>34}{part.peak_memory_bytes / 1e9:>13.1f} GB")
        lines.append(f"  {f'time{named}':<{width}}{_time(part.plan.seconds):>34}{duration(part.seconds):>16}")
    return "\n".join([*lines, *_stages_in_words(flow.stage_table(project, run.path))])


def _stages_in_words(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    lines = ["", f"  {'stage':<14}{'reads':<14}{'before':>8}{'after':>8}  change in nats a token"]
    for row in rows:
        what = "itself" if row["probe"] == row["stage"] else row["probe"]
        change = f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
        lines.append(f"  {row['stage']:<14}{what:<14}{row['before']:>8.3f}{row['after']:>8.3f}  {change}")
    return lines


def verified_in_words(verified: Verified) -> str:
    """Write the figures that were equal."""
    rows = [f"  {line['step']:>6.0f}  " + "  ".join(f"{name} {value!r}" for name, value in line.items() if name != "step") for line in verified.lines]
    return "\n".join((f"  equal after SIGKILL and a start from the checkpoint of step {verified.checkpoint}:", *rows))


def report_in_words(report: dict[str, object]) -> str:
    """Write the metrics table and the verdict on the classical baseline."""
    from tunesmith.evaluate.goals import goals_in_words
    from tunesmith.evaluate.report import DETAILS, acceptance_in_words, metric_names, verdict

    metrics: dict[str, dict[str, dict[str, float]]] = report["metrics"]  # type: ignore[assignment]
    models = [model for model in ("base", "classical", "tuned") if model in next(iter(metrics.values()))]
    header = f"  {'':<36}" + "".join(f"{model:>22}" for model in models)
    shown = {name: figures for name, figures in metrics.items() if name not in DETAILS}
    names = metric_names(report)
    rows = [f"  {names[name]:<36}" + "".join(f"{_figure(figures[model]):>22}" for model in models) for name, figures in shown.items()]
    if "judge" in report:
        rows += _judge_in_words(report["judge"])  # type: ignore[arg-type]
    if "forgetting" in report:
        rows.append(_forgetting_in_words(report["forgetting"]))  # type: ignore[arg-type]
    if "routing" in report:
        rows += _routing_in_words(report["routing"])  # type: ignore[arg-type]
    rows += [f"  {note}" for note in report.get("notes", [])]  # type: ignore[attr-defined]
    goals = [f"  {line}" for line in goals_in_words(report.get("goals", []))]  # type: ignore[arg-type]
    accepted = (acceptance_in_words(report["acceptance"]),) if "acceptance" in report else ()  # type: ignore[arg-type]
    return "\n".join((header, *rows, "", verdict(report), *accepted, *_money_in_words(report), *(("", "Goals", *goals) if goals else ())))


def suites_in_words(rows: list[dict[str, Any]]) -> str:
    """Write what base and tuned model reached on tasks of the harness, a line a figure."""
    lines = [f"  {'task':<28}{'figure':<20}{'records':>8}{'base':>24}{'tuned':>24}  tuned minus base"]
    for row in rows:
        pair = row["paired"]
        change = f"{pair['difference']:+.3f} [{pair['low']:+.3f}, {pair['high']:+.3f}], p {pair['p_value']:.3f}" if pair else ""
        both = "".join(f"{_figure(row[model]) if row[model]['low'] is not None else format(row[model]['value'], '.3f'):>24}" for model in ("base", "tuned"))
        lines.append(f"  {row['row']:<28}{row['metric']:<20}{row['n']:>8,}{both}  {change}")
    return "\n".join(lines)


def _judge_in_words(judge: dict[str, Any]) -> list[str]:
    if judge["name"] == "lexical":
        return []
    told = (f"{model} {told['unjudged']:,} of {told['sentences']:,} ({_figure(told['unjudged_rate'])})" for model, told in judge["models"].items())
    return [f"  Sentences that the judge {judge['name']} could not judge, which are in neither count: {', '.join(told)}"]


def _money_in_words(report: dict[str, Any]) -> list[str]:
    from tunesmith.evaluate.report import money

    if "business" not in report:
        return []
    case = report["business"]
    costs = [f"{way.replace('_', ' ')} {money(cost['value'])}" for way, cost in case["per_1000"].items()]
    saving = [
        f"{way.replace('_', ' ').capitalize()} saves {money(saved['value'], case['currency'])} a year [{money(saved['low'])}, {money(saved['high'])}]."
        for way, saved in case.get("saving_per_year", {}).items()
    ]
    return [f"1,000 documents cost, in {case['currency']}: {'; '.join(costs)}.", *saving]


def _forgetting_in_words(forgetting: dict[str, Any]) -> str:
    rise, right = (forgetting[name]["difference"] for name in ("cross_entropy", "questions"))
    return (
        f"  Forgetting: general text {rise['difference']:+.3f} nats a token [{rise['low']:+.3f}, {rise['high']:+.3f}], "
        f"general knowledge {100 * right['difference']:+.1f} points [{100 * right['low']:+.1f}, {100 * right['high']:+.1f}]"
    )


def _routing_in_words(routing: dict[str, Any]) -> list[str]:
    ends, regret = routing["end_accuracy"], routing["regret"]
    lines = [
        "",
        f"  {'Adapters':<36}{'parent alone':>22}{'true routes':>22}{'predicted routes':>22}",
        f"  {'Accuracy':<36}" + "".join(f"{_figure(ends[name]):>22}" for name in ("parent", "true_routes", "predicted_routes")),
        f"  Routes right: {_figure(routing['accuracy'])}, abstained {_figure(routing['abstained'])} (threshold {routing['threshold']:.2f}); "
        f"regret {100 * regret['difference']:+.1f} points [{100 * regret['low']:+.1f}, {100 * regret['high']:+.1f}]",
    ]
    for child in routing["children"]:
        change = f"{100 * child['difference']:+.1f} points [{100 * child['low']:+.1f}, {100 * child['high']:+.1f}] on {child['n_test']:,} test records"
        fitted = child["calibration"]
        calibrated = f"calibration error {fitted['before']['value']:.3f} -> {_figure(fitted['after'])} ({fitted['method']})"
        served = "served" if child["served"] else "not served"
        lines.append(f"  Child {child['document_type']}: {served}, {change}, p {child['p_value']:.4f} (Holm); {calibrated}")
    return lines


def _figure(interval: dict[str, float]) -> str:
    return f"{interval['value']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"
