# make demo: train both models on phantoms and compare them.
# make test: the test suite, in at most 20 minutes on two cores.   make test-slow: what takes longer.
PYTHON ?= python3
BIN := .venv/bin
MODELS := baseline densenet121
# accelerate launch gives each process one thread unless it is told otherwise.
THREADS := $(shell $(PYTHON) -c "import os; print(os.cpu_count())")

# Threads that wait sleep instead of spinning: spinning, beside other work on the same cores, a step
# of training took six times as long. Alone, sleeping costs a tenth (28 against 31 images a second).
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test test-slow

demo: .venv/installed
	rm -rf runs/demo
	for model in $(MODELS); do \
		$(BIN)/accelerate launch --quiet --num_processes 1 --num_cpu_threads_per_process $(THREADS) \
			train.py --config recipes/demo.yaml --model $$model --output_dir runs/demo/$$model \
			|| exit 1; \
	done
	@echo
	@$(BIN)/python -m evaluation.table $(MODELS:%=runs/demo/%)
	@echo
	@echo 'Load it:  model = AutoModel.from_pretrained("runs/demo/densenet121", trust_remote_code=True)'
	@echo 'See it:   MODEL_ID=runs/demo/densenet121,runs/demo/baseline $(BIN)/python space/app.py'

# A file's tests share models, servers and browsers, so they stay in one process.
test: .venv/installed
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test-slow: .venv/installed
	$(BIN)/python -m pytest -m slow

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@
