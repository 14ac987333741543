"""Pictures that somebody gives: what kinds of numbers and files are taken, and what is said of others."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from nearstep.errors import NearstepError
from nearstep.pictures import array_of, fitted, tensor_of

RAMP = np.linspace(0, 1, 12, dtype=np.float64).reshape(1, 2, 2, 3)


@pytest.mark.parametrize("kind", ["float16", "float32", "float64", ">f4", ">f8", "longdouble"])
def test_floats_of_any_width_and_order_are_taken(kind: str) -> None:
    torch.testing.assert_close(tensor_of(RAMP.astype(kind)), torch.from_numpy(RAMP).float(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_of_floats_are_taken_out_of_their_graph(kind: torch.dtype) -> None:
    found = tensor_of(torch.from_numpy(RAMP).to(kind).requires_grad_())
    assert found.dtype == torch.float32 and not found.requires_grad


def test_bytes_stay_bytes() -> None:
    for numbers in (np.full((2, 2, 3), 7, np.uint8), torch.full((3, 2, 2), 7, dtype=torch.uint8)):
        assert tensor_of(numbers).dtype == torch.uint8 and int(tensor_of(numbers).max()) == 7


@pytest.mark.parametrize("kind", ["uint16", "int16", "uint32", "int64", "uint64", "bool", "complex64", "object", "<U3"])
def test_other_numbers_are_refused_with_what_is_taken(kind: str) -> None:
    with pytest.raises(NearstepError, match=r"bytes \(uint8\), or floats from 0 to 1"):
        tensor_of(RAMP.astype(kind))


@pytest.mark.parametrize("kind", [torch.uint16, torch.int64, torch.bool, torch.complex64])
def test_other_tensors_are_refused_with_what_is_taken(kind: torch.dtype) -> None:
    with pytest.raises(NearstepError, match=str(kind).removeprefix("torch.")):
        tensor_of(torch.ones(3, 2, 2).to(kind))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "PA", "RGBA", "CMYK", "YCbCr", "HSV", "I", "I;16", "F"])
def test_pictures_of_every_mode_are_rgb(mode: str) -> None:
    with warnings.catch_warnings(action="error"):
        assert fitted(array_of(Image.new(mode, (6, 4))), height=2, width=2).shape == (2, 2, 3)


def test_greys_of_16_bits_are_scaled() -> None:
    grey = Image.fromarray(np.array([[0, 32768, 65535]], dtype=np.uint16))
    assert array_of(grey)[0, :, 0].tolist() == [0, 128, 255]


def test_pictures_that_cannot_be_read_are_named_by_their_mode() -> None:
    with pytest.raises(NearstepError, match="mode La"):
        array_of(Image.new("La", (4, 4)))
