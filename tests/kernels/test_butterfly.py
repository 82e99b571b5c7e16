"""Butterflies against sums over cmath.exp, against torch.fft, and against Kronecker products."""

from __future__ import annotations

import cmath
import itertools
import math

import pytest
import torch
from torch import Tensor

from evo_kernels.butterfly import (
    LEARNED_RADIX,
    block_sizes,
    butterfly,
    dft_matrix,
    frequencies,
    initial_factors,
    inverse_butterfly,
    learned_block_sizes,
    learned_matrices,
)
from evo_kernels.errors import KernelError

C128 = torch.complex128


def _root(numerator: int, n: int) -> complex:
    return cmath.exp(-2j * math.pi * numerator / n)


def _loop_transform(x: list[complex], matrices: list[list[list[complex]]]) -> list[complex]:
    """The passes by recursion, one number at a time; place c M + d holds digit c, then the rest."""
    if not matrices:
        return x
    first, *others = matrices
    n = len(first)
    m = len(x) // n
    out: list[complex] = []
    for c in range(n):
        row = [
            sum(first[c][a] * x[m * a + b] for a in range(n)) * _root(b * c, n * m)
            for b in range(m)
        ]
        out += _loop_transform(row, others)
    return out


@pytest.mark.parametrize("sizes", [(8,), (4, 2), (2, 4), (2, 2, 2), (4, 4), (4, 2, 4)])
def test_the_fourier_transform_is_its_defining_sum(sizes: tuple[int, ...]) -> None:
    N = math.prod(sizes)
    x = torch.randn(2, 3, 2, N, dtype=torch.float64)
    found = butterfly(x, [dft_matrix(n, C128) for n in sizes])
    for place, f in enumerate(frequencies(sizes).tolist()):
        weights = torch.tensor([_root(t * f, N) for t in range(N)], dtype=C128)
        torch.testing.assert_close(found[..., place], (x * weights).sum(-1), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("N", "order"),
    [*itertools.product([32, 512], [1, 2, 3, 4, 5]), (4096, 2), (4096, 3), (4096, 12)],
)
def test_every_order_equals_torch_fft_and_goes_back(N: int, order: int) -> None:
    sizes = block_sizes(N, order)
    x = torch.randn(1, 2, 3, N, dtype=torch.float64)
    spectrum = butterfly(x, [dft_matrix(n, C128) for n in sizes])
    torch.testing.assert_close(
        spectrum, torch.fft.fft(x)[..., frequencies(sizes)], rtol=0, atol=1e-11
    )
    back = inverse_butterfly(spectrum, sizes)
    torch.testing.assert_close(back, x.to(C128), rtol=0, atol=1e-13)


def test_two_passes_are_the_product_of_two_block_diagonal_matrices() -> None:
    """`F_N = P (I x F_M) Tw (F_n x I)`: the twiddles diagonal, P the sorting of frequencies."""
    n, m = 4, 8
    eye = torch.eye
    outer = torch.kron(dft_matrix(n, C128), eye(m, dtype=C128))
    inner = torch.kron(eye(n, dtype=C128), dft_matrix(m, C128))
    twiddles = torch.diag(
        torch.tensor([_root(b * c, n * m) for c in range(n) for b in range(m)], dtype=C128)
    )
    product = inner @ twiddles @ outer
    torch.testing.assert_close(
        product, dft_matrix(n * m, C128)[frequencies((n, m))], rtol=0, atol=1e-13
    )
    found = butterfly(eye(n * m, dtype=C128)[None, None], [dft_matrix(k, C128) for k in (n, m)])
    torch.testing.assert_close(found[0, 0].T, product, rtol=0, atol=1e-13)


def test_roots_are_as_exact_at_a_large_length_as_at_a_small_one() -> None:
    x = torch.randn(1, 1, 1, 1 << 16, dtype=torch.float64)
    sizes = block_sizes(1 << 16, 2)
    found = butterfly(x, [dft_matrix(n, C128) for n in sizes])
    expected = torch.fft.fft(x)[..., frequencies(sizes)]
    assert float((found - expected).norm() / expected.norm()) < 1e-14
    single = butterfly(x.float(), [dft_matrix(n, torch.complex64) for n in sizes])
    assert single.dtype == torch.complex64
    assert float((single - expected).norm() / expected.norm()) < 5e-7


