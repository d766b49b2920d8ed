"""The findings as JSON, for programs. Shares and probabilities are from 0 to 1."""

import json
from dataclasses import asdict
from typing import Any

from .findings import Findings, Mistake, ModelFindings
from .runner import Subject


def as_json(findings: Findings) -> str:
    """Returns one JSON object."""
    collected = findings.collected
    document = {
        "source": findings.source,
        "complete": findings.complete,
        "stopped": collected.stopped or None,
        "asked": findings.asked,
        "seconds": collected.seconds,
        "failed": [{"file": findings.path(place), "error": error} for place, error in collected.failed],
        "unknown_classes": dict(sorted(collected.unknown.items())),
        "remarks": list(findings.remarks),
        "models": [_model(model) for model in findings.models],
    }
    if findings.agreement is not None:
        document["agreement"] = _agreement(findings)
    # ASCII, because file names may contain bytes that are not UTF-8.
    return json.dumps(document, indent=2)


def _model(model: ModelFindings) -> dict[str, Any]:
    subject = model.subject
    return {
        "model": subject.model,
        "version": subject.version,
        "self_test": subject.self_test,
        "images": model.images,
        "correct": model.correct,
        "top1": model.top1,
        "top5": model.top5,
        "ece": model.ece,
        "latency": asdict(model.latency) if model.latency else None,
        "classes": [
            {"label": subject.label(one.index), **asdict(one), "precision": one.precision, "recall": one.recall}
            for one in model.classes
        ],
        "confusion": [asdict(one) for one in model.confusions],
        "reliability": [asdict(one) for one in model.reliability],
        "histogram": [asdict(one) for one in model.histogram],
        "most_confidently_wrong": [_mistake(subject, one) for one in model.worst],
    }


def _mistake(subject: Subject, mistake: Mistake) -> dict[str, Any]:
    return {
        "file": mistake.path,
        "truth": subject.label(mistake.truth),
        "predicted": subject.label(mistake.predicted),
        "probability": mistake.probability,
    }


def _agreement(findings: Findings) -> dict[str, Any]:
    agreement, subject = findings.agreement, findings.models[0].subject
    assert agreement is not None
    largest = None
    if agreement.largest is not None:
        place, index, difference = agreement.largest
        largest = {"file": findings.path(place), "label": subject.label(index), "difference": difference}
    return {
        "images": agreement.images,
        "same_top1": agreement.same,
        "largest_difference": largest,
        "flipped": [
            {
                "file": findings.path(flip.place),
                "kind": flip.kind,
                "truth": subject.label(flip.truth),
                "first": {"label": subject.label(flip.first), "probability": flip.first_probability},
                "second": {"label": subject.label(flip.second), "probability": flip.second_probability},
            }
            for flip in agreement.flips
        ],
    }
