"""The experiment suite: runs of the paper's networks, their records, sweeps over them, and the command `rbd`."""
