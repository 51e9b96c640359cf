"""The command `attnkd`: comparative studies of explainers on your own model and images."""

from __future__ import annotations

import json
import shlex
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
from torch import Tensor, nn

from captum_attnkd import __version__, checkpoint

from .classifiers import OURS, find_classifier
from .measuring import Metric
from .methods import METHODS, Method, for_classes
from .metrics import all_metrics, find_metric
from .options import (
    Batch,
    Deviation,
    Device,
    Download,
    FitOn,
    Gradients,
    HeldOut,
    Images,
    Layer,
    Limit,
    Mean,
    Methods,
    Metrics,
    Model,
    Mosaics,
    Out,
    Precision,
    Seed,
    Size,
    Student,
    Surrogate,
    Weights,
    Workers,
    aside,
    for_prepare,
    methods_named,
    metrics_named,
    names_of,
    shape_of,
    single_classes,
    split,
    told,
    whole,
)  # fmt: skip
from .preparing import SURROGATE, prepare
from .report import About, write_report
from .sources import GENERATED, KINDS, load, square
from .speed import break_even, machine, speed
from .store import Store, key
from .study import Outcome, Study
from .summary import means
from .workers import work_ahead

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Explain an image classifier in one forward pass - and compare that, honestly, with what you would use instead.",
)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version, and stop.")] = False) -> None:
    if version:
        typer.echo(f"attnkd of captum_attnkd {__version__}")
        raise typer.Exit


@app.command("study")
def study_command(
    model: Model,
    images: Images,
    out: Out = Path("out/study"),
    fit: FitOn = None,
    surrogate: Surrogate = None,
    methods: Methods = "default",
    metrics: Metrics = "default",
    reference: Annotated[
        str | None, typer.Option(help="Method that the others are compared with; default: the first.")
    ] = None,
    student: Student = "auto",
    gradients: Gradients = False,
    weights: Weights = None,
    limit: Limit = None,
    held_out: HeldOut = None,
    mosaics: Mosaics = None,
    layer: Layer = None,
    size: Size = None,
    mean: Mean = None,
    deviation: Deviation = None,
    batch: Batch = 30,
    seed: Seed = 0,
    device: Device = None,
    precision: Precision = "auto",
    download: Download = False,
    workers: Workers = 1,
    costs: Annotated[bool, typer.Option(help="Also time the methods, at batch 1 and 32; adds some minutes.")] = True,
    gallery: Annotated[int, typer.Option(min=0, help="Images in the report's gallery.")] = 8,
) -> None:
    """Compare explainers on your model and images; write a report.

    Maps and scores are kept in OUT/cache by content: a study that was stopped goes on, and a further method is worked out alone.
    A method or metric that fails has its reason in its cell and stops nothing else.

    A first try, minutes:

        attnkd study -m digits -i digits:60 --fit digits-train -o out/digits

    Your photographs, 120 of them held out of the fit:

        attnkd study -m mine:make_model -i folder:photos --held-out 120 --fit rest -o out/photos
    """
    started = time.monotonic()
    with told():
        chosen = methods_named(methods, fit is not None or surrogate is not None)
        reference = reference or chosen[0].name
        if reference not in {method.name for method in chosen}:
            raise ValueError(f"the reference {reference!r} is not among the methods")
        if metrics not in ("default", "all"):
            [find_metric(name) for name in split(metrics)]  # a misspelt name is told before a fit
        arguments = for_prepare(locals())
        prepared = prepare(**arguments, told=aside)
        measured = metrics_named(metrics, prepared.data)
        compared = Study(prepared.subject, prepared.data, chosen, measured, Store(out / "cache"))
        typer.echo(
            f"{len(compared.data)} images of {shape_of(compared.data)}, {len(chosen)} methods, {len(measured)} metrics, "
            f"on {machine(prepared.subject.device)}"
            + ("" if compared.right is None else f"; the model is right on {compared.right:.1%}")
        )
        if workers > 1:
            if fit is not None and surrogate is None:  # fitted just now, and once is enough
                arguments |= {"surrogate": out / SURROGATE, "student": "auto", "gradients": False}
            work_ahead(workers, arguments, names_of(methods, chosen), names_of(metrics, measured), out / "cache")
        outcomes = compared.run()
        attribution = prepared.subject.surrogate
        report = None if attribution is None else attribution.report_
        source = images if mosaics is None else f"mosaics of {images}"
        about = About(
            title=f"{model} on {source}",
            command=shlex.join(["attnkd", *sys.argv[1:]]),
            model=model,
            source=source,
            classes=prepared.classifier.classes,
            fit=None if report is None else report.as_dict(),
            seconds=time.monotonic() - started,
        )
        path = write_report(out, compared, outcomes, about, reference, None, gallery)
        _print(outcomes, measured)
        if costs:  # last: an impatient user has the page already
            taken = _costs(compared, chosen, out / "cache" / "costs")
            path = write_report(out, compared, outcomes, about, reference, taken, gallery)
        typer.echo(f"\nReport: {path}   ({time.monotonic() - started:.0f} s)")
        if not any(outcome.measured for outcome in outcomes.values()):
            raise ValueError("nothing could be measured; the reasons stand above")


