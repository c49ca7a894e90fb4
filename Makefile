PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: train test bench clean

# Trains the digits example; see README.md for other configs.
train: $(VENV)/.installed
	$(RUN) main.py --config=configs/digits.py --workdir=runs/digits

test: $(VENV)/.installed
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(RUN) -m pytest -n 2 --dist worksteal

# About an hour; see benchmarks/RESULTS.md.
bench: $(VENV)/.installed
	$(RUN) -m benchmarks $(BENCH_FLAGS)

$(VENV)/.installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

clean:
	rm -rf $(VENV) runs
