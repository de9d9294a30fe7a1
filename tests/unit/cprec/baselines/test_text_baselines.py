"""TedRec mixes in the frequency domain as its paper says, and MoRec knows items by text alone."""

import math

import pytest
import torch
import torch.nn.functional as F

from cprec.baselines.morec import MoRec
from cprec.baselines.tedrec import TedRec, TextAdaptor

LENGTH, SIZE = 6, 4
TEXT = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))


def tedrec() -> TedRec:
    torch.manual_seed(0)
    network = TedRec(TEXT, LENGTH, SIZE, 1, 0.0, experts=3, text_dropout=0.0, temperature=0.07)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(torch.randn_like(weight))
    return network.eval()


def morec(text: torch.Tensor, layers: int = 1) -> MoRec:
    torch.manual_seed(0)
    return MoRec(text, LENGTH, SIZE, 1, 0.0, layers=layers).eval()


@torch.no_grad()
def test_text_and_items_filter_each_other() -> None:
    """A product of spectra is a circular convolution along the places, written out here."""
    network = tedrec()
    items, text = torch.randn(2, 1, LENGTH, SIZE)
    kernel = torch.fft.irfft(torch.view_as_complex(network.filters), n=LENGTH, dim=0, norm="ortho")

    def convolve(by: torch.Tensor) -> torch.Tensor:
        shifted = [items[0].roll(shift, dims=0) * by[shift] for shift in range(LENGTH)]
        # The orthonormal transform divides by the root of the length, once too often.
        return torch.stack(shifted).sum(0) / math.sqrt(LENGTH)

    filtered, fused = convolve(kernel), convolve(text[0])
    expected = 2 * (
        torch.sigmoid(network.item_gate(filtered)) * filtered
        + torch.sigmoid(network.fusion_gate(fused)) * fused
    )
    assert torch.allclose(network.mix(items, text)[0], expected, atol=1e-4)


@torch.no_grad()
def test_experts_whiten_text_and_are_weighed_by_it() -> None:
    torch.manual_seed(0)
    adaptor = TextAdaptor(5, SIZE, LENGTH, 3, 0.5).eval()
    for weight in adaptor.parameters():
        weight.add_(torch.randn_like(weight))
    text = torch.randn(2, LENGTH, 5)
    for row in range(2):
        for place in range(LENGTH):
            vector = text[row, place]
            shares = (vector @ adaptor.gates).softmax(0)
            outputs = [(vector - adaptor.biases[k, place]) @ adaptor.weights[k] for k in range(3)]
            expected = shares @ torch.stack(outputs)
            assert torch.allclose(adaptor(text)[row, place], expected, atol=1e-5)


def test_gates_are_noisy_only_while_training() -> None:
    adaptor = TextAdaptor(5, SIZE, LENGTH, 3, 0.0)
    text = torch.randn(1, LENGTH, 5)
    assert not torch.equal(adaptor(text), adaptor(text))
    adaptor.eval()
    assert torch.equal(adaptor(text), adaptor(text))


@torch.no_grad()
def test_the_loss_of_tedrec_is_cross_entropy_of_cosines_over_all_items() -> None:
    network = tedrec()
    inputs = torch.tensor([[0, 0, 0, 1, 2, 3]])
    targets = torch.tensor([[0, 0, 0, 2, 3, 4]])
    losses = []
    for history, target in (((1,), 2), ((1, 2), 3), ((1, 2, 3), 4)):
        row = torch.tensor([[0] * (LENGTH - len(history)) + list(history)])
        state = network.encode_histories(row)[0]
        cosines = torch.stack(
            [F.cosine_similarity(state, network.item.weight[i], dim=0) for i in range(1, 10)]
        )
        losses.append(-float((cosines / 0.07).log_softmax(0)[target - 1]))
    assert float(network.loss(inputs, targets)) == pytest.approx(sum(losses) / 3, rel=1e-4)


@torch.no_grad()
def test_an_item_of_morec_is_its_text() -> None:
    text = TEXT.clone()
    text[3] = text[7]
    network = morec(text)
    scores = network.score_catalogue(torch.randn(2, SIZE))
    assert torch.equal(scores[:, 3], scores[:, 7])
    weights = network.state_dict()
    expected = text
    for layer in ("item.layers.0", "item.layers.3"):
        dense = F.linear(expected, weights[f"{layer}.weight"], weights[f"{layer}.bias"])
        expected = F.gelu(dense)
    assert torch.equal(network.embed_catalogue(), expected)


def test_text_is_not_stored_with_the_weights() -> None:
    for network in (tedrec(), morec(TEXT)):
        assert not [name for name in network.state_dict() if name.endswith("text")]


def test_morec_without_further_layers_is_one_dense_layer() -> None:
    weights = morec(TEXT, layers=0).state_dict()
    assert {name for name in weights if name.startswith("item.")} == {
        "item.layers.0.weight",
        "item.layers.0.bias",
    }
