"""Changes of the core that change nothing that a caller could see: `make mutants` does not count them."""

# By function, the old and the new text, with the reason.
EQUIVALENT: dict[tuple[str, str, str], str] = {
    (
        "cnnserve.model.classification.x_top_k",
        "if count >= _SELECT_FROM and wanted * 8 <= count:",
        "if count >= _SELECT_FROM and wanted * 8 < count:",
    ): "both ways give the same classes; the limit only chooses the faster one",
    (
        "cnnserve.model.classification.x_softmax",
        "values = logits.astype(np.float32, copy=False)",
        "values = logits.astype(np.float32, )",
    ): "a copy has the same values",
    (
        "cnnserve.process.cpu.x_cgroup_folders",
        'parts = [part for part in path.split("/") if part not in ("", "..")]',
        'parts = [part for part in path.split("/") if part not in ("XXXX", "..")]',
    ): "joining an empty part to a path does not change it",
    (
        "cnnserve_client.retry.xǁRotationǁfailed",
        "rest_s = min(_LONGEST_REST_S, _FIRST_REST_S * 2.0 ** min(self._failures[number], 10))",
        "rest_s = min(_LONGEST_REST_S, _FIRST_REST_S * 2.0 ** min(self._failures[number], 11))",
    ): "the longest rest is reached before",
    (
        "cnnserve.images.geometry.x_place",
        'resize, align = spec.resize, spec.pad.align if spec.pad else "center"',
        'resize, align = spec.resize, spec.pad.align if spec.pad else "XXcenterXX"',
    ): "only start is asked for",
}
