"""On a GPU: a training step as a CUDA graph. Every replay draws new directions."""

import torch

from rbd import RBD


def main():
    model = torch.nn.Linear(784, 10, device="cuda")
    x, y = torch.rand(32, 784, device="cuda"), torch.randint(10, (32,), device="cuda")
    optimizer = RBD(model.parameters(), lr=1.0, dim=250, capturable=True)

    def step():
        optimizer.zero_grad(set_to_none=False)
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # steps before the capture compile the kernels and make their tables
        for _ in range(3):
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for _ in range(100):
        graph.replay()


if __name__ == "__main__" and torch.cuda.is_available():
    main()
