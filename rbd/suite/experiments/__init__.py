"""The experiments of the paper and of this project: a script each, which defines EXPERIMENT."""
