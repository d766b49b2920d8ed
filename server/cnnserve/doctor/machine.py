"""Checks the CPU budget, the memory and the ports."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cnnserve.doctor import versions
from cnnserve.doctor.findings import Context, Finding, Status, many, parted
from cnnserve.process import cpu, memory_limit
from cnnserve.process.cpu import CGROUP_ROOT, MEMBERSHIP
from cnnserve.transports import addresses

_MIB = 2**20
# The size of a server without models.
_IDLE_BYTES = 60 * _MIB
_MAX_PORT = 65535


def cpus(context: Context, root: Path = CGROUP_ROOT, membership: Path = MEMBERSHIP) -> Iterator[Finding]:
    """Yields the CPU budget and where it comes from."""
    found = cpu.find(root, membership)
    host = os.cpu_count() or found.affinity
    sources = [f"{found.affinity} of {host} CPUs in the affinity mask"]
    if found.quota is None:
        sources.append("no cgroup quota")
    else:
        sources.append(f"a cgroup quota of {found.quota:g} CPUs ({found.folder})")
    data: dict[str, Any] = {"threads": found.threads, "affinity": found.affinity, "quota": found.quota, "host": host}
    data["quota_source"] = None if found.folder is None else str(found.folder)
    asked = int(context.settings.get("cpu_threads", 0))
    text = f"{many(found.threads, 'thread')} per model: {', '.join(sources)}"
    if asked > found.threads:
        text = f"cpu_threads is {asked}, this process may use {found.threads}: {', '.join(sources)}"
        yield Finding("CPU", Status.WARNING, text, "set --cpu-threads 0, or raise the quota", data)
        return
    if asked:
        text = f"{many(asked, 'thread')} per model, set by cpu_threads; {', '.join(sources)}"
    yield Finding("CPU", Status.OK, text, data=data)


def memory(context: Context, root: Path = CGROUP_ROOT, membership: Path = MEMBERSHIP) -> Iterator[Finding]:
    """Yields whether the models of the repository, and requests beside them, fit into the memory limit."""
    found = memory_limit.find(root, membership)
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit, source = found or (physical, None)
    limit = min(limit, physical)
    sizes = versions.served_bytes(context)
    # A version that is replaced serves until its successor has passed its self-test.
    needed = _IDLE_BYTES + sum(sizes) + max(sizes, default=0)
    asked = int(context.settings.get("max_pending_mib", 0))
    budget = memory_limit.budget(asked, limit if found else None, needed)
    data: dict[str, Any] = {
        "limit_bytes": limit,
        "limit_source": None if source is None else str(source),
        "models_bytes": sum(sizes),
        "needed_bytes": needed,
        "requests_mib": budget.mib,
    }
    where = f"limit {limit // _MIB:,} MiB ({source})" if source else f"no limit, the machine has {limit // _MIB:,} MiB"
    models = f"the server with {many(len(sizes), 'version')} needs about {needed // _MIB:,} MiB, one replaced included"
    text = f"{where}; {models}; requests may hold {budget.mib:,} MiB"
    least = needed + 4 * int(context.settings.get("max_message_mib", 64)) * _MIB
    if needed > limit:
        fix = f"raise the memory limit to {least // _MIB + 1} MiB or more, or serve fewer versions"
        yield Finding("memory", Status.PROBLEM, f"{where}; {models}", fix, data)
    elif limit < least:
        fix = f"raise the memory limit to {least // _MIB + 1} MiB, or lower --max-message-mib"
        yield Finding("memory", Status.WARNING, f"{text}, less than two messages (max_message_mib)", fix, data)
    else:
        yield Finding("memory", Status.OK, text, data=data)


def ports(context: Context) -> Iterator[Finding]:
    """Yields for each port whether the server could listen on it."""
    host = str(context.settings.get("host", "127.0.0.1"))
    for name in ("grpc_port", "http_port", "health_grpc_port", "health_http_port"):
        port = context.settings.get(name)
        if not isinstance(port, int) or not 0 <= port <= _MAX_PORT:
            continue
        title = name.replace("_", " ")
        data = {"host": host, "port": port}
        if port == 0:
            yield Finding(title, Status.OK, "the server chooses a free port and logs it", data=data)
            continue
        try:
            addresses.check_free(host, port, name)
        except OSError as error:
            text, fix = parted(str(error))
            yield Finding(title, Status.PROBLEM, text, fix, data)
        else:
            yield Finding(title, Status.OK, f"{host} port {port} is free", data=data)