@app.command("speed")
def speed_command(
    model: Model,
    images: Images,
    out: Out = Path("out/speed"),
    fit: FitOn = None,
    surrogate: Surrogate = None,
    methods: Methods = "default",
    batches: Annotated[str, typer.Option(help="Images at once, by comma.")] = "1,32",
    repeats: Annotated[int, typer.Option(min=1, help="Taken in turn over all methods.")] = 7,
    classes: Annotated[str, typer.Option(help="Maps of so many classes of each image, by comma.")] = "1",
    student: Student = "auto",
    gradients: Gradients = False,
    weights: Weights = None,
    limit: Limit = 32,
    held_out: HeldOut = None,
    layer: Layer = None,
    size: Size = None,
    mean: Mean = None,
    deviation: Deviation = None,
    batch: Batch = 32,
    seed: Seed = 0,
    device: Device = None,
    precision: Precision = "fp32",
    download: Download = False,
) -> None:
    """Time explainers against the model's own forward pass: interleaved repeats, medians, ratios, memory, break-even."""
    with told():
        chosen = methods_named(methods, fit is not None or surrogate is not None)
        prepared = prepare(**for_prepare(locals()), told=aside)
        targets = prepared.subject.ask(prepared.data.images).argmax(dim=1)
        sizes = sorted({whole(one, "batches") for one in batches.split(",")})
        counts = sorted({whole(one, "classes") for one in classes.split(",")})
        asked = [method if count == 1 else for_classes(method, count) for count in counts for method in chosen]
        table = speed(prepared.subject, asked, prepared.data.images, targets, sizes, repeats)
        out.mkdir(parents=True, exist_ok=True)
        table.to_csv(out / "speed.csv", index=False)
        wide = table[table["failure"] == ""].pivot(index="method", columns="batch", values=["ms", "ratio", "peak_mib"])
        order = [name for name in table["method"].unique() if name in wide.index]
        typer.echo(
            f"{machine(prepared.subject.device)}; medians of {repeats} repeats, milliseconds an image, ratio to the forward pass\n"
        )
        typer.echo(wide.loc[order].to_string(float_format=lambda value: f"{value:.2f}", na_rep="-"))
        for row in table[table["failure"] != ""].itertuples():
            typer.echo(f"failed: {row.method}, batch {row.batch}: {row.failure}")
        attribution = prepared.subject.surrogate
        one = table[(table["batch"] == sizes[-1]) & (table["failure"] == "")].set_index("method")["ms"] / 1e3
        others = [method.name for method in chosen if method.name == "ours" or not method.learned]
        one = one[one.index.isin(others)]
        if attribution is not None and attribution.report_ is not None and "ours" in one:
            cost = attribution.report_
            typer.echo(
                f"\nThe fit took {cost.seconds:.0f} s and {cost.target_queries:,} images sent to the model; it pays from"
            )
            for name, count in break_even(one.to_dict(), "ours", cost.seconds).items():
                if count < float("inf"):
                    typer.echo(f"   {count:>8,} images on against {name}")
        typer.echo(f"\nTable: {out / 'speed.csv'}")


