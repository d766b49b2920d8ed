"""TLS on a gRPC server: the certificate of the moment for each new connection, and the names of its client."""

from collections.abc import Iterable, Mapping
from typing import Any

import grpc

from cnnserve.access.tls import Identity, Tls

# The properties of a connection that have names of a verified client certificate.
_KINDS = {
    "x509_common_name": "CN",
    "peer_dns": "DNS",
    "peer_uri": "URI",
    "peer_email": "email",
    "peer_ip": "IP",
}


def server_credentials(tls: Tls) -> grpc.ServerCredentials:
    """Returns credentials for a server. grpc's core asks for a changed certificate before each handshake."""
    last = tls.identity

    def fetch() -> Any:
        """Returns the new configuration, None if it is the last one."""
        nonlocal last
        now = tls.identity
        if now is last:
            return None
        last = now
        return _configuration(now)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(last), fetch, require_client_authentication=tls.files.client_ca is not None
    )


def client_names(properties: Mapping[str, Iterable[bytes]]) -> tuple[str, ...]:
    """Returns the names of the client certificate of a connection, none if it has none."""
    found = [
        f"{kind}:{value.decode(errors='replace')}" for key, kind in _KINDS.items() for value in properties.get(key, ())
    ]
    return tuple(found)


def _configuration(identity: Identity) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(identity.key, identity.certificate)], root_certificates=identity.client_ca
    )
