# in a clone of the repository
python3 -m venv .venv
.venv/bin/pip install .             # the library alone: torch, NumPy and Numba
.venv/bin/pip install -e '.[suite]' # or with the experiment suite and the command `rbd`
