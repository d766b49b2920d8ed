"""One version of a model: loaded, proved, asked. May import `runtime`, `images` and the rooms below them."""