@app.command("sanity")
def sanity_command(
    model: Model,
    images: Images,
    out: Out = Path("out/sanity"),
    fit: FitOn = None,
    surrogate: Surrogate = None,
    methods: Annotated[str, typer.Option(help="Names by comma; one of yours is `module:object`.")] = "ours,grad-cam",
    shuffled: Annotated[
        str | None,
        typer.Option(help="`module:function` for a model of the same build that was trained on shuffled labels."),
    ] = None,
    checks: Annotated[
        str,
        typer.Option(
            help="Names by comma, or `all`; `planted shortcut` is of a network of our own. A wrong name lists them."
        ),
    ] = "all",
    student: Student = "auto",
    gradients: Gradients = False,
    weights: Weights = None,
    limit: Limit = 60,
    held_out: HeldOut = None,
    layer: Layer = None,
    size: Size = None,
    mean: Mean = None,
    deviation: Deviation = None,
    batch: Batch = 15,
    seed: Seed = 0,
    device: Device = None,
    precision: Precision = "auto",
    download: Download = False,
) -> None:
    """Put explainers to tests that pictures cannot show: do the maps depend on the model, the class, and on nothing else?

    Ours is fitted anew, briefly, to every model that is put at random; so --fit is needed.

        attnkd sanity -m digits -i digits:60 --fit digits-train -o out/digits
    """
    from .sanity import (
        CHECKS,
        PLANTED,
        Sanity,
        planted,
    )  # with what it needs, a second that no other command should take

    with told():
        wanted = [*CHECKS, PLANTED] if checks == "all" else split(checks)
        unknown = [name for name in wanted if name not in (*CHECKS, PLANTED)]
        if unknown:
            raise ValueError(f"no check {unknown[0]!r}; there are: {', '.join((*CHECKS, PLANTED))}")
        chosen = methods_named(methods, fitted=True)
        if any(method.learned for method in chosen) and fit is None:
            raise ValueError("ours is fitted anew to models put at random: name images to learn from with --fit")
        prepared = prepare(**for_prepare(locals()), told=aside)
        subject, data = prepared.subject, prepared.data
        single_classes(data)
        other = None
        if model in OURS or shuffled is not None:
            found = find_classifier(shuffled or model, kept=out, shuffled=shuffled is None).model
            other = found if isinstance(found, nn.Module) else None
        targets = subject.ask(data.images).argmax(dim=1)
        typer.echo(f"{len(data)} images, on {machine(subject.device)}; means over images [bootstrap 95 % intervals]")
        beside: dict[str, dict[str, Tensor]] = {}
        asked = [name for name in wanted if name != PLANTED]
        verdicts = {method.name: Sanity(subject, method, data, targets, other, beside).run(asked) for method in chosen}
        if PLANTED in wanted:
            for name, found_out in planted(chosen, seed).items():
                verdicts[name].append(found_out)
        out.mkdir(parents=True, exist_ok=True)
        with checkpoint.replacing(out / "sanity.json") as draft:
            draft.write_text(
                json.dumps({name: [asdict(one) for one in all_] for name, all_ in verdicts.items()}, indent=1)
            )
        for name, all_ in verdicts.items():
            typer.echo(f"\n{name}")
            for one in all_:
                said = {True: "passed", False: "FAILED", None: "-"}[one.passed]
                typer.echo(f"  {said:<8}{one.check}: {one.reason or one.rule}")
                for figure, value in one.figures.items():
                    typer.echo(f"             {figure:<58}{value}")
        typer.echo(f"\nFigures: {out / 'sanity.json'}")


