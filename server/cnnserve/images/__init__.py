"""From a file's bytes to one row of a model's input. May import `process`, `repository` and the ground floor."""
