"""What the benchmarks count: the memory of tensors while they live."""

import torch

from book.bench import peak_memory

KEPT = torch.ones(1000)  # 4000 bytes


def test_what_a_function_makes_counts_and_what_was_there_does_not():
    assert peak_memory(lambda: KEPT + 1) == 4000
    assert peak_memory(lambda: KEPT.view(10, 100).T) == 0
    assert peak_memory(lambda: KEPT.mul_(1)) == 0


def test_what_is_gone_counts_no_more():
    def one_after_the_other():
        for _ in range(3):
            KEPT + 1

    assert peak_memory(one_after_the_other) == 4000
    assert peak_memory(lambda: (KEPT + 1) + 1) == 8000
    assert peak_memory(lambda: [KEPT + i for i in range(3)]) == 12000


def test_a_view_keeps_what_it_looks_at():
    def views():
        small = (KEPT + 1)[:1]
        return small, KEPT + 1

    assert peak_memory(views) == 8000
