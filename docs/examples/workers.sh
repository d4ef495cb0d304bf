torchrun --standalone --nproc-per-node 4 workers.py
torchrun --standalone --nproc-per-node 4 -m rbd train --variant common --lr 16 --epochs 10
rbd train --workers 4 --variant bases --lr 4 --epochs 10
rbd train --workers 4 --variant directions --lr 4 --epochs 10
rbd train --workers 4 --variant shares --lr 4 --epochs 10
rbd train --workers 4 --method sgd --lr 0.5 --epochs 10
