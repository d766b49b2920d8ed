"""TLS on both ports of a real server: clients of several kinds, certificates that change, probes."""

import asyncio
import datetime as dt
import hashlib
import http.client
import json
import re
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

import cnnserve_client as cc
from certificates import Authority, flags
from cnnserve.access.tls import TlsFiles
from support import RunningServer, picture, serving, spawn, wait_until, write_version

TIMEOUT_S = 30.0
TRANSPORTS = ("core", "aio")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "pem")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    write_version(tmp_path / "models" / "tiny" / "1")
    return tmp_path / "models"


@pytest.fixture(params=TRANSPORTS)
def mutual(
    request: pytest.FixtureRequest, authority: Authority, models: Path, tmp_path: Path
) -> Iterator[RunningServer]:
    """A server that wants client certificates."""
    arguments = flags(authority.issue("server"), authority.root)
    with serving(tmp_path / "log", models, *arguments, "--grpc-transport", request.param) as server:
        assert "both with TLS" in server.log
        yield server


def trusting(authority: Authority, files: TlsFiles | None = None) -> cc.Tls:
    return cc.Tls(authority.root, *((files.certificate, files.key) if files else ()))


def client(server: RunningServer, tls: cc.Tls, **settings: Any) -> cc.Client:
    return cc.Client(server.address, **{"tls": tls, "retries": 0} | settings)


def curl(server: RunningServer, path: str, *arguments: str | Path) -> tuple[int, str]:
    """Exit code of curl, and what it printed."""
    command = ["curl", "-sS", "--max-time", "20", *map(str, arguments), f"https://127.0.0.1:{server.http_port}{path}"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    return ended.returncode, ended.stdout + ended.stderr


def certificate(port: int, authority: Authority, files: TlsFiles | None = None) -> bytes:
    """The digest of the certificate with which a server meets a new connection."""
    context = ssl.create_default_context(cafile=str(authority.root))
    if files is not None:
        context.load_cert_chain(files.certificate, files.key)
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=TIMEOUT_S, context=context)
    connection.connect()
    found = connection.sock.getpeercert(binary_form=True)
    connection.close()
    assert found is not None
    return hashlib.sha256(found).digest()


def test_clients_with_a_certificate_are_served(mutual: RunningServer, authority: Authority) -> None:
    mine = authority.issue("client", "client.example")
    tls = trusting(authority, mine)
    with client(mutual, tls) as blocking:
        assert blocking.classify(picture("left"), model="tiny").results[0].top.label == "left"
        assert len(list(blocking.classify_many([picture("left")] * 20, model="tiny"))) == 20

    async def ask() -> Any:
        async with cc.AsyncClient(mutual.address, tls=tls, retries=0) as asking:
            return await asking.classify(picture("bright"), model="tiny")

    assert asyncio.run(ask()).results[0].top.label == "bright"
    code, text = curl(mutual, "/v2", "--cacert", authority.root, "--cert", mine.certificate, "--key", mine.key)
    assert (code, json.loads(text)["name"]) == (0, "cnnserve")


def test_clients_without_a_certificate_are_not(mutual: RunningServer, authority: Authority, tmp_path: Path) -> None:
    foreign = Authority(tmp_path / "foreign").issue("client", "client.example")
    for tls in (trusting(authority), trusting(authority, foreign)):
        with (
            client(mutual, tls) as refused,
            pytest.raises(cc.ConnectionFailedError, match=r"client certificate|handshake|closed"),
        ):
            refused.list_models()
    assert curl(mutual, "/v2/health/live", "--cacert", authority.root)[0] != 0
    assert curl(mutual, "/v2", "--cacert", authority.root, "--cert", foreign.certificate, "--key", foreign.key)[0] != 0


