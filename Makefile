# make demo   set everything up, then put the person of assets/demo_face.png into new pictures (models/mini, CPU)
# make app    set everything up, then serve the web page at http://127.0.0.1:7860
# make test   set everything up, then run the tests (make test-all: the slow ones too)
# make test-browser   the web page in a real browser (installs Chromium where it can)
# make mini   rebuild models/mini from nothing (hours on a CPU, minutes on a GPU); resumable
# make reproduce   the paper's claims again, into docs/reproduction.md (hours); make reproduce QUICK=1: some minutes
# The first Python that is new enough (diffusers and transformers, as pinned, need 3.11).
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
DEMO_PROMPT ?= a photo of a smiling woman in a green hoodie on a beach
PRESET ?= cpu

.PHONY: demo app test test-all test-browser lint mini evaluate reproduce clean

demo: $(STAMP)
	$(RUN) inference.py --prompt "$(DEMO_PROMPT)" --image assets/demo_face.png --n_samples 4 --seed 8 --output outputs/demo

app: $(STAMP)
	$(RUN) app.py --inbrowser

# A worker for each core, one thread each: many tests are too small to use more.
test: $(STAMP)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto --dist loadfile
	$(RUN) -m ruff check .

test-all: $(STAMP)
	HF_HUB_OFFLINE=1 $(RUN) -m pytest -m ""

# Debian's Chromium; where it is not and cannot be installed, the tests are left out, which is said.
test-browser: $(STAMP)
	@command -v chromium >/dev/null || { apt-get update -qq && apt-get install -y -qq chromium; } || true
	@if command -v chromium >/dev/null; then HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(RUN) -m pytest -m browser -n auto --dist load; \
	else echo "no Chromium here, and it cannot be installed: the tests in a browser were left out"; fi

lint: $(STAMP)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

mini: $(STAMP)
	$(RUN) -m feedface.synthetic.train --stage all --preset $(PRESET)

evaluate: $(STAMP)
	$(RUN) evaluate.py --protocol mini --model models/mini --out outputs/evaluation

reproduce: $(STAMP)
	$(RUN) -m research.reproduction $(if $(QUICK),--quick)

# torch goes first: the other packages then find their requirement met and do not pull another build.
# --no-deps for the package itself: its requirements are the pinned ones above; for insightface see its file.
$(STAMP): requirements.txt requirements-insightface.txt requirements-web.txt requirements-dev.txt pyproject.toml setup.py
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or newer is needed; name one with make PYTHON=/path/to/python3.11" >&2; exit 2; }
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' requirements.txt)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-insightface.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $(STAMP)

clean:
	rm -rf $(VENV) outputs
