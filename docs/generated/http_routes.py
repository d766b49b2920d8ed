"""Every route of the HTTP port, from the server's own table."""

from starlette.responses import Response

from cnnserve.transports.http import routes
from cnnserve.transports.http.exchange import Exchange

from .tables import code, table

_HEAD = """# HTTP routes

Every route does what one RPC does; [Protocols](../protocols.md#http) shows requests. `GET /openapi.json` of a running
server describes the bodies of all requests and responses.

"""


def page() -> str:
    """The page."""
    rows = [
        (
            f"{code(f'{operation.method} {operation.path}')}<br>{operation.summary}",
            code(operation.rpc.rpartition("/")[2]),
            ", ".join(map(str, sorted(operation.errors))),
        )
        for operation in [*routes.operations(), routes.scraping(_never)]
    ]
    return _HEAD + table(("Route", "RPC", "Errors"), rows)


async def _never(exchange: Exchange) -> Response:
    raise NotImplementedError(exchange)
