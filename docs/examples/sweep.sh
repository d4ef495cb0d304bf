rbd sweep --list                                   # questions, runs done and missing, cost of the missing ones
rbd sweep dimension --jobs 2 --results-dir my-results
rbd sweep paper_rates --profile paper --dry-run --results-dir my-results
rbd sweep all --results-dir my-results