@pytest.mark.parametrize(
    ("version", "accepted"), [("tls1", False), ("tls1_1", False), ("tls1_2", True), ("tls1_3", True)]
)
def test_versions_of_tls(mutual: RunningServer, authority: Authority, version: str, accepted: bool) -> None:
    mine = authority.issue("client", "client.example")
    for port in (mutual.grpc_port, mutual.http_port):
        command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", f"-{version}", "-alpn", "h2,http/1.1"]
        command += ["-cipher", "DEFAULT:@SECLEVEL=0", "-cert", str(mine.certificate), "-key", str(mine.key)]
        command += ["-CAfile", str(authority.root)]
        ended = subprocess.run(command, input=b"", capture_output=True, check=False, timeout=TIMEOUT_S)
        said = ended.stdout.decode(errors="replace")
        assert ("Verify return code: 0 (ok)" in said and "Cipher is (NONE)" not in said) is accepted, said
        if accepted:
            assert ("ALPN protocol: h2" if port == mutual.grpc_port else "ALPN protocol: http/1.1") in said


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_certificate_that_changes_under_load_costs_no_call(
    authority: Authority, models: Path, tmp_path: Path, transport: str
) -> None:
    files = authority.issue("server")
    arguments = (*flags(files), "--grpc-transport", transport)
    failures: list[BaseException] = []
    ended = threading.Event()
    calls = [0, 0, 0]

    def load(number: int, call: Callable[[], object]) -> None:
        while not ended.is_set():
            try:
                call()
                calls[number] += 1
            except BaseException as error:
                failures.append(error)
                return

    with serving(tmp_path / "log", models, *arguments) as server, client(server, trusting(authority)) as long_lived:
        context = ssl.create_default_context(cafile=str(authority.root))

        def anew() -> None:
            with client(server, trusting(authority)) as short_lived:
                short_lived.classify(picture("left"), model="tiny")

        def over_http() -> None:
            connection = http.client.HTTPSConnection("127.0.0.1", server.http_port, timeout=TIMEOUT_S, context=context)
            connection.request("GET", "/v2")
            assert connection.getresponse().read()
            connection.close()

        work = (lambda: long_lived.classify(picture("left"), model="tiny"), anew, over_http)
        threads = [threading.Thread(target=load, args=pair) for pair in enumerate(work)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(2):
                before = {certificate(port, authority) for port in (server.grpc_port, server.http_port)}
                assert len(before) == 1
                authority.issue("server")
                wait_until(
                    lambda: all(
                        certificate(port, authority) not in before  # noqa: B023 - it is called in this turn
                        for port in (server.grpc_port, server.http_port)
                    )
                )
                served = [*calls]
                wait_until(lambda: bool(failures) or all(new > old + 2 for new, old in zip(calls, served, strict=True)))  # noqa: B023
        finally:
            ended.set()
            for thread in threads:
                thread.join()
        assert failures == []
        # A broken one is not taken.
        before = {certificate(server.grpc_port, authority)}
        authority.issue("server", "127.0.0.1", not_after=dt.datetime(2020, 1, 1, tzinfo=dt.UTC))
        server.wait_for("TLS certificate changed and cannot be used, so the old ones stay in force: .*has expired")
        assert {certificate(port, authority) for port in (server.grpc_port, server.http_port)} == before


def test_an_authority_that_is_taken_back_opens_no_new_connection(
    authority: Authority, models: Path, tmp_path: Path
) -> None:
    mine = authority.issue("client", "client.example")
    other = Authority(tmp_path / "other")
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(authority.root.read_bytes() + other.root.read_bytes())
    with serving(tmp_path / "log", models, *flags(authority.issue("server"), trusted)) as server:
        paths = ("--cacert", authority.root, "--cert", mine.certificate, "--key", mine.key)
        assert curl(server, "/v2", *paths)[0] == 0
        trusted.write_bytes(other.root.read_bytes())
        server.wait_for("TLS certificate read again")
        assert curl(server, "/v2", *paths)[0] != 0
        with client(server, trusting(authority, mine)) as refused, pytest.raises(cc.ConnectionFailedError):
            refused.list_models()
        theirs = other.issue("theirs", "client.example")
        with client(server, trusting(authority, theirs)) as welcome:
            assert welcome.list_models()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_certificates_have_scopes(authority: Authority, models: Path, tmp_path: Path, transport: str) -> None:
    scopes = tmp_path / "scopes"
    scopes.write_text("CN:web client infer\nDNS:scraper.example metrics,read\n")
    arguments = [*flags(authority.issue("server"), authority.root), "--certificate-scopes-file", str(scopes)]
    web = authority.issue("web", "web.example", common_name="web client")
    scraper = authority.issue("scraper", "scraper.example")
    nobody = authority.issue("nobody", "nobody.example")
    with serving(tmp_path / "log", models, *arguments, "--grpc-transport", transport) as server:
        with client(server, trusting(authority, web)) as asking:
            assert asking.classify(picture("left"), model="tiny").results[0].ok
            with pytest.raises(cc.PermissionDeniedError, match="the certificate has no scope 'read'"):
                asking.list_models()
        with client(server, trusting(authority, scraper)) as asking:
            assert asking.list_models()
            with pytest.raises(cc.PermissionDeniedError, match="no scope 'infer'"):
                asking.classify(picture("left"), model="tiny")
        unknown = pytest.raises(cc.UnauthenticatedError, match="the client certificate has no scopes")
        with client(server, trusting(authority, nobody)) as asking, unknown:
            asking.list_models()
        paths = ("--cacert", authority.root, "--cert", scraper.certificate, "--key", scraper.key)
        # The certificates of trustme end in the year 3000.
        found = re.search(
            r"^cnnserve_certificate_expiry_seconds (\S+)$", curl(server, "/metrics", *paths)[1], re.MULTILINE
        )
        assert found is not None
        assert float(found[1]) == dt.datetime(3000, 1, 1, tzinfo=dt.UTC).timestamp()
        for files, said in ((scraper, "nv_inference_count"), (web, "no scope 'metrics'"), (nobody, "has no scopes")):
            paths = ("--cacert", authority.root, "--cert", files.certificate, "--key", files.key)
            assert said in curl(server, "/metrics", *paths)[1]
        assert "who='certificate CN:web client' what='cnnserve.v1.Classifier/ListModels'" in server.log


def test_probes_need_no_certificate(authority: Authority, models: Path, tmp_path: Path) -> None:
    arguments = [
        *flags(authority.issue("server"), authority.root),
        "--health-grpc-port",
        "0",
        "--health-http-port",
        "0",
    ]
    with serving(tmp_path / "log", models, *arguments) as server:
        grpc_port = int(server.wait_for(r"health alone, in plain text: gRPC on port (\d+)")[1])
        http_port = int(server.wait_for(r"health alone, in plain text: HTTP on port (\d+)")[1])
        for path, status in (("/v2/health/live", 200), ("/v2/health/ready", 200), ("/v2", 404), ("/metrics", 404)):
            connection = http.client.HTTPConnection("127.0.0.1", http_port, timeout=TIMEOUT_S)
            connection.request("GET", path)
            assert connection.getresponse().status == status
            connection.close()
        with cc.Client(f"127.0.0.1:{grpc_port}", retries=0) as probe:
            assert probe.is_healthy()
            with pytest.raises(cc.UnsupportedError):
                probe.list_models()
        with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
            call = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
            with pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"):
                list(call(iter([b""]), timeout=TIMEOUT_S))
        assert server.terminate() == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--tls-certificate", "{pem}"], 2, "tls_key is missing; set tls_certificate and tls_key together"),
        (["--tls-key", "{key}"], 2, "tls_certificate is missing"),
        (["--tls-client-ca", "{pem}"], 2, "tls_client_ca has no effect without tls_certificate"),
        (["--certificate-scopes-file", "{pem}"], 2, "certificate_scopes_file has no effect without tls_client_ca"),
        (["--tls-certificate", "{pem}", "--tls-key", "{pem}"], 1, "server.pem has no PEM private key"),
    ],
)
def test_bad_settings_do_not_start(
    authority: Authority, models: Path, tmp_path: Path, arguments: list[str], code: int, said: str
) -> None:
    files = authority.issue("server")
    filled = [text.format(pem=files.certificate, key=files.key) for text in arguments]
    server = spawn(tmp_path / "log", "--repository", models, *filled)
    assert server.wait() == code
    assert re.search(re.escape(said), server.log)
