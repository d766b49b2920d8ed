"""Changes of the core that change nothing that a caller could see: `make mutants` does not count them."""

# By function, the old and the new text, with the reason.
EQUIVALENT: dict[tuple[str, str, str], str] = {}
