"""The findings as text for a terminal."""

from collections import Counter
from collections.abc import Iterator, Sequence

from cnnserve_client.commands.report import printable, table

from .collection import Flip
from .dataset import many
from .findings import Findings, ModelFindings
from .metrics import ClassScores

_CLASSES = 20
_NAMES = 10
_WORST = 5
_FLIPS = 10


def as_text(findings: Findings) -> str:
    """Returns the summary: each part is a few lines, however many classes and images there are."""
    parts = [_figures(findings)]
    for model in findings.models:
        name = f" of {model.subject.name}" if len(findings.models) > 1 else ""
        parts += [f"Classes{name}{_which(model)}\n\n{_classes(model)}"]
        if model.worst:
            parts.append(f"Most confidently wrong{name}\n\n{_worst(model)}")
    if findings.agreement is not None:
        parts.append("Agreement\n\n" + "\n".join(agreement_lines(findings)) + _flips(findings))
    if notes := list(remarks(findings)):
        parts.append("\n".join(notes))
    return "\n\n".join(parts)


def figures(model: ModelFindings) -> list[tuple[str, str]]:
    """Returns the name and the text of each figure of a model."""
    rows = [
        ("images", f"{model.images:,}"),
        ("top-1", f"{model.top1:.2%} ({model.correct:,} right)"),
        ("top-5", f"{model.top5:.2%}"),
        ("ECE", f"{model.ece:.2%} ({len(model.reliability)} bins)"),
    ]
    if latency := model.latency:
        three = f"p50 {latency.p50_ms:.2f}, p90 {latency.p90_ms:.2f}, p99 {latency.p99_ms:.2f} ms"
        rows.append(("latency", three))
        rows.append(("of which", f"decoding {latency.preprocess_ms:.2f}, run {latency.compute_ms:.2f} ms"))
    return rows


def agreement_lines(findings: Findings) -> Iterator[str]:
    """Yields the sentences about two models."""
    agreement = findings.agreement
    if agreement is None:
        return
    yield f"same top-1 for {agreement.same:,} of {agreement.images:,} images ({agreement.same / agreement.images:.2%})"
    kinds = Counter(flip.kind for flip in agreement.flips)
    yield (
        f"{len(agreement.flips):,} images flipped: {kinds['corrected']:,} corrected, {kinds['broken']:,} broken, "
        f"{kinds['wrong']:,} wrong with both"
    )
    if agreement.largest is not None:
        place, index, difference = agreement.largest
        label = printable(findings.models[0].subject.label(index))
        yield f"largest difference of a probability: {difference:.3g} ({label}, {printable(findings.path(place))})"


def remarks(findings: Findings) -> Iterator[str]:
    """Yields what was not judged, and why."""
    collected = findings.collected
    if collected.stopped:
        yield f"stopped after {collected.done:,} of {findings.asked:,} images: {printable(collected.stopped)}"
    if collected.failed:
        yield f"images that could not be classified, left out of the figures: {len(collected.failed):,}"
        few = collected.failed[:_NAMES]
        yield from (f"  {printable(findings.path(place))}: {printable(error)}" for place, error in few)
        yield from _more(len(collected.failed))
    if unknown := collected.unknown:
        count = sum(unknown.values())
        yield f"images of unknown classes, not sent (a name has to be {collected.expected}): {count:,}"
        yield from (f"  {printable(name)}: {many(images, 'image')}" for name, images in unknown.most_common(_NAMES))
        yield from _more(len(unknown))
    yield from map(printable, findings.remarks)


def _more(count: int) -> list[str]:
    return [f"  and {count - _NAMES:,} more; --json has all"] if count > _NAMES else []


def _figures(findings: Findings) -> str:
    models = findings.models
    rate = findings.collected.done / max(findings.collected.seconds, 1e-3)
    shared = [("images/s", f"{rate:,.0f}{' (both models together)' if len(models) > 1 else ''}")]
    columns = [[*figures(model), *shared] for model in models]
    names = [name for name, _ in max(columns, key=len)]
    rows = [(name, *(dict(column).get(name, "-") for column in columns)) for name in names]
    return table(("", *(model.subject.name for model in models)), rows)


def _which(model: ModelFindings) -> str:
    more = len(model.classes) > _CLASSES
    return f" ({_CLASSES} of {len(model.classes)}, those with the most mistakes)" if more else ""


def _classes(model: ModelFindings) -> str:
    shown: Sequence[ClassScores] = model.classes
    if len(shown) > _CLASSES:
        shown = sorted(shown, key=lambda one: one.correct - one.images)[:_CLASSES]
    taken_for = {}
    for one in sorted(model.confusions, key=lambda one: one.images):
        if one.truth != one.predicted:
            taken_for[one.truth] = f"{model.subject.label(one.predicted)} ({one.images})"
    rows = [
        (
            model.subject.label(one.index),
            f"{one.images:,}",
            share(one.precision),
            share(one.recall),
            taken_for.get(one.index, "-"),
        )
        for one in shown
    ]
    return table(("CLASS", "IMAGES", "PRECISION", "RECALL", "MOST OFTEN TAKEN FOR"), rows, right=(1, 2, 3))


def share(value: float | None) -> str:
    """Returns a share in percent, "-" if it is not defined."""
    return "-" if value is None else f"{value:.2%}"


def _worst(model: ModelFindings) -> str:
    label = model.subject.label
    rows = [
        (one.path, label(one.truth), label(one.predicted), f"{one.probability:.2%}") for one in model.worst[:_WORST]
    ]
    return table(("FILE", "CLASS", "TAKEN FOR", "PROBABILITY"), rows, right=(3,))


def _flips(findings: Findings) -> str:
    agreement = findings.agreement
    if agreement is None or not agreement.flips:
        return ""
    rows = [flip_row(findings, flip) for flip in agreement.flips[:_FLIPS]]
    text = table(("FILE", "CLASS", *(model.subject.name.upper() for model in findings.models), ""), rows)
    more = len(agreement.flips) - _FLIPS
    return f"\n\n{text}" + (f"\nand {more:,} more; --json has all" if more > 0 else "")


def flip_row(findings: Findings, flip: Flip) -> tuple[str, str, str, str, str]:
    """Returns path, class, what each model takes the image for, and the kind of a flip."""
    label = findings.models[0].subject.label
    return (
        findings.path(flip.place),
        label(flip.truth),
        f"{label(flip.first)} ({flip.first_probability:.2%})",
        f"{label(flip.second)} ({flip.second_probability:.2%})",
        flip.kind,
    )
