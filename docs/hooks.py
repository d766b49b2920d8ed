"""Pages of the reference that are made from the code when the site is built, so they cannot miss a change of it."""

from generated import commands, config_pbtxt, errors, examples, http_routes, messages, metrics, settings
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

_PAGES = {
    "examples.md": examples.page,
    "reference/settings.md": settings.page,
    "reference/commands.md": commands.page,
    "reference/config-pbtxt.md": config_pbtxt.page,
    "reference/messages.md": messages.page,
    "reference/http.md": http_routes.page,
    "reference/metrics.md": metrics.page,
    "reference/errors.md": errors.page,
}


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the made pages to those in docs/."""
    for path, page in _PAGES.items():
        files.append(File.generated(config, path, content=page()))
    return files
