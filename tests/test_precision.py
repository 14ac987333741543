"""Which type products are made in, and that nobody else notices."""

from __future__ import annotations

import pytest
import torch

from nearstep.precision import multiplies_bfloat16, narrowed, products_in, tf32


def settings() -> tuple[str, bool]:
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("before", ["highest", "high"])
def test_tf32_ends_with_its_block(before: str) -> None:
    usual = settings()
    torch.set_float32_matmul_precision(before)
    try:
        kept = settings()
        with tf32():
            assert settings() == ("high", True)
        assert settings() == kept
        with pytest.raises(ZeroDivisionError), tf32():
            raise ZeroDivisionError
        assert settings() == kept
    finally:
        torch.set_float32_matmul_precision(usual[0])
        torch.backends.cudnn.allow_tf32 = usual[1]


def test_products_are_made_in_what_is_asked_for_whatever_is_around() -> None:
    a, b = torch.randn(8, 8), torch.randn(8, 8)
    for around in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=around):
            for kind, dtype in (("float32", torch.float32), ("TF32", torch.float32), ("bfloat16", torch.bfloat16)):
                with products_in(kind, "cpu"):
                    assert (a @ b).dtype == dtype
                    assert settings()[0] == torch.get_float32_matmul_precision() == "highest"
            assert torch.is_autocast_enabled("cpu") == around
    inside = []
    with products_in("TF32", "cuda"):
        inside.append(settings())
    assert inside == [("high", True)] and settings()[0] == "highest"


@pytest.mark.parametrize("has", [True, False])
def test_products_are_narrow_where_the_device_has_narrow_ones(has: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("nearstep.precision.multiplies_bfloat16", lambda device: has)
    layer, x = torch.nn.Linear(4, 4), torch.ones(2, 4)
    with narrowed("cpu"):
        assert layer(x).dtype == (torch.bfloat16 if has else torch.float32)
    with narrowed("cpu", wanted=False):
        assert layer(x).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16), narrowed("cpu"):  # it holds whatever is around
        assert layer(x).dtype == (torch.bfloat16 if has else torch.float32)


def test_a_processor_has_narrow_products_from_avx512_on():
    if torch.backends.cpu.get_cpu_capability() == "AVX2":
        assert not multiplies_bfloat16("cpu")
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        assert multiplies_bfloat16("cpu")
