rbd train --model fc --data mnist-embedded --method rbd --dim 250 --lr 4 --epochs 10 --results-dir my-results
rbd train --help
