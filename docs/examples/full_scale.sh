rbd data                                           # which data sets are there
rbd data --download mnist
rbd data --download fmnist
rbd data --download cifar10
rbd sweep settings --profile paper                 # table 1 at the paper's rates, with and without augmentation
