rbd sweep my_experiment --sweeps-dir . --dry-run --results-dir my-results
rbd sweep my_experiment --sweeps-dir . --results-dir my-results