@app.command("trust")
def trust_command(
    model: Model,
    images: Images,
    out: Out = Path("out/trust"),
    fit: FitOn = None,
    surrogate: Surrogate = None,
    other: Annotated[
        str | None, typer.Option(help="Images of another kind, named as in --images: is their trust lower?")
    ] = None,
    student: Student = "auto",
    gradients: Gradients = False,
    weights: Weights = None,
    limit: Limit = None,
    held_out: HeldOut = None,
    size: Size = None,
    mean: Mean = None,
    deviation: Deviation = None,
    batch: Batch = 15,
    seed: Seed = 0,
    device: Device = None,
    precision: Precision = "auto",
    download: Download = False,
) -> None:
    """Does the trust score foretell which maps are poor? On your images, and on the same with noise, blurred and as poor JPEG.

    attnkd trust -m digits -i digits:120 --fit digits-train -o out/digits
    """
    from . import calibration

    with told():
        prepared = prepare(**for_prepare(locals()), told=aside)
        subject, data, found = prepared.subject, prepared.data, prepared.classifier
        single_classes(data)
        strange = None
        if other is not None:
            strange = load(
                other, square(found.size, found.mean, found.deviation), limit=len(data), download=download
            ).images
        table = calibration.trust_table(subject, data.images, data.targets, strange)
        out.mkdir(parents=True, exist_ok=True)
        table.to_csv(out / "trust.csv", index=False)
        with checkpoint.replacing(out / "trust.png") as draft:
            calibration.draw_coverage(table, draft)
        typer.echo(f"{len(data)} images; {machine(subject.device)}\n")
        shown: dict[str, Any] = {"float_format": lambda value: f"{value:.3f}"}
        typer.echo(calibration.sets_table(table).to_string(**shown))
        only = table[table["set"] == calibration.CLEAN]
        for name, part in (("images as they are", only), ("all sets together", table)):
            typer.echo(f"\n{name}: does a guide foretell how faithful a map is?\n")
            typer.echo(calibration.foretelling_table(part, seed).to_string(index=False, **shown))
            typer.echo(f"\n{calibration.GAP} of the maps that are shown\n")
            typer.echo(calibration.coverage_table(part).to_string(**shown))
        typer.echo(f"\nFigures: {out / 'trust.csv'}; curve: {out / 'trust.png'}")


@app.command("names")
def names_command() -> None:
    """What methods, metrics and kinds of images there are."""
    typer.echo("Methods (* = default)")
    for method in METHODS.values():
        settings = ", ".join(f"{name}={value}" for name, value in method.settings.items())
        typer.echo(f"  {'*' if method.default else ' '} {method.name:<22}{method.kind:<18}{settings}")
    typer.echo("\nMetrics (* = default; NamesLikeThis are Quantus')")
    for metric in all_metrics().values():
        notes = [f"needs {metric.needs}"] if metric.needs else []
        notes += ["asks the method anew"] if metric.asks_method else []
        typer.echo(f"  {'*' if metric.default else ' '} {metric.name:<26}{metric.family:<16}{'; '.join(notes)}")
        typer.echo(textwrap.indent(textwrap.fill(metric.meaning, 110), " " * 8))
    typer.echo(f"\nImages\n    {', '.join([*KINDS, *GENERATED])}")


def _costs(study: Study, methods: Sequence[Method], folder: Path) -> pd.DataFrame:
    """Times of the methods, of this run or of an earlier one of the same on the same machine."""
    subject = study.questioned
    name = key(
        "costs", machine(subject.device), subject.fingerprint, subject.layer_name, subject.surrogate_fingerprint,
        list(study.data.images.shape[1:]), [[method.name, method.settings, method.source] for method in methods],
    )  # fmt: skip
    path = folder / f"{name}.json"
    if path.exists():
        return pd.read_json(path, orient="table")
    table = speed(subject, methods, study.data.images, study.asked, repeats=3)
    if bool((table["failure"] != "").any()):  # which may be mended
        return table
    folder.mkdir(parents=True, exist_ok=True)
    with checkpoint.replacing(path) as draft:
        table.to_json(draft, orient="table", index=False)
    return table


def _print(outcomes: Mapping[str, Outcome], metrics: Sequence[Metric]) -> None:
    """Means, a row a method, a table a metric; failures by name."""
    for metric in metrics:
        table = means(outcomes, [metric.name]).dropna(how="all")
        if len(table):
            typer.echo(f"\n{metric.name}\n{table.to_string(float_format=lambda value: f'{value:.3f}', na_rep='-')}")
    for name, outcome in outcomes.items():
        if outcome.failure:
            typer.echo(f"failed: {name}: {outcome.failure}")
        for failed, why in outcome.failures.items():
            typer.echo(f"failed: {name}, {failed}: {why}")
