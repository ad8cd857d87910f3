# make demo    environment, simulated screen, training, inference, scores: minutes on two CPU cores
# make test    the test suite
# make lint    ruff and mypy
# make bench   benchmarks of the loader, tables to benchmarks/results/
# make bench-train   of training, beside arc-state
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python

.PHONY: demo test lint bench bench-train env clean
.DELETE_ON_ERROR:

demo: env
	@echo "== 1/4 simulate a screen in three cell lines and read it into a cell store"
	$(RUN) -m vcell.prepare data=demo
	@echo "== 2/4 train (continues where it stopped, if it was stopped)"
	$(RUN) -m vcell.train experiment=demo
	@echo "== 3/4 predict the 30 withheld targets of simC"
	$(RUN) -m vcell.infer ckpt=runs/demo/checkpoints/last.ckpt out=runs/demo/pred.h5ad overwrite=true
	@echo "== 4/4 score against the withheld cells, beside three baselines"
	@$(RUN) -m vcell.evaluate pred=runs/demo/pred.h5ad real=data/demo/screen/truth/simC_test.h5ad out=runs/demo/scores

# two processes of one thread each: faster than one of two, and they do not fight over the cores
test: env
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2

lint: env
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

PEERS = $(VENV)-peers
bench: env
	@test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt cell-load==0.10.4 scdataset==0.3.0
	$(RUN) benchmarks/loader.py --genes 2000 --peers $(PEERS)/bin/python
	$(RUN) benchmarks/loader.py --genes 18080 --peers $(PEERS)/bin/python

STATE = $(VENV)-state
bench-train: env
	@test -x $(STATE)/bin/python || $(PYTHON) -m venv $(STATE)
	$(STATE)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt arc-state==0.11.1
	$(RUN) benchmarks/train_step.py
	$(RUN) benchmarks/vs_state.py --peer $(STATE)/bin/python

env: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "vcell needs Python 3.11 or newer; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "== environment in $(VENV) (a few minutes, once)"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	  --editable '.[score,submit,cluster,losses,slurm,wandb,notebook,dev]'
	@touch $@

clean:
	rm -rf $(VENV) $(PEERS) $(STATE) build dist .pytest_cache .ruff_cache .mypy_cache
