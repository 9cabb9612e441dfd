# scow: two commands for a new machine, `make demo` and `make test`; the rest is for those who work on it.
#
#   make demo      install what it needs, build, and run one container that tells what isolates it
#   make test      install what the tests need, and run all of them
#   make stress    the long loops: races, kills, many clients
#   make fuzz      the parsers and compilers under fuzzers, for as long as SECONDS says (each)
#   make test-vm   the part that needs a cgroup v2 host, in a QEMU guest
#   make test-power  cut the power of that guest in the middle of pulls (CYCLES=30), and look what is left
#   make bench     scow beside the other runtimes that are installed
#   make bench-oci scow-oci beside runc, crun, and crun as Debian's unstable has it
#   make bench-images  pulls and pushes beside podman, docker, ctr and skopeo
#   make bench-service  scow serve beside containerd, podman and docker
#   make venv      .venv with scow (editable) and everything a developer needs
#   make lint      ruff, mypy, pyright
#   make clean     remove what the build made
PYTHON ?= /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
PROVISION := tests/vm/provision.sh
ROOMS := native runtime image cgroups netns cri cli scheduler
SOURCES := pyproject.toml setup.py $(wildcard native/*.c native/*.h native/build.py)
HELLO := cri/hello-image/index.json
SUDO := $(if $(filter 0,$(shell id -u)),,sudo --preserve-env=SCOW_CI,SCOW_TEST_CACHE)
# What to give to pytest: make test TESTS=tests/unit ARGS="-x -k reference"
TESTS ?= tests
ARGS ?=

.PHONY: demo test stress fuzz test-vm test-power bench bench-oci bench-images bench-service venv types mypy pyright hello lint clean packages-run packages-test packages-vm packages-bench

demo: $(VENV)/.stamp-run $(HELLO)
	@[ -e /usr/local/bin/scow ] || { $(SUDO) ln -sfn $(abspath $(BIN))/scow /usr/local/bin/scow && \
		echo "linked /usr/local/bin/scow to this checkout, so that 'sudo scow' works"; }
	$(SUDO) $(BIN)/scow run --rm -m 64m --cpus 0.5 --pids-limit 64 \
		-e SCOW_HOST_NS="$$(readlink /proc/self/ns/* | tr '\n' ' ')" scow/hello

test: packages-test venv
	$(SUDO) $(BIN)/python -m pytest -m "not slow" $(TESTS) $(ARGS)

# Long loops: races, kills, clients that get in each other's way.
stress: packages-test venv
	$(SUDO) $(BIN)/python -m pytest -m slow $(TESTS) $(ARGS)

# What a run finds lies in build/fuzz; what it adds to the corpus in tests/fuzz/corpus is to be committed.
SECONDS ?= 600
fuzz: packages-test venv
	nice -n 19 $(BIN)/python tests/fuzz/run.py --seconds $(SECONDS) --keep
	$(SUDO) env SCOW_FUZZ_EXAMPLES=20000 nice -n 19 $(BIN)/python -m pytest tests/fuzz -k "not native" --timeout 7200 $(ARGS)

test-vm: packages-vm venv
	$(SUDO) $(BIN)/python tests/vm/run.py $(ARGS)

CYCLES ?= 30
test-power: packages-vm venv
	$(SUDO) $(BIN)/python tests/vm/power.py --cycles $(CYCLES) $(ARGS)

bench: packages-bench venv
	$(SUDO) $(BIN)/python bench/run.py $(ARGS)

bench-oci: packages-bench venv
	$(SUDO) $(BIN)/python bench/oci.py $(ARGS)

bench-images: packages-bench venv
	$(SUDO) $(BIN)/python bench/images.py $(ARGS)

bench-service: packages-bench venv
	$(SUDO) $(BIN)/python bench/service.py $(ARGS)

packages-run:
	@$(PROVISION) packages run

packages-test:
	@$(PROVISION) packages run test

packages-bench:
	@$(PROVISION) packages run test bench

packages-vm:
	@$(PROVISION) packages run vm

# A virtual environment cannot be moved: one that was made elsewhere is made again.
$(BIN)/python: | packages-run
	@$(BIN)/python -c pass 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)

$(VENV)/.stamp-run: $(SOURCES) | $(BIN)/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -e .
	@touch $@

venv: $(VENV)/.stamp $(HELLO)
$(VENV)/.stamp: $(SOURCES) | $(BIN)/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/.stamp-run

# The image scow/hello, an OCI layout that becomes part of the package.
hello: $(HELLO)
$(HELLO): tests/payload/hello.c cri/build_hello.py | packages-run
	$(PYTHON) cri/build_hello.py cri/hello-image

# mypy and pyright want to see the rooms as the package that they are.
types:
	@mkdir -p build/types/scow
	@for room in $(ROOMS); do ln -sfn ../../../$$room build/types/scow/$$room; done
	@rm -rf build/pyright && mkdir -p build/pyright/scow && cp -r $(ROOMS) build/pyright/scow

mypy pyright: types
	@$(BIN)/$@

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(MAKE) -s mypy pyright

clean:
	[ "$$(readlink /usr/local/bin/scow)" != $(abspath $(BIN))/scow ] || $(SUDO) rm /usr/local/bin/scow
	rm -rf $(VENV) build dist .cache cri/hello-image *.egg-info native/_scow.c native/*.so
