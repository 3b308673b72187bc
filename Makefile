# DiffusionFM: the commands a person needs. `make` alone lists them.
#
# Variables: DWI=path        the demo's scan: NIfTI with bval and bvec beside it, NRRD, or a DICOM folder
#            WEIGHTS=path    the prior that is evaluated; by default that which is shipped
#            SAMPLER=path    the weights that samples are drawn with; by default those which are shipped
#            ENCODER=path    the encoder that is evaluated; without one, only what needs no training
#            PYTHON=command  the Python to build the environment with (3.11, 3.12 or 3.13)
#            PIP_ARGS=...    passed to pip install, e.g. an index that has the CPU build of torch
#            PYTEST_ARGS=... passed to pytest, e.g. PYTEST_ARGS='-k gradients'
#            BENCH_ARGS=...  passed to the benchmarks, e.g. BENCH_ARGS='--only speed' or '--large'

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help install demo test bench evaluate lint clean

VENV := .venv
WEIGHTS ?= DiffusionFMLib/Models/prior-dti-small.safetensors
SAMPLER ?= DiffusionFMLib/Models/sampler-dti-small.safetensors
ENCODER ?= $(wildcard DiffusionFMLib/Models/encoder-small.safetensors)
VENV_PYTHON := $(VENV)/bin/python
INSTALLED := $(VENV)/installed.stamp

# Each candidate is started, since a name on the path may be a shim of a Python that is not there.
# 3.14 comes last: slicer-core has no wheel for it, so the demo has no viewers there.
PYTHONS := $(PYTHON) python3.11 python3.12 python3.13 python3 python3.14
RIGHT_VERSION := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))

help:
	@echo "make demo              the main job on a simulated scan: maps and tracts in the viewers, files in demo/"
	@echo "make demo DWI=path     the same on your scan"
	@echo "make test              all tests"
	@echo "make bench             speed, memory and error beside the peers that are installed; build/bench.json"
	@echo "make evaluate          the prior beside smoothers, on phantoms, lesions and real scans; WEIGHTS=path chooses it;"
	@echo "                       and the encoder beside predictions that need no training, and heads on it; ENCODER=path"
	@echo "make lint              ruff and mypy"
	@echo "make install           only the environment, in $(VENV)/"
	@echo "make clean             remove what was built; $(VENV)/ and demo/ stay"
	@echo "Variables: DWI, PYTHON, PIP_ARGS, PYTEST_ARGS, BENCH_ARGS (see the top of the Makefile)."

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@if [ -L $(VENV) ]; then \
	    echo "make: $(VENV) is a link to another checkout's environment, whose DiffusionFM would become this one." >&2; \
	    echo "make: remove the link, and call make again: it makes an environment of its own." >&2; \
	    exit 2; \
	fi
	@python=; for candidate in $(PYTHONS); do \
	    if "$$candidate" -c '$(RIGHT_VERSION)' >/dev/null 2>&1; then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	    echo "make: none of these is Python 3.11 to 3.13: $(PYTHONS)." >&2; \
	    echo "make: install one (Debian, Ubuntu: apt-get install -y python3 python3-venv), or name it: make PYTHON=/path/to/python3.11" >&2; \
	    exit 2; \
	fi; \
	echo "Python: $$("$$python" --version) ($$python)"; \
	"$$python" Testing/preflight.py && \
	{ [ -x $(VENV_PYTHON) ] || "$$python" -m venv $(VENV); }
	@echo "Installing into $(VENV)/. torch alone is a download of 0.2 GB as CPU build, but of several GB as the CUDA build"
	@echo "that pip takes by default on Linux. PIP_ARGS chooses another index; the torch site names the one for CPU builds."
	@echo "It says nothing for some minutes; PIP_ARGS=-vv shows what it does."
	@$(VENV_PYTHON) -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --constraint constraints.txt --editable '.[viewer,test,fast]'
	@echo "Compiling loops for this processor, once (half a minute)."
	@$(VENV_PYTHON) -m DiffusionFMLib.fused
	@touch $@

demo: $(INSTALLED)
	$(VENV_PYTHON) Testing/demo.py --out demo $(if $(DWI),--dwi '$(DWI)')

test: $(INSTALLED)
	QT_QPA_PLATFORM=offscreen $(VENV_PYTHON) -m pytest $(PYTEST_ARGS)

bench: $(INSTALLED)
	$(VENV_PYTHON) Testing/Benchmarks/run.py $(BENCH_ARGS)

evaluate: $(INSTALLED)
	$(VENV_PYTHON) Testing/Evaluation/prior.py '$(WEIGHTS)'
	$(VENV_PYTHON) Testing/Evaluation/repeated.py '$(WEIGHTS)'
	$(VENV_PYTHON) Testing/Evaluation/anatomy.py
	$(VENV_PYTHON) Testing/Evaluation/noise_level.py
	$(VENV_PYTHON) Testing/Evaluation/shifted.py '$(WEIGHTS)'
	$(VENV_PYTHON) Testing/Evaluation/lesions.py '$(WEIGHTS)'
	$(VENV_PYTHON) Testing/Evaluation/calibration.py '$(WEIGHTS)'
	$(VENV_PYTHON) Testing/Evaluation/samples.py '$(SAMPLER)'
	$(VENV_PYTHON) Testing/Evaluation/microstructure.py --force
	$(VENV_PYTHON) Testing/Evaluation/kurtosis.py
	$(VENV_PYTHON) Testing/Evaluation/tracts.py '$(WEIGHTS)' --picture build/figures/tracts.png
	$(VENV_PYTHON) Testing/Evaluation/figures.py '$(WEIGHTS)' --out build/figures
	$(VENV_PYTHON) Testing/Evaluation/reconstruction.py $(if $(ENCODER),'$(ENCODER)')
	$(if $(ENCODER),$(VENV_PYTHON) Testing/Evaluation/overlays.py '$(ENCODER)')
	$(if $(ENCODER),$(VENV_PYTHON) Testing/Evaluation/downstream.py '$(ENCODER)')

lint: $(INSTALLED)
	@failed=0; \
	$(VENV_PYTHON) -m ruff check . || failed=1; \
	$(VENV_PYTHON) -m mypy || failed=1; \
	exit $$failed

clean:
	rm -rf build dist diffusionfm.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find DiffusionFM DiffusionFMLib Testing -name __pycache__ -type d -prune -exec rm -rf {} +
