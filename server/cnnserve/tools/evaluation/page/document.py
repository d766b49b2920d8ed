"""The whole page: one HTML file without scripts, whose browser sends no request to any host."""

import base64
import hashlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import cnnserve
from cnnserve.tools.evaluation import summary
from cnnserve.tools.evaluation.findings import Findings, ModelFindings
from cnnserve.tools.evaluation.metrics import Bin

from . import charts, matrix, pictures
from .markup import Markup, element, joined, table

_STYLE = Path(__file__).with_name("style.css")
_FLIPS = 200


def as_html(findings: Findings) -> str:
    """Returns the page. Reads the images of which it shows thumbnails."""
    title = f"Evaluation of {' and '.join(model.subject.name for model in findings.models)}"
    # As one string, because its digest is in the policy below. The style is our own file, no text of others.
    style = _STYLE.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Markup(style)),
    )
    parts = [_top(findings, title), *(_model(model) for model in findings.models)]
    if findings.agreement is not None:
        parts.insert(1, _agreement(findings))
    page = element("html", head, element("body", element("main", *parts)), lang="en")
    return f"<!DOCTYPE html>\n{page}"


def _top(findings: Findings, title: str) -> Markup:
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    images = f"{findings.collected.done:,} of {findings.asked:,} images"
    about = (
        f"{images} of {findings.source}, in {findings.collected.seconds:.1f} s; cnnserve {cnnserve.__version__}, {now}"
    )
    parts = [element("h1", title), element("p", about)]
    if notes := list(summary.remarks(findings)):
        parts.append(element("div", *(element("p", note) for note in notes), class_="warning"))
    columns = [dict(summary.figures(model)) for model in findings.models]
    names = dict.fromkeys(name for column in columns for name in column)
    header = ("Figure", *(model.subject.name for model in findings.models))
    rows = [(name, *(column.get(name, "-") for column in columns)) for name in names]
    tests = ("self-test", *(model.subject.self_test or "-" for model in findings.models))
    return joined([*parts, table("Figures", header, [*rows, tests])])


def _model(model: ModelFindings) -> Markup:
    label = model.subject.label
    scores = [
        (label(one.index), f"{one.images:,}", summary.share(one.precision), summary.share(one.recall))
        for one in model.classes
    ]
    wrong = (
        element("p", f"The {len(model.worst)} wrong images with the highest probabilities."),
        pictures.mistakes(model.worst, label),
    )
    return joined(
        (
            element("h2", model.subject.name),
            element("div", _reliability(model), _histogram(model), class_="charts"),
            element("h3", "Confusion matrix"),
            *matrix.confusion(model),
            element("h3", "Most confidently wrong"),
            *(wrong if model.worst else (element("p", "No image is wrong."),)),
            element("h3", "Classes"),
            table("Precision and recall", ("Class", "Images", "Precision", "Recall"), scores, numbers=(1, 2, 3)),
        )
    )


def _reliability(model: ModelFindings) -> Markup:
    text = (
        "Of the images with a top probability near p, a share of p should be right. Blue bars are the share that is "
        "right; the parts outlined in red are how far it is from the mean probability. The expected calibration error, "
        f"the mean of these distances weighted by images, is {model.ece:.2%}."
    )
    return element(
        "section",
        element("h3", "Reliability"),
        element("p", text),
        charts.reliability(model.reliability),
        _numbers("Reliability", model.reliability),
    )


def _histogram(model: ModelFindings) -> Markup:
    text = "How often the model is how sure: blue images are right, red ones wrong."
    return element(
        "section",
        element("h3", "Top probability"),
        element("p", text),
        charts.histogram(model.histogram),
        _numbers("Histogram", model.histogram),
    )


def _numbers(name: str, bins: Sequence[Bin]) -> Markup:
    rows = [(f"{one.low:.3g} to {one.high:.3g}", f"{one.images:,}", f"{one.correct:,}", *_shares(one)) for one in bins]
    header = ("Top probability", "Images", "Right", "Mean probability", "Accuracy")
    return element("details", element("summary", "Numbers"), table(name, header, rows, numbers=(1, 2, 3, 4)))


def _shares(one: Bin) -> Iterator[str]:
    for value in (one.confidence, one.accuracy):
        yield f"{value:.2%}" if one.images else "-"


def _agreement(findings: Findings) -> Markup:
    agreement = findings.agreement
    assert agreement is not None
    parts = [element("h2", "Agreement"), *(element("p", line) for line in summary.agreement_lines(findings))]
    if flips := agreement.flips:
        more = f", the first {_FLIPS} of {len(flips):,}" if len(flips) > _FLIPS else ""
        header = ("File", "Class", *(model.subject.name for model in findings.models), "Change")
        rows = [summary.flip_row(findings, flip) for flip in flips[:_FLIPS]]
        parts.append(table(f"Flipped images{more}", header, rows))
    return joined(parts)
