# make demo    environment, simulated screen, training, inference, scores: minutes on two CPU cores
# make test    the test suite
# make test-hardware   its numeric tests under restricted instruction sets, with one and two threads
# make lint    ruff and mypy
# make docs    the documentation site, to site/
# make pictures   the pictures in it, from the demo's report and another run
# make release-check   build, check, install and run the wheel as a user would
# make bench   benchmarks of the loader, tables to benchmarks/results/
# make bench-train   of training, next to arc-state
# make bench-score   of the scorers, next to cell-eval and cell-eval2
# make bench-quality   what every predictor scores in a new context, next to arc-state: an hour
# make bench-growth   what grows faster than the data
# make gpu   on a machine with a GPU: its tests, that no step waits, and the benchmarks
# make bench-infer   from checkpoint to submission, next to arc-state and cell-eval; whole counts
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python

.PHONY: demo test test-hardware lint docs pictures release-check bench bench-train bench-infer bench-score bench-quality bench-growth gpu env clean
.DELETE_ON_ERROR:

demo: env
	@echo "== 1/5 simulate a screen in three cell lines and read it into a cell store"
	$(RUN) -m vcell.prepare data=demo
	@echo "== 2/5 train (continues where it stopped, if it was stopped)"
	$(RUN) -m vcell.train experiment=demo
	@echo "== 3/5 predict the 30 withheld targets of simC"
	$(RUN) -m vcell.infer ckpt=runs/demo/checkpoints/last.ckpt out=runs/demo/pred.h5ad challenge=vcc2025 challenge.n_genes=null genes=data/demo/screen/gene_names.csv overwrite=true
	@echo "== 4/5 check it against a challenge's rules, and pack it (a simulated screen has genes of its own)"
	$(RUN) -m vcell.package pred=runs/demo/pred.h5ad challenge=vcc2025 challenge.n_genes=null genes=data/demo/screen/gene_names.csv overwrite=true
	@echo "== 5/5 score against the withheld cells, next to the baselines and the ceiling set by replicate noise"
	@$(RUN) -m vcell.evaluate pred=runs/demo/pred.h5ad real=data/demo/screen/truth/simC_test.h5ad out=runs/demo/scores

# two processes of one thread each: faster than one of two, and they do not fight over the cores
test: env
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist worksteal

test-hardware: env
	$(RUN) tests/hardware.py

lint: env
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

docs: env
	$(RUN) -m mkdocs build --strict

pictures: demo
	$(RUN) -m vcell.train experiment=demo name=demo_wide model.hidden=96
	$(RUN) -m vcell.runs compare demo demo_wide out=runs/compare.html
	$(RUN) docs/pictures.py runs/demo/scores/report.html runs/compare.html

release-check: env
	VCELL_RELEASE=1 $(RUN) -m pytest tests/test_release.py

PEERS = $(VENV)-peers
bench: env
	@test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt cell-load==0.10.4 scdataset==0.3.0
	$(RUN) benchmarks/loader.py --genes 2000 --peers $(PEERS)/bin/python
	$(RUN) benchmarks/loader.py --genes 18080 --peers $(PEERS)/bin/python

STATE = $(VENV)-state
bench-train: env $(STATE)/.ready
	$(RUN) benchmarks/train_step.py
	$(RUN) benchmarks/vs_state.py --peer $(STATE)/bin/python

bench-infer: env $(STATE)/.ready
	$(RUN) benchmarks/counts.py
	$(RUN) benchmarks/infer.py --peer $(STATE)/bin/python

bench-score: env
	$(RUN) benchmarks/score.py --controls 1500 --targets 30 --cells 100 --genes 6000
	$(RUN) benchmarks/score.py --controls 2500 --targets 50 --cells 150 --genes 12000
	$(RUN) benchmarks/score.py
	$(RUN) benchmarks/score_full.py --contexts 3
	$(RUN) benchmarks/score_full.py --year 2025 --targets 40 --cells 500

bench-growth: env
	$(RUN) benchmarks/growth.py

gpu: env
	$(RUN) benchmarks/gpu.py

bench-quality: env $(STATE)/.ready
	$(RUN) benchmarks/ladder.py
	$(RUN) benchmarks/quality.py --large-steps 200 --peer $(STATE)/bin/python

$(STATE)/.ready: constraints.txt
	$(PYTHON) -m venv $(STATE)
	$(STATE)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt arc-state==0.11.1
	@touch $@

env: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "vcell needs Python 3.11 or newer; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "== environment in $(VENV) (a few minutes, once)"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	  --editable '.[score,submit,cluster,losses,lora,embed,slurm,wandb,tensorboard,mlflow,download,notebook,docs,dev]'
	@touch $@

clean:
	rm -rf $(VENV) $(PEERS) $(STATE) build dist .pytest_cache .ruff_cache .mypy_cache