def test_sizes_are_as_equal_as_they_can_be() -> None:
    assert block_sizes(4096, 2) == (64, 64)
    assert block_sizes(8192, 3) == (32, 16, 16)
    assert block_sizes(8, 3) == (2, 2, 2)
    assert learned_block_sizes(4096) == (16, 16, 16)
    assert learned_block_sizes(2048) == (16, 16, 8)
    assert learned_block_sizes(2) == (2,)
    assert learned_block_sizes(64, radix=4) == (4, 4, 4)
    assert LEARNED_RADIX == 16


@pytest.mark.parametrize(
    ("length", "order", "message"),
    [
        (12, 2, "12 points does not exist; the number must be a power of two"),
        (1, 1, "1 points does not exist"),
        (8, 4, "8 points has no order 4; use 1 to 3 passes"),
        (8, 0, "has no order 0"),
    ],
)
def test_sizes_that_cannot_be_are_refused(length: int, order: int, message: str) -> None:
    with pytest.raises(KernelError, match=message):
        block_sizes(length, order)
    with pytest.raises(KernelError, match="12 points; use a power of two"):
        learned_block_sizes(12)


def test_any_matrices_per_head_go_through_the_same_passes() -> None:
    heads, sizes = 3, (4, 4, 2)
    generator = torch.Generator().manual_seed(1)
    factors = {
        n: torch.randn(heads, n, n, 2, generator=generator, dtype=torch.float64) for n in (4, 2)
    }
    x = torch.randn(2, heads, 2, 32, generator=generator, dtype=torch.float64)
    found = butterfly(x, learned_matrices(factors, sizes, "free", torch.float64))
    for head in range(heads):
        matrices = [torch.view_as_complex(factors[n][head]).tolist() for n in sizes]
        for b, c in ((0, 0), (1, 1)):
            expected = _loop_transform(x[b, head, c].tolist(), matrices)
            torch.testing.assert_close(
                found[b, head, c], torch.tensor(expected, dtype=C128), rtol=1e-12, atol=1e-12
            )


def test_additive_matrices_are_the_fourier_transform_plus_the_factors() -> None:
    factors = {4: torch.randn(2, 4, 4, 2, dtype=torch.float64)}
    (free,) = learned_matrices(factors, (4,), "free", torch.float64)
    (additive,) = learned_matrices(factors, (4,), "additive", torch.float64)
    torch.testing.assert_close(additive - free, dft_matrix(4, C128).expand(2, 4, 4))


def test_first_values() -> None:
    free = initial_factors((16, 16, 8), 2, "free")
    assert {n: tuple(x.shape) for n, x in free.items()} == {16: (2, 16, 16, 2), 8: (2, 8, 8, 2)}
    x = torch.randn(1, 2, 1, 2048, dtype=torch.float64)
    doubled = {n: v.double() for n, v in free.items()}
    spectrum = butterfly(x, learned_matrices(doubled, (16, 16, 8), "free", torch.float64))
    expected = torch.fft.fft(x)[..., frequencies((16, 16, 8))]
    # The parameters are float32.
    assert float((spectrum - expected).norm() / expected.norm()) < 1e-7
    torch.manual_seed(0)
    noise: Tensor = initial_factors((16,), 4, "additive")[16]
    assert float(noise.std()) == pytest.approx(0.01, rel=0.1)
    assert not torch.equal(noise[0], noise[1])
    with pytest.raises(KernelError, match="form is 'fixed'; use"):
        initial_factors((16,), 1, "fixed")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["conjugate", "factors exchanged", "natural order"])
def test_the_comparison_with_torch_fft_notices(name: str) -> None:
    x = torch.randn(2, 3, 2, 32, dtype=torch.float64)
    sizes = (8, 4)
    matrices = [dft_matrix(n, C128) for n in sizes]
    if name == "conjugate":
        matrices = [matrix.conj() for matrix in matrices]
    elif name == "factors exchanged":
        matrices.reverse()
    order = torch.arange(32) if name == "natural order" else frequencies(sizes)
    difference = butterfly(x, matrices) - torch.fft.fft(x)[..., order]
    assert float(difference.abs().max()) > 1e-3
