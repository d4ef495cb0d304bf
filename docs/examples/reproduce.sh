.venv/bin/rbd reproduce --results-dir my-results
